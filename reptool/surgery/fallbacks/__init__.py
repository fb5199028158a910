"""Fallbacks: methods that are specialized, and what is kept so that they still run as they were."""
