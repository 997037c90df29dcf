"""The host processor as an accel backend.

plugin.py          what accel loads
accelerator.py     CpuAccelerator
memory_counter.py  bytes of live tensors, counted by csrc/memory_counter.cpp
graphs.py          torch operations recorded and called again, by csrc/graph.cpp
host_memory.py     bytes of the machine and of the process's control groups
processor.py       cores, caches, instruction sets
cgroup.py          the control groups of this process
builders.py        the op builders, over the kernels in csrc/
onednn.py, ipex.py implementations by other libraries; packing.py: frozen_weights
"""

__version__ = "0.1.0"
