"""NVIDIA and AMD GPUs, as torch.cuda has them, as an accel backend.

plugin.py       what accel loads         probe.py  is there a device, and if not, why
accelerator.py  CudaAccelerator          nvml.py   the driver's management library
builders.py     the op builders, over accel's Triton kernels; tuning.py, compiler.py: for which GPU
native.py       a kernel of CUDA C++ in csrc/, compiled on first use by nvcc.py
"""

__version__ = "0.1.0"
