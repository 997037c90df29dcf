"""Tuning of the Triton kernels, per architecture. **Not run on hardware**: derived, not measured.

Few rows wait for the weight: many small tiles keep every multiprocessor reading, and more stages
keep more of it on the way (some 25 KB each on Hopper: bandwidth times latency). Many rows share it:
a tile of 128 by 128 reads as much from shared memory as its products take, with four warps that
have 32 columns each; eight would read x twice as often. No tile takes more shared memory than the
smallest GPU of its line has (99 KiB on sm_86, sm_89 and sm_120; 64 KiB on gfx942).
"""

from __future__ import annotations

from accel.triton_kernels.tuning import Tile, Tuning

TUNINGS = {
    "sm_80": Tuning(
        few=Tile(blocks=1, columns=32, warps=4, stages=5),
        many=Tile(blocks=8, columns=128, warps=4, stages=3),
        few_fp32=Tile(blocks=1, columns=32, warps=4, stages=4),
        many_fp32=Tile(blocks=4, columns=64, warps=4, stages=3),
    ),
    "sm_90": Tuning(
        few=Tile(blocks=1, columns=32, warps=4, stages=6),
        many=Tile(blocks=8, columns=128, warps=4, stages=3),
        few_fp32=Tile(blocks=1, columns=32, warps=4, stages=5),
        many_fp32=Tile(blocks=4, columns=64, warps=4, stages=3),
    ),
    "sm_100": Tuning(
        few=Tile(blocks=1, columns=32, warps=4, stages=8),
        many=Tile(blocks=8, columns=128, warps=4, stages=3),
        few_fp32=Tile(blocks=1, columns=32, warps=4, stages=6),
        many_fp32=Tile(blocks=4, columns=64, warps=4, stages=3),
    ),
    "gfx942": Tuning(
        few=Tile(blocks=1, columns=32, warps=2, stages=2),
        many=Tile(blocks=8, columns=128, warps=4, stages=2),
        few_fp32=Tile(blocks=1, columns=32, warps=2, stages=2),
        many_fp32=Tile(blocks=4, columns=64, warps=4, stages=2),
    ),
}


def of(architecture: str) -> Tuning:
    """The tuning of an architecture: its own, or that of the last one before it; any AMD GPU has
    gfx942's."""
    vendor, _, number = architecture.partition("_")
    if vendor != "sm":
        return TUNINGS["gfx942"]
    known = [int(name.removeprefix("sm_")) for name in TUNINGS if name.startswith("sm_")]
    older = [n for n in known if n <= int(number)]
    return TUNINGS[f"sm_{max(older, default=min(known))}"]
