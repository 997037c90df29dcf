"""A made-up accelerator, "toy", and the accel backend for it: an example to copy.

`memory`, `runtime` and `dispatch` are the device. A backend for a real device has none of them:
its vendor's torch extension does their work.
"""
