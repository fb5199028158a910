"""The report as text, Markdown and HTML."""

from __future__ import annotations

import pickle
import re
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import reptool
from reptool import Code, Refusal
from reptool.report.data import Report
from reptool.report.fields import FusedRegion, reasons
from reptool.report.text import MOST_PLACES, folded
from tests.test_refusals import conv

LONG = "backbone.stages.2.blocks.14.token_mixer.reparametrized_branches.large_kernel.conv"


def report() -> Report:
    """A report with everything in it."""
    made = Report("Net", layers=(12, 3), norms=(9, 2), norms_left=["a.norm", "b.norm"], parameters=(12_000, 3_000))
    kind = "Conv2d(64, 64, 3x3, stride=(2, 2), padding=(1, 1))"
    for path in (LONG, "stem.conv", "head (functional)"):
        rules = ["branch_add", "conv_bn", "kernel_size"]
        made.regions.append(FusedRegion(path, kind, [path], rules, (2_000_000, 1_500), (9.0, 3.0), 1e-16, 2e-8, 4))
    made.refusals = [Refusal(Code.NO_LAYER, "nothing is next to it").at(f"{LONG[:-5]}.{i}") for i in range(30)]
    sentence = f"'{LONG}', in front of it, is also read by add (timm/models/some_model.py:1234)"
    made.refusals.append(Refusal(Code.READ_ELSEWHERE, sentence).at("a.norm", lines=("timm/models/some_model.py:77",)))
    made.refusals.append(Refusal(Code.NO_LAYER, "another").at("a: mul"))
    made.multiplications, made.unused = (5_000_000, 2_000_000), ["auxiliary.norm", "auxiliary.other"]
    made.changing, made.untraced = ["observer.min", "observer.max"], {"": "it raises", "part": "it is odd | *very*"}
    made.impulses, made.fallbacks = {"blur": "named by the caller"}, {"part.forward": ["x=(2, 3)"]}
    made.kept, made.model_error, made.model_error_float64 = (1000, 4000), (1e-7, 2e-7), 1e-15
    return made


def text(made: Report, width: int) -> str:
    """What a console of this width shows."""
    console = Console(width=width, file=StringIO(), record=True)
    console.print(made)
    return console.export_text()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 240])
def test_text_is_as_wide_as_the_console_and_cuts_no_path_in_two(width: int) -> None:
    shown = text(report(), width)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    table = any(line.count("│") == 7 and f" {LONG} " in line for line in lines)
    assert table == (width == 240), "sentences where a table is too wide"
    for path in (LONG, f"{LONG[:-5]}.7", "stem.conv", "auxiliary.norm", "a.norm", "timm/models/some_model.py:77"):
        assert whole(path, lines) or (len(path) > width - 24 and folded_at_dots(path, lines)), (path, width)


def whole(path: str, lines: list[str]) -> bool:
    """Whether a path stands in one line."""
    return any(re.search(rf"(?<![\w.]){re.escape(path)}(?![\w])", line) for line in lines)


def folded_at_dots(path: str, lines: list[str]) -> bool:
    """Whether it is broken behind its dots alone."""
    pieces = [re.escape(p) for p in re.split(r"(?<=[./])", path)]
    return re.search(r"[\s│]*".join(pieces), "\n".join(lines)) is not None


def test_refusals_are_grouped_by_code_and_sentence_with_counts() -> None:
    found = reasons(report().refusals)
    assert [(r.code, r.count) for r in found] == [(Code.NO_LAYER, 30), (Code.NO_LAYER, 1), (Code.READ_ELSEWHERE, 1)]
    shown = text(report(), 200)
    assert "32 sites left as they are" in shown
    assert shown.count("no-layer: nothing is next to it (30 times)") == 1
    assert f"and {30 - MOST_PLACES} more" in shown
    twice = [Refusal(Code.SHARED, "twice", ("a",)), Refusal(Code.SHARED, "twice", ("a",))]
    assert reasons(twice)[0].places == {"a": 2}
    assert "a (2 times)" in text(Report("Net", refusals=twice), 80)


def test_what_does_not_fit_into_tables_is_said_in_sentences() -> None:
    shown = text(report(), 200)
    for words in (
        "2 norms that no call runs: auxiliary.norm, auxiliary.other",
        "the model itself changes, in eval mode: 'observer' (min, max)",
        "could not follow the model itself: it raises",
        "blur: named by the caller",
        "part.forward is specialized for x=(2, 3)",
        "whole model against float64: deployed 1.00e-07, original 2.00e-07",
        "the output depends on rounding",
        "weights kept for fallbacks",
        "multiplications on example_inputs",
        "2 M -> 1,500",
    ):
        assert words in shown, words


def test_the_short_form_is_one_line() -> None:
    assert repr(report()) == "<Report on Net: 3 regions fused, 32 sites left, batch normalizations 9 -> 2>"


def test_a_report_of_an_earlier_release_is_read() -> None:
    made = pickle.loads(pickle.dumps(report()))
    assert made == report()
    state = {k: v for k, v in vars(report()).items() if k not in ("unused", "seconds", "norms_left", "multiplications")}
    old = Report.__new__(Report)
    old.__setstate__(state)
    assert (old.unused, old.seconds, old.multiplications) == ([], {}, None)
    assert "3 regions fused" in str(old)


def test_str_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (60, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert max(map(len, str(report()).splitlines())) <= width
    assert whole(LONG, str(report()).splitlines())


def test_markdown_is_a_table_for_each_part_and_no_text_becomes_markup() -> None:
    shown = report().to_markdown()
    lines = shown.splitlines()
    assert lines[0] == "### reptool: Net"
    assert f"| `{LONG}` |" in shown
    assert "| batch normalizations | 9 | 2 |" in lines
    assert "- could not follow part: it is odd \\| \\*very\\*" in lines
    for line in lines:
        if line.startswith("|"):
            assert line.endswith("|")
            columns = len(re.findall(r"(?<!\\)\|", line)) - 1
            assert columns in (3, 4, 6), line
    assert sum(line.startswith("| no-layer | 30 |") for line in lines) == 1


def test_html_is_escaped_and_complete() -> None:
    made = report()
    made.untraced["<script>"] = "a & b"
    shown = made._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;: a &amp; b" in shown
    assert shown.count("<table>") == shown.count("</table>") == 3
    assert LONG in shown.replace("<wbr>", "")
    assert shown.startswith("<div>")
    assert shown.endswith("</div>")


def test_a_report_of_nothing_is_short() -> None:
    made = reptool.explain(nn.Sequential(nn.ReLU()).eval(), torch.randn(1, 3))
    assert "fused" not in str(made)
    assert made.to_markdown().count("|") == 3 * 4 * 2 - 4 + 4 * 2 - 4
    assert "<ul>" not in made._repr_html_()


def test_words_are_kept_and_long_ones_folded_behind_dots_and_slashes() -> None:
    assert folded("a short line", 40) == ["a short line"]
    assert folded("one two three", 8) == ["one two", "three"]
    assert folded("features.denseblock1.conv", 15) == ["features.", "denseblock1.", "conv"]
    assert folded("timm/models/x.py:12 and more", 12, "  ") == ["  timm/", "  models/", "  x.py:12", "  and more"]
    assert folded("first second third", 12, "", "    ") == ["first second", "    third"]
    assert folded("", 10) == []


def test_a_real_report_reads_well_at_any_width() -> None:
    layers = [
        layer for _ in range(5) for layer in (conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.GELU())
    ]
    made = reptool.report(reptool.deploy(nn.Sequential(*layers).eval(), torch.randn(2, 4, 8, 8)))
    for width in (40, 80, 120):
        assert max(map(len, text(made, width).splitlines())) <= width
    assert "no-layer: no layer is next to it: ReLU in front of it, GELU behind it (5 times)" in text(made, 120)
    assert "    3, 8, 13, 18, 23" in text(made, 120)


def test_a_small_change_that_a_narrow_dtype_swallows_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval().bfloat16()
    made = reptool.report(reptool.deploy(model))
    exact = reptool.report(reptool.deploy(model.float()))
    assert made.regions[0].lost is not None
    assert made.regions[0].lost > 0.01 > (exact.regions[0].lost or 1.0)
    assert "of what was folded into the weight in 0" in str(made)
    assert "of what was folded" not in str(exact)


def test_a_change_that_a_dtype_keeps_is_measured_against_the_change_alone() -> None:
    layer = nn.Conv2d(3, 8, 3).eval()
    norm = nn.BatchNorm2d(8).eval()
    norm.weight.data.fill_(3.0)
    region = reptool.report(reptool.deploy(nn.Sequential(layer, norm).eval().bfloat16())).regions[0]
    own, scale = layer.weight.detach().double(), 3.0 / (1 + norm.eps) ** 0.5
    wanted = (own * scale).bfloat16().double() - own * scale
    assert region.lost == pytest.approx(float(wanted.norm() / (own * (scale - 1)).norm()), rel=0.05)
