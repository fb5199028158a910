"""What moves, joins or cuts axes and channels and computes nothing."""
