"""Placing: where the layer of a region goes, and whether everything there may change."""
