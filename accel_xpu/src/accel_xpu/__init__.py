"""Intel GPUs, as torch.xpu has them, as an accel backend.

plugin.py       what accel loads         probe.py  is there a device, and if not, why
accelerator.py  XpuAccelerator           ipex.py   norms by IPEX, for who asks for it
builders.py     the op builders, over accel's Triton kernels; tuning.py, compiler.py: for which GPU
"""

__version__ = "0.1.0"
