"""Each operation is a box that can be reached by keyboard, and no text becomes markup."""

from __future__ import annotations

import re
from xml.dom.minidom import parseString

from reptool.report.picture.graph import Operation
from reptool.report.picture.svg import hue, svg


def operations() -> list[Operation]:
    return [
        Operation("input", "x"),
        Operation("Conv2d", "a.very.long.path.to.a.layer.conv", [0], region=1),
        Operation("<b>", 'quoted "and" & <angled>', [1], refused="no-layer: <nothing> is next to it"),
        Operation("add", "add", [0, 2]),
    ]


def test_boxes_arrows_and_names() -> None:
    shown = svg(operations(), "before")
    assert shown.count('role="button"') == shown.count('tabindex="0"') == 4
    assert shown.count("<path") == 4
    assert 'data-region="1"' in shown
    assert "region 2" in shown
    assert re.search(r">…[\w.]+\.a\.layer\.conv<", shown)
    assert "left: no-layer: &lt;nothing&gt;" in shown
    assert "<angled>" not in shown
    assert len(parseString(shown).getElementsByTagName("rect")) == 4


def test_neighbours_have_colours_that_differ() -> None:
    assert all(min((hue(i) - hue(i + 1)) % 360, (hue(i + 1) - hue(i)) % 360) > 90 for i in range(100))
