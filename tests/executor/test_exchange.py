"""Every exchange on gloo ranks, with any placement, is the dense layer: output and every gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from executor.exchange import Exchange, local_exchange, make_exchange
from executor.transport import Transport
from planner.exact_rows import exact_rows, slots_of_rank
from planner.placement import REPLICA_CHOICES
from planner.timing import EXCHANGES
from tests.executor.layers import Answer, Case, dense_answers, experts_of, layout_of, placement_of, relative, step_of
from tests.executor.ranks import on_ranks

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def one_layer(
    exchange: Exchange, case: Case, dtype: torch.dtype, rank: int, device: str = "cpu"
) -> tuple[Answer, list[int]]:
    """Run forward and backward; return this rank's answer, its experts' gradients in slots, and the slots' experts."""
    step, logical = step_of(case, dtype, device), exchange.layout.my_experts
    experts = experts_of(step, logical)
    x, weights = step.x[rank].clone().requires_grad_(), step.weights[rank].clone().requires_grad_()
    dispatched = exchange.dispatch(x, weights, step.ids[rank])
    y = exchange.combine(experts(dispatched.x_NH, dispatched.rows), dispatched)
    y.backward(step.grad[rank])
    grads = [x.grad, weights.grad, experts.gate_up.grad, experts.down.grad]
    assert all(grad is not None for grad in grads)
    return Answer(y.detach(), *(grad for grad in grads if grad is not None)), logical


def run_cases(rank: int, _size: int, cases: list[Case], dtype: torch.dtype, device: str = "cpu") -> list[str]:
    """Return what is wrong: case, exchange, tensor, error."""
    group, wrong = dist.group.WORLD, []
    for case in cases:
        wanted = dense_answers(step_of(case, dtype, device))
        for name in EXCHANGES:
            exchange = make_exchange(name, layout_of(case, rank), Transport(group))
            found, logical = one_layer(exchange, case, dtype, rank, device)
            grads = torch.zeros_like(wanted[0].gate_up), torch.zeros_like(wanted[0].down)
            for total, own in zip(grads, (found.gate_up, found.down), strict=True):
                total.index_add_(0, torch.tensor(logical, dtype=torch.int64, device=device), own)
                dist.all_reduce(total, group=group)
            errors = {
                "y": relative(found.y, wanted[rank].y, [one.y for one in wanted]),
                "dx": relative(found.x, wanted[rank].x, [one.x for one in wanted]),
                "dweights": relative(found.weights, wanted[rank].weights, [one.weights for one in wanted]),
                "dgate_up": relative(grads[0], wanted[rank].gate_up),
                "ddown": relative(grads[1], wanted[rank].down),
            }
            wrong += [f"{case} {name} {what}: {e:.2e}" for what, e in errors.items() if not e <= TOLERANCE[dtype]]
            rows = exact_rows(
                exchange.layout.placement,
                [ids.numpy() for ids in step_of(case, dtype).ids],
                name,
                exchange.layout.domain_R,
                exchange.layout.rail_R,
            )
            assert exchange.last_hops is not None
            for hop, rows_RR in rows.items():
                seen = exchange.last_hops[hop]
                if list(seen.sent_R) != rows_RR[rank].tolist() or list(seen.received_R) != rows_RR[:, rank].tolist():
                    wrong.append(f"{case} {name} {hop}: {seen} instead of {rows_RR.tolist()}")
    return wrong


def cases_for(size: int) -> list[Case]:
    some, uneven = (5,) * size, tuple((3 * r) % 7 for r in range(size))
    return [
        Case(some, contiguous=True, experts=2 * size),
        Case(some, contiguous=True, experts=2 * size + 1, domains=2),
        Case(uneven, seed=1),
        Case(uneven, seed=2, domains=2, replicas=0.9),
        Case(uneven, seed=3, domains=min(size, 3), replicas=0.2, experts=size + 3),
        Case(some, seed=4, routing="one", domains=2),
        Case(some, seed=5, routing="all", domains=2),
        Case(some, seed=6, experts=1, top_k=1),
        Case((0,) * size, seed=7, domains=2),
        Case((0,) * (size - 1) + (6,), seed=8, domains=2, replicas=0.0),
        Case(some, seed=9, hidden=5, intermediate=3),
        Case(uneven, seed=11, domains=2, replicas=0.7, choice="cover"),
        Case(some, seed=12, domains=min(size, 3), replicas=0.4, experts=size + 5, choice="cover"),
        Case(some, seed=13, routing="all", domains=2, choice="cover"),
        Case(some, seed=10, experts=size - 1, replicas=0.0, top_k=2),  # a rank without slots
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_exchanges_equal_the_dense_layer(size: int, dtype: torch.dtype) -> None:
    results = on_ranks(size, run_cases, cases_for(size), dtype, timeout_s=240)
    assert [line for lines in results for line in lines] == []


def test_one_rank_needs_no_torch_distributed() -> None:
    """The same code with one rank: equal to the dense layer, and every pair stays here."""
    case = Case((9,), contiguous=True)
    found, _ = one_layer(local_exchange(case.experts), case, torch.float64, 0)
    wanted = dense_answers(step_of(case, torch.float64))[0]
    for name in ("y", "x", "weights", "gate_up", "down"):
        assert relative(getattr(found, name), getattr(wanted, name)) < 1e-12, name


@pytest.mark.parametrize("name", EXCHANGES)
def test_gradcheck(name: str) -> None:
    """Finite differences, fp64: rows and weights, with a masked pair and an expert that stands twice."""
    case = Case((4,), experts=3, hidden=2, intermediate=2, top_k=2, seed=3, replicas=0.0)
    step = step_of(case, torch.float64)
    exchange = make_exchange(name, layout_of(case, 0), Transport())
    experts = experts_of(step, exchange.layout.my_experts)
    ids = torch.tensor([[0, 1], [2, 2], [-1, 0], [1, -1]])

    def layer(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        dispatched = exchange.dispatch(x, weights, ids)
        return exchange.combine(experts(dispatched.x_NH, dispatched.rows), dispatched)

    inputs = step.x[0].requires_grad_(), step.weights[0].requires_grad_()
    assert torch.autograd.gradcheck(layer, inputs)


def test_layout_chooses_copies_as_the_planner_does() -> None:
    for seed, choice in itertools.product(range(20), REPLICA_CHOICES):
        case = Case((50,) * 4, experts=9, seed=seed, domains=2, replicas=0.6, choice=choice)
        placement, domain_R, _ = placement_of(case)
        for rank in range(4):
            ids = step_of(case, torch.float32).ids[rank]
            wanted = slots_of_rank(placement, ids.numpy(), rank, domain_R)
            found = layout_of(case, rank).slot_of_pairs(ids).numpy()
            assert np.array_equal(np.where(found == len(placement.expert_S), -1, found), wanted)


def test_ranks_that_choose_copies_differently_are_told() -> None:
    """The digest that ranks compare before they run tells the two rules apart."""
    cases = [Case((1,) * 2, seed=1, choice=choice) for choice in REPLICA_CHOICES]
    assert len({layout_of(case, 0).digest() for case in cases}) == 2
