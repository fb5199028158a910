"""Which norms run before and after, which never do, and what a requirement says of those that are left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.errors import RequirementError
from tests.test_refusals import conv, images, net, one_by_one

BN = nn.BatchNorm2d


def with_a_head(self: Any, x: Tensor) -> Any:
    """An auxiliary head in training mode alone."""
    y = self.body(x)
    return (self.head(y), self.auxiliary(y)) if self.training else self.head(y)


def auxiliary(body: nn.Module) -> nn.Module:
    """GoogLeNet's kind of network."""
    return net(
        with_a_head, body=body, head=conv(4, 2, 1), auxiliary=nn.Sequential(nn.ReLU(), BN(4), nn.ReLU(), conv(4, 2, 1))
    ).eval()


@pytest.mark.parametrize("given", [False, True])
def test_norms_that_no_call_runs_are_unused_and_not_left(given: bool) -> None:
    model, x = auxiliary(nn.Sequential(conv(4, 4), BN(4), nn.ReLU())), images()
    deployed = reptool.deploy(model, x if given else None, require="no_batchnorm")
    report = reptool.report(deployed)
    assert (report.norms, report.norms_left, report.unused) == ((1, 0), [], ["auxiliary.1"])
    assert "1 norm that no call runs" in str(report)
    assert isinstance(deployed.auxiliary[1], BN)


def test_a_requirement_lists_every_norm_with_its_reason() -> None:
    layers = [layer for _ in range(12) for layer in (nn.ReLU(), BN(4))]
    with pytest.raises(RequirementError) as error:
        reptool.deploy(auxiliary(nn.Sequential(*layers, nn.ReLU())), require="no_batchnorm")
    lines = str(error.value).splitlines()
    assert lines[1] == "12 batch normalizations left:"
    assert len(lines) == 14
    for i, line in enumerate(lines[2:]):
        assert line.startswith(f"  body.{2 * i + 1}: no-layer: no layer is next to it: ReLU in front of it")
    assert "auxiliary" not in str(error.value)


def test_a_requirement_lists_every_refusal_and_all_that_was_not_followed() -> None:
    parts = [net(one_by_one, block=nn.Sequential(conv(4, 4), BN(4))) for _ in range(7)]
    with pytest.raises(RequirementError) as error:
        reptool.deploy(nn.Sequential(*parts).eval(), require=("all_traced", "no_refusals"))
    text = str(error.value)
    assert "7 modules that could not be followed:" in text
    for i in range(7):
        assert f"  {i}: it decides by the number of sum (tests/test_refusals.py:" in text
        assert f"  {i}.block.1: untraceable: {i}.forward (tests/test_refusals.py:" in text


def large_only(self: Any, x: Tensor) -> Tensor:
    """Another norm for large images."""
    return self.other(x) if x.shape[-1] > 100 else torch.relu(self.norm(self.conv(x)))


def with_a_mask(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Another norm for those who give a mask."""
    y = torch.relu(self.norm(self.conv(x)))
    return y if mask is None else self.other(y * mask)


def test_norms_that_another_answer_may_run_are_left_and_not_unused() -> None:
    parts = {"conv": conv(4, 4), "norm": BN(4), "other": BN(4)}
    large = reptool.explain(nn.Sequential(net(large_only, **parts)).eval(), images())
    assert (large.unused, large.norms_left) == ([], ["0.other"])
    (refusal,) = [r for r in large.refusals if r.nodes == ("0.other",)]
    assert "no call that was seen runs it, but 0.forward asks for the truth of gt" in refusal.sentence
    masked = net(with_a_mask, **parts).eval()
    bare, given = reptool.explain(masked), reptool.explain(masked, images())
    assert (bare.unused, bare.norms_left) == ([], ["other"])
    assert "'mask'" in str([r for r in bare.refusals if r.nodes == ("other",)])
    assert (given.unused, given.norms_left) == (["other"], [])
    both = reptool.explain(masked, (images(), torch.ones(1)))
    assert (both.unused, both.norms) == ([], (2, 1))


def norm_by_its_tensors(self: Any, x: Tensor) -> Tensor:
    """The norm is a function of a module's tensors; the module stays."""
    n = self.norm
    return torch.relu(F.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps))


def test_a_norm_whose_tensors_nobody_reads_any_more_has_gone() -> None:
    model = net(norm_by_its_tensors, conv=conv(4, 4), norm=BN(4)).eval()
    deployed = reptool.deploy(model, images(), require="no_batchnorm")
    assert reptool.report(deployed).norms == (1, 0)
    assert reptool.explain(model, exclude="norm").norms_left == ["norm"]


def test_norms_of_functions_are_counted_by_their_place() -> None:
    tensors = {"mean": nn.Parameter(torch.zeros(4)), "var": nn.Parameter(torch.ones(4))}
    folded = net(lambda self, x: F.batch_norm(self.conv(x), self.mean, self.var), conv=conv(4, 4), **tensors)
    left = net(lambda self, x: F.batch_norm(x.relu(), self.mean, self.var), **tensors)
    assert reptool.explain(folded.eval()).norms == (1, 0)
    report = reptool.explain(left.eval())
    assert (report.norms, report.norms_left) == ((1, 1), ["<root>: batch_norm"])
    assert [r.nodes for r in report.refusals] == [("<root>: batch_norm",)]


def by_data(self: Any, x: Tensor) -> Tensor:
    """Cannot be followed."""
    return self.norm(self.conv(x)) if float(x.sum()) > 0 else x  # type: ignore[no-any-return]


def test_norms_in_code_that_was_not_followed_may_run_and_are_named() -> None:
    model = nn.Sequential(net(by_data, conv=conv(4, 4), norm=BN(4))).eval()
    report = reptool.explain(model, images())
    assert (report.norms, report.norms_left, report.unused) == ((1, 1), ["0.norm"], [])
    (refusal,) = [r for r in report.refusals if r.nodes == ("0.norm",)]
    assert refusal.code is Code.UNTRACEABLE
    assert "0 could not be followed: it decides by the number of sum" in refusal.sentence
    alone = reptool.explain(net(by_data, conv=conv(4, 4), norm=BN(4)).eval(), images())
    assert alone.norms_left == ["norm"]


def test_norms_inside_of_what_torch_runs_as_a_whole_are_named() -> None:
    layer = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval()
    assert {r.nodes for r in reptool.explain(layer, torch.randn(1, 5, 4)).refusals} >= {("0.norm1",), ("0.norm2",)}
    scripted = torch.jit.script(nn.Sequential(conv(4, 4), BN(4)).eval())
    assert reptool.explain(nn.Sequential(scripted).eval()).norms_left == ["0.1"]
    alone = reptool.explain(nn.Sequential(nn.ReLU(), torch.jit.script(BN(4).eval())).eval())
    assert (alone.norms_left, [r.nodes for r in alone.refusals]) == (["1"], [("1",)])
    assert "BatchNorm2d is compiled by torch.jit.script" in alone.refusals[0].sentence


def test_one_norm_in_two_places_counts_once() -> None:
    norm = BN(4)
    model = nn.Sequential(nn.ReLU(), norm, nn.Sequential(nn.ReLU(), norm)).eval()
    report = reptool.explain(model)
    assert report.norms == (1, 1)
    assert report.norms_left == ["1"]
