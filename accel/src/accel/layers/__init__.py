"""Layers: torch modules built from ops."""

from accel.layers.base import OpLayer, explained
from accel.layers.cross_entropy import TiledCrossEntropy, tiled_cross_entropy

__all__ = ["OpLayer", "TiledCrossEntropy", "explained", "tiled_cross_entropy"]
