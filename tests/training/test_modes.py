"""Every block under autocast, gradient checkpointing, torch.compile and weight averaging."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import reptool
from tests.sparse import sparse
from tests.training.networks import BLOCKS, batch, classifier, loss_of, optimizer_of

every_block = pytest.mark.parametrize("block", list(BLOCKS))
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_block
def test_bf16_autocast(block: str) -> None:
    model, data = classifier(block, torch.float32), batch(0, 0, torch.float32)
    optimizer = optimizer_of(model)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = model(data[0])
        loss = nn.functional.cross_entropy(found.float(), data[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found.dtype is torch.bfloat16
    assert losses[-1] < losses[0]
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in model.parameters())
    model.eval()
    torch.testing.assert_close(reptool.deploy(model)(data[0]), model(data[0]), rtol=1e-3, atol=1e-4)


@every_block
def test_gradient_checkpointing(block: str) -> None:
    model = classifier(block)
    if block == "dbb":  # it pads with running statistics, which a recomputed forward finds updated
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.0
    other, data = copy.deepcopy(model), batch(0, 0)
    loss_of(model, data).backward()

    def recomputed(x: torch.Tensor) -> torch.Tensor:
        y: Any = checkpoint(other[1], other[0](x), use_reentrant=False)
        for layer in other[2:]:
            y = layer(y)
        found: torch.Tensor = y
        return found

    loss_of(recomputed, data).backward()
    torch.testing.assert_close(gradients(other), gradients(model))


@pytest.mark.parametrize("block", sparse(BLOCKS, 4))
def test_compiled_without_graph_breaks(block: str) -> None:
    model = classifier(block)
    other, data = copy.deepcopy(model), batch(0, 0)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=block != "orthogonal-weight-norm")
    loss_of(compiled, data).backward()
    loss_of(model, data).backward()
    torch.testing.assert_close(gradients(other), gradients(model))
    torch.testing.assert_close(dict(other.named_buffers()), dict(model.named_buffers()))
    deployed = reptool.deploy(torch.compile(other.eval(), backend="aot_eager"))  # type: ignore[arg-type]
    torch.testing.assert_close(deployed(data[0]), other(data[0]))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile for the CPU needs a C++ compiler")
@pytest.mark.parametrize("block", ["refconv", "repvgg", "orepa"])
def test_compiled_by_inductor(block: str) -> None:
    model = classifier(block, torch.float32)
    other, data = copy.deepcopy(model), batch(0, 0, torch.float32)
    loss_of(torch.compile(other), data).backward()
    loss_of(model, data).backward()
    torch.testing.assert_close(gradients(other), gradients(model), rtol=1e-3, atol=1e-5)


@every_block
def test_averaged_weights(block: str) -> None:
    model = classifier(block)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = optimizer_of(model)
    sums = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, batch(step, 0)).backward()
        optimizer.step()
        average.update_parameters(model)
        for name, p in model.named_parameters():
            sums[name] = p.detach().clone() if step == 0 else 0.5 * sums[name] + 0.5 * p.detach()
    found = {name.removeprefix("module."): p.detach() for name, p in average.named_parameters()}
    torch.testing.assert_close(found, sums)
    images = batch(9, 0)[0]
    average.eval()
    torch.testing.assert_close(reptool.deploy(average)(images), average(images))
