"""Rewriting: methods written anew as Python source, whose constants are data; their guards; kernels as layers."""
