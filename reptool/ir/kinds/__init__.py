"""Kinds of values: what casts to them, and what code asks of them."""
