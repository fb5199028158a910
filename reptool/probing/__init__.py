"""Probing: modules whose code is not read are run in a sandbox, and their kernel is measured and tested."""
