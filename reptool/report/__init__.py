"""The report: as data, as text, as a page; what still runs and why."""
