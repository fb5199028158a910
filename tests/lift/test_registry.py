"""The registry: every class and function is looked up in one table, and what is most derived comes first."""

from __future__ import annotations

from torch import nn

from reptool.lift import lift
from reptool.lift.layers.convolutions import conv_module
from reptool.lift.layers.transposed import transposed_module
from reptool.lift.registry import FUNCTIONS, MODULES, Entry, module_entries, own_modules


def test_torchs_own_classes_are_in_it() -> None:
    assert lift is not None
    assert module_entries(nn.Conv2d, ())[0].read is conv_module
    assert module_entries(nn.ConvTranspose2d, ())[0].read is transposed_module
    assert module_entries(nn.ReLU, ()) == []
    assert {"conv2d", "linear", "batch_norm", "cat"} <= FUNCTIONS.keys()


def test_entries_of_users_come_first_where_their_rule_is_on() -> None:
    class Mine(nn.Conv2d):
        """A class of a user's."""

    entry = Entry(lambda node, module, ctx: None, "mine")
    MODULES[Mine] = [entry]
    try:
        assert [e.rule for e in module_entries(Mine, {"mine"})] == ["mine", ""]
        assert [e.rule for e in module_entries(Mine, ())] == [""]
        model = nn.Sequential(Mine(1, 1, 1), nn.Sequential(Mine(1, 1, 1)))
        assert own_modules(model, {"mine"}) == ["0", "1.0"]
        assert own_modules(model, ()) == []
    finally:
        del MODULES[Mine]
