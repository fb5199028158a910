"""Modules that are measured instead of read."""
