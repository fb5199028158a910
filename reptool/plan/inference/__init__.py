"""What is known of the values of a trace before any of them is lifted: constants, ranks, channels, dtypes."""
