"""The demonstration behind `make demo`: train, collapse, check, export, compare.

Run it as `python -m reptool.demo`; `--model timm:repvgg_a0` does the same for somebody else's model.
"""
