"""NVIDIA and AMD GPUs, as torch.cuda has them, as an accel backend.

plugin.py       what accel loads         probe.py  is there a device, and if not, why
accelerator.py  CudaAccelerator          nvml.py   the driver's management library
"""

__version__ = "0.1.0"
