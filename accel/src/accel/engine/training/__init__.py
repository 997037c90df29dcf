"""From gradients to the next step, and to disk.

optimization.py      gradients added, clipped, a step     masters.py   fp32 copies of parameters
checkpoint.py        all of a training, by name ...
checkpoint_files.py  ... whole on disk or not at all
"""
