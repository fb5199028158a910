"""Layers with a weight: convolutions, transposed and deformable ones, linear layers."""
