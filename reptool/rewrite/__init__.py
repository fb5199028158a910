"""Rewriting: a method of the user's written anew as Python source, whose constants are data and never printed text."""
