"""What other code may do with what a surgery changes: methods, flags and walks that reach it."""
