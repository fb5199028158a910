"""Run by `torchrun` on every process: train every block with DDP and with FSDP2, and save what came out.

torchrun --nproc-per-node 2 -m tests.training.workers DIRECTORY BLOCK ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.training.networks import batch, classifier, loss_of, optimizer_of

STEPS = 3


def train(wrapped: nn.Module, rank: int) -> None:
    """A few steps, each process on its own images."""
    optimizer = optimizer_of(wrapped)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(wrapped, batch(step, rank)).backward()
        optimizer.step()


def main() -> None:
    """Train and save every block named on the command line."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    directory = Path(sys.argv[1])
    for block in sys.argv[2:]:
        parallel = classifier(block)
        train(DistributedDataParallel(parallel), rank)
        if rank == 0:
            torch.save(parallel.state_dict(), directory / f"{block}-ddp.pt")
        dcp.save(parallel.state_dict(), checkpoint_id=directory / f"{block}-ddp")
        sharded = classifier(block)
        fully_shard(sharded[1], mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        train(sharded, rank)
        dcp.save(get_model_state_dict(sharded), checkpoint_id=directory / f"{block}-fsdp")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # everything is saved; gloo's threads were seen to abort an interpreter that was shutting down
