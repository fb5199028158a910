"""Verification: regions, norms that moved, written methods and the whole model, against the original."""
