"""Two processes train every block; one process that emulates both agrees, loads the result and deploys it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import reptool
from tests.training.networks import BLOCKS, batch, classifier, loss_of, optimizer_of
from tests.training.workers import STEPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
    pytest.mark.xdist_group("distributed"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every block, written by two processes."""
    found = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    run = subprocess.run(
        [*command, "-m", "tests.training.workers", str(found), *BLOCKS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return found


def emulated(block: str, shares_buffers: bool) -> list[nn.Module]:
    """What the ranks hold after the same steps, by one process with a replica for every rank."""
    replicas: list[nn.Module] = [classifier(block) for _ in range(2)]
    optimizers = [optimizer_of(replica) for replica in replicas]
    for step in range(STEPS):
        if shares_buffers:
            for first, second in zip(*(replica.buffers() for replica in replicas), strict=True):
                second.copy_(first)
        for rank, replica in enumerate(replicas):
            replica.zero_grad()
            loss_of(replica, batch(step, rank)).backward()
        for pair in zip(*(replica.parameters() for replica in replicas), strict=True):
            grads = [p.grad for p in pair if p.grad is not None]
            if grads:
                mean = torch.stack(grads).mean(0)
                for parameter in pair:
                    parameter.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    return replicas


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("block", list(BLOCKS))
def test_agrees_loads_and_deploys(block: str, way: str, directory: Path) -> None:
    replicas = emulated(block, shares_buffers=way == "ddp")
    before, loaded = classifier(block), classifier(block)
    state = loaded.state_dict()
    dcp.load(state, checkpoint_id=directory / f"{block}-{way}", no_dist=True)
    loaded.load_state_dict(state)
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(dict(loaded.named_parameters()), dict(replicas[0].named_parameters()), **close)
    for name, buffer in loaded.named_buffers():  # each is written by one of the ranks, which differ
        assert any(torch.allclose(buffer, replica.get_buffer(name), **close) for replica in replicas), name
    if way == "ddp":
        first = torch.load(directory / f"{block}-ddp.pt")
        torch.testing.assert_close(dict(first), dict(replicas[0].state_dict()), **close)
    trained = {name for name, p in before.named_parameters() if p.requires_grad}
    moved = {n for n, p in loaded.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved == trained
    images = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    plain = reptool.deploy(loaded.eval())
    torch.testing.assert_close(plain(images), loaded(images), rtol=1e-8, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm runs on a GPU only")
def test_synchronized_norms() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier("repvgg", torch.float32)).cuda().eval()
    images = torch.randn(2, 2, 9, 9, device="cuda")
    torch.testing.assert_close(reptool.deploy(model)(images), model(images), rtol=1e-3, atol=1e-4)
