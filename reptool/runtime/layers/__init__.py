"""Layers that no class of torch holds."""
