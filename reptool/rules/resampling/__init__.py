"""Rewrites that move resampling to where it costs least."""
