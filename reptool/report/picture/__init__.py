"""The report as one self-contained page: the graph before and after side by side, regions linked, refusals shown."""
