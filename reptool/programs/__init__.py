"""Programs without Python code: exported graphs and files are planned like a model and written as what they were."""
