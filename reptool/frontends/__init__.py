"""What is handed in: models and inputs, and what to hand in instead."""
