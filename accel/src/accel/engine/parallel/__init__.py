"""Tensor parallelism of rollouts.

share.py   what of each product a rank computes, and why so
ranks.py   which they are, and what passes between them
"""
