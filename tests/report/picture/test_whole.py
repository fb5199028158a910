"""The page is whole in itself, says what the report says, and works in a browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.plan.rules import RULES
from reptool.report.data import Report
from reptool.report.picture.whole import formula, whole_page

BROWSER = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
PROBE = """<script>
const out = {wide: document.documentElement.scrollWidth - window.innerWidth, silent: [], overlaps: 0};
for (const box of document.querySelectorAll(".box, .regions button")) {
  box.focus();
  if (box.tagName === "BUTTON") box.click();
  else box.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  const said = told.textContent !== "Choose a region or an operation.";
  if (document.activeElement !== box || !said) out.silent.push(box.textContent);
}
for (const picture of document.querySelectorAll("svg")) {
  const all = [...picture.querySelectorAll("rect")].map(r => r.getBoundingClientRect());
  for (let i = 0; i < all.length; i++) for (let j = i + 1; j < all.length; j++)
    if (all[i].left < all[j].right && all[j].left < all[i].right
        && all[i].top < all[j].bottom && all[j].top < all[i].bottom) out.overlaps++;
}
search.value = "branches.dense";
search.dispatchEvent(new Event("input"));
out.found = count.textContent;
out.dim = document.querySelectorAll(".dim").length;
out.asked = performance.getEntriesByType("resource").length;
document.title = JSON.stringify(out);
</script></body>"""


def report() -> Report:
    net = nn.Sequential(RepVGGBlock(3, 8), DiverseBranchBlock(8, 8), nn.GELU(), nn.BatchNorm2d(8))
    return reptool.report(reptool.deploy(net.eval(), torch.randn(1, 3, 8, 8)))


def test_the_page_asks_no_network_and_says_everything() -> None:
    made = report()
    page = made.to_html()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"https?:|src=|url\(|@import|<link", page)
    for region in made.regions:
        assert page.count(region.layer) >= 3
    data = json.loads(re.search(r"<script id=data type=application/json>(.*?)</script>", page)[1])  # type: ignore[index]
    assert [d["layer"] for d in data] == [r.layer for r in made.regions]
    assert any("sum_i W_i" in f for d in data for f in d["formulas"])
    assert "no-layer" in page


def test_names_are_no_markup() -> None:
    made = report()
    made.model = "</script><b>"
    made.regions[0].layer = "</script><b>"
    made.graphs[0].before[0].place = "</script><b>"
    assert whole_page(made).count("</script>") == 2
    assert "<b></" not in whole_page(made).replace("<p><b>", "")


def test_a_report_without_graphs_is_its_tables() -> None:
    page = Report("Net").to_html()
    assert "<svg" not in page
    assert "<script" not in page
    assert "<table>" in page


def test_pictures_are_no_part_of_the_data() -> None:
    assert "graphs" not in report().to_dict()


def test_paradigms_have_their_formulas_and_other_rules_none() -> None:
    assert "scale W" in formula("conv_bn")
    assert formula("weights") == formula("../x") == formula("") == ""
    assert sum(bool(formula(r)) for r in RULES) >= 8


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(width: int, tmp_path: Path) -> None:
    assert BROWSER is not None
    page = tmp_path / "page.html"
    frame = tmp_path / "frame.html"
    page.write_text(report().to_html().replace("</body>", PROBE), "utf-8")
    inner = "f.contentDocument.title"  # a window of a browser has a least width; a frame has none
    frame.write_text(
        f'<iframe id=f src=page.html width={width} height=800 style="border:0"></iframe><p id=o></p>'
        f"<script>f.onload = () => o.textContent = {inner}</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--window-size=1400,900"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(re.search(r"<p id=\"o\">(.*?)</p>", shown)[1]))  # type: ignore[index]
    assert found["wide"] <= 0
    assert found["silent"] == []
    assert found["overlaps"] == 0
    assert re.fullmatch(r"[1-9]\d* found", found["found"])
    assert found["dim"] > 0
    assert found["asked"] == 0
