"""Triton's interpreter, repaired, and a backend whose kernels run under it on the host.

shim.py      what is repaired, and running kernels in a process where others compile
backend.py   the backend "interpreted": the shared builders over the same kernels
"""
