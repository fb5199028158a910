"""From a model to the plan of what is done to it: its modules traced one by one, planned, checked, planned again."""
