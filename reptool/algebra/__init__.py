"""Kernels, and the laws under which they are added, concatenated, composed and embedded."""
