"""Verification: regions, methods that were written anew, and the whole model, against the original."""
