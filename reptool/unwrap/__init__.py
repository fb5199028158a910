"""`deploy(unwrap=True)`: a layer takes the place of the wrapper that only hands on to it."""
