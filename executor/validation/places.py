"""Where a validation runs: the lab, this machine, or the job that this process is a rank of."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from executor.launch import RankPool
from executor.validation.validate import LinkCounters, Ranks
from planner import Cluster


@dataclass(frozen=True, eq=False)
class Site:
    """A place with ranks.

    Attributes:
        ranks: run functions on all ranks.
        counters: of bytes on links; None outside a lab.
        scale: bandwidth here over the graph's.
        where: in words.
        device: of the rows.
        real_links: whether the ranks are joined by the links of the graph (in the lab, or on several hosts).
        reports: whether this process is to say what came out (rank 0 of a job).

    """

    ranks: Ranks
    counters: LinkCounters | None
    scale: float
    where: str
    device: str
    real_links: bool
    reports: bool = True


class MemberRanks:
    """The ranks of a job that runs this same program on all of them: every rank calls `run` alike."""

    def run(self, target: Callable[..., Any], *args: Any, timeout_s: float) -> list[Any]:  # noqa: ARG002 - the job's own timeout holds
        """Call the function here, as the other ranks do there, and gather the results."""
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, target(dist.get_rank(), dist.get_world_size(), *args))
        return results


def is_member() -> bool:
    """Return whether torchrun, or something like it, started this process as a rank."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)


@contextmanager
def lab_site(cluster: Cluster, nic_mbit: float | None, policy: str) -> Iterator[Site]:
    """Make the lab of a cluster, with a process a rank in it; both are gone afterwards."""
    from executor.lab import default_scale, open_lab, scale_for_nic  # noqa: PLC0415 - needs pyroute2

    scale = default_scale(cluster) if nic_mbit is None else scale_for_nic(cluster, nic_mbit)
    with open_lab(cluster, scale=scale, policy=policy) as lab, RankPool(cluster.num_ranks, places=lab.places) as pool:
        yield Site(pool, lab, scale, "lab of network namespaces on one machine", "cpu", real_links=True)


@contextmanager
def local_site(num_ranks: int) -> Iterator[Site]:
    """Start the ranks on this machine, over its loopback interface."""
    with RankPool(num_ranks) as pool:
        yield Site(pool, None, 1.0, "ranks on one machine, whose links are not the graph's", "cpu", real_links=False)


@contextmanager
def member_site() -> Iterator[Site]:
    """Join the job that this process is a rank of: NCCL on GPUs, else gloo."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        hosts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(hosts, socket.gethostname())
        where = f"job of {len(hosts)} ranks on {len(set(hosts))} hosts, {'NCCL' if on_gpu else 'gloo'}"
        device, real = "cuda" if on_gpu else "cpu", on_gpu or len(set(hosts)) > 1
        yield Site(MemberRanks(), None, 1.0, where, device, real_links=real, reports=dist.get_rank() == 0)
    finally:
        dist.destroy_process_group()
