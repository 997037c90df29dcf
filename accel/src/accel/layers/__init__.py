"""Layers: torch modules built from ops."""
