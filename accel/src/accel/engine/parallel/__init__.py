"""Tensor parallelism of rollouts: what ranks compute together, and how they speak of it."""
