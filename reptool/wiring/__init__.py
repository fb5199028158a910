"""Wiring: other code that can reach the modules a surgery changes, and whether it uses them the same way."""

from reptool.wiring.other_code import Wiring as Wiring
