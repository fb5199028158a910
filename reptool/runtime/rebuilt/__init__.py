"""Deployed models as their own classes build and read them."""
