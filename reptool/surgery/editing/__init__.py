"""Editing: what is left out, what is absorbed, and which methods are written anew."""
