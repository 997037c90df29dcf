"""Tuning of the Triton kernels. **Not run on hardware**: a guess, with tiles that fit any GPU."""

from __future__ import annotations

from accel.triton_kernels.tuning import Tile, Tuning

TUNING = Tuning(
    few=Tile(blocks=1, columns=32, warps=4, stages=3),
    many=Tile(blocks=4, columns=128, warps=8, stages=3),
    few_fp32=Tile(blocks=1, columns=32, warps=4, stages=2),
    many_fp32=Tile(blocks=4, columns=64, warps=8, stages=2),
)
