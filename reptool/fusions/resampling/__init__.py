"""Resampling and convolutions: what is computed at the resolution where it costs least."""
