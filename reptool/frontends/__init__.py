"""The caller's models and inputs: as arguments and placeholders, or an error that says what to give instead."""
