"""embedding in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles.summed import Summed

Ids = NDArray[np.integer]


def embedding(ids: Ids, w: Array) -> Array:
    return w[ids]


def embedding_gradient(grad: Array, ids: Ids, w: Array) -> tuple[Summed | None, ...]:
    total, squares = np.zeros(w.shape), np.zeros(w.shape)
    np.add.at(total, ids, grad)
    np.add.at(squares, ids, grad**2)
    return None, Summed(total, np.sqrt(squares))
