"""Shapes, dtypes and constants of a trace."""
