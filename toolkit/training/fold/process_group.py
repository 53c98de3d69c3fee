"""Processes that train one fold together, each on its share of every batch: what they tell each other, and when."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import TrainingError

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(hours=1)  # the first process judges and exports while the others wait; one that died is noticed at once
BUCKET = 16_000_000  # numbers that are summed over the processes at a time, so that the gradients are not held twice


class PeerError(TrainingError):
    """Another process of the team is gone; what ended it is the news, not this."""


@dataclass(frozen=True)
class Team:
    """One process (`rank`) of the `size` that train a fold together; the first one judges, writes and exports.

    Everything is exchanged between the local backward passes and the optimiser's step, once per step, so that a process may
    repeat its own passes in smaller parts while the others wait.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that judges, writes and exports."""
        return self.rank == 0

    @contextmanager
    def leading(self) -> Iterator[None]:
        """The first process runs the block before the others do, which find what it left on disk.

        Raises:
            PeerError: a process is gone.
        """
        if not self.leads:
            self.least(0)
        yield
        if self.leads:
            self.least(0)

    def least(self, value: int) -> int:
        """The smallest of the processes' values.

        Raises:
            PeerError: a process is gone.
        """
        return -self._largest([-value])[0]

    def told(self, value: int) -> int:
        """What the first process says, whatever this one's value is.

        Raises:
            PeerError: a process is gone.
        """
        return self._largest([value if self.leads else -(2**62)])[0]

    def align(self, model: torch.nn.Module) -> None:
        """Give a model the weights and statistics of the first process.

        Raises:
            PeerError: a process is gone.
        """
        import torch.distributed as dist

        if self.size > 1:
            with _explained():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def step(self, model: torch.nn.Module, loss: torch.Tensor, micro: int) -> tuple[torch.Tensor, int]:
        """Sum gradients and loss over the processes; returns the loss, and the smallest number of images per pass.

        Each process has weighed its gradients and loss with its share of the batch. BatchNorm's running statistics become
        their mean over the processes: like parts of a batch, shares are normalised each by itself. (Synchronised BatchNorm
        would have the processes wait for each other inside a pass, which one of them may have to repeat.)

        Raises:
            PeerError: a process is gone.
        """
        import torch

        if self.size == 1:
            return loss, micro
        parameters = list(model.parameters())
        smallest, *learn = self._largest([-micro, *(int(one.grad is not None) for one in parameters)])
        statistics = list(_statistics(model))
        with torch.no_grad():
            for statistic in statistics:
                statistic.div_(self.size)
            for one, somewhere in zip(parameters, learn, strict=True):
                if somewhere and one.grad is None:  # it took part in another process's share only
                    one.grad = torch.zeros_like(one)
            loss = loss.clone().reshape(1)
            self._sum([loss, *statistics, *(one.grad for one in parameters if one.grad is not None)])
        return loss[0], -smallest

    def _largest(self, values: Sequence[int]) -> list[int]:
        """The largest of the processes' values, place by place; exchanged by the CPUs, so that no GPU is waited for."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return list(values)
        votes = torch.tensor(values, dtype=torch.int64)
        with _explained():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        found: list[int] = votes.tolist()
        return found

    def _sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over the processes."""
        import torch
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _explained():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = Team()


@contextmanager
def together(rank: int, size: int, meeting: Path, device: str) -> Iterator[Team]:
    """This process as one of a team of `size` on this machine, who find each other by the file `meeting`, made by the first.

    They speak NCCL on CUDA (each with one GPU that it sees as its only one), gloo on a CPU, over the loopback interface.

    Raises:
        PeerError: the others do not come.
    """
    import torch.distributed as dist

    if size == 1:
        yield ALONE
        return
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with _explained():
        dist.init_process_group(backend, init_method=meeting.absolute().as_uri(), rank=rank, world_size=size, timeout=PATIENCE)
    yield Team(rank, size)
    dist.destroy_process_group()  # not after an error: it would wait for processes that may be gone


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what torch says of a lost connection into an error that is told from others."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError(f"the processes lost each other: {str(error).splitlines()[0]}") from error


def _statistics(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """BatchNorm's running means and variances, where they move."""
    from torch.nn.modules.batchnorm import _NormBase

    for module in model.modules():
        if isinstance(module, _NormBase) and module.training:
            yield from (one for one in (module.running_mean, module.running_var) if one is not None)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in rows of one dtype and at most BUCKET numbers (or a single tensor), in the same way in every process."""
    bucket: list[torch.Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        if bucket and (tensor.dtype != bucket[0].dtype or sum(one.numel() for one in bucket) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
