"""What all ranks must agree on before a weight moves: a fault of one, or a difference, is an error on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from executor.conformance import odd_ones
from executor.layout import LayerLayout, plan_layouts
from executor.moe_layers import layer_numbers
from executor.transport import Transport
from planner import Plan
from topologies import BadInput


def layouts_in_order(names: Sequence[str], transport: Transport, plan: Plan) -> list[LayerLayout]:
    """Return this rank's layouts under a plan, in the order of the layers' names.

    Raises BadInput where the plan is for another number of ranks, or for other layers.
    """
    if plan.num_ranks != transport.size:
        raise BadInput(
            f"the plan is for {plan.num_ranks} ranks ({plan.cluster.name}), the ep dimension has {transport.size}"
        )
    of_layer = plan_layouts(plan, transport.rank)
    return [of_layer[number] for number in layer_numbers(names, plan)]


def check_told(problem_R: Sequence[str], digests_R: Sequence[Sequence[str]]) -> None:
    """Raise BadInput where one of the R ranks has told of a problem, or has another plan than most.

    The same on every rank that heard the same. An empty problem is none.
    """
    for rank, problem in enumerate(problem_R):
        if problem:
            raise BadInput(f"rank {rank}: {problem}")
    if odd := odd_ones(digests_R):
        raise BadInput(f"rank {', '.join(map(str, odd))}: its plan is not that of the other ranks")


def check_same(said_R: Sequence[str]) -> None:
    """Raise BadInput where one of the R ranks says that it has something else than most; the same on every rank."""
    odd = odd_ones(said_R)
    if odd:
        usual = next(said for rank, said in enumerate(said_R) if rank not in odd)
        raise BadInput(f"rank {odd[0]} has {said_R[odd[0]]}, most ranks have {usual}")


def check_hosts(plan: Plan, host_of_rank: Sequence[str]) -> None:
    """Refuse a job whose ranks share hosts in another way than the plan's; a rehearsal on one host is let through."""
    planned = [entry.host for entry in plan.cluster.ranks]
    if len(set(host_of_rank)) == 1:
        return
    first_of: dict[str, int] = {}
    for rank, (host, number) in enumerate(zip(host_of_rank, planned, strict=True)):
        first = first_of.setdefault(host, rank)
        if planned[first] != number:
            raise BadInput(
                f"ranks {first} and {rank} both run on {host}, the plan has them on hosts {planned[first]} and {number}"
            )
    if len(set(host_of_rank)) != len(set(planned)):
        raise BadInput(f"the job runs on {len(set(host_of_rank))} hosts, the plan is for {len(set(planned))}")
