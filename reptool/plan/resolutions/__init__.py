"""Values of several resolutions that one layer reads."""
