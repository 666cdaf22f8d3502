"""Live migration: every expert arrives whole with its optimizer state, only what changes travels, training goes on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from executor import gather_state_dict
from executor.conformance import Conformance
from executor.fsdp import apply_fsdp, parameter_groups
from executor.layout import contiguous_layout
from executor.migrate import MigrationReport, expert_bytes, migrate_to
from executor.migrate_moves import moves_between
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.replicas import check_replicas_equal, sum_replica_gradients
from planner import Plan
from tests.executor.adapters.steps import mesh, reduce_gradients
from tests.executor.adapters.test_dispatching import Model
from tests.executor.layers import Case, layout_of, relative
from tests.executor.models import HIDDEN, TinyModel, plan_of
from tests.executor.ranks import on_ranks
from topologies import BadInput

EXPERTS, TOP_K, PATIENCE_S = 8, 2, 120
OPTIMIZERS: dict[str, Any] = {
    "adam": lambda params: torch.optim.Adam(params, lr=1e-2, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "plain": lambda params: torch.optim.SGD(params, lr=1e-2),
    "nadam": lambda params: torch.optim.NAdam(params, lr=1e-2),
}


def case(seed: int, replicas: float = 0.3, size: int = 4) -> Case:
    return Case((8,) * size, experts=EXPERTS, top_k=TOP_K, replicas=replicas, domains=min(2, size), seed=seed)


def plan(seed: int, exchange: str = "pairwise", replicas: float = 0.3, size: int = 4) -> Plan:
    return plan_of(case(seed, replicas, size), exchange)


def build(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return TinyModel(EXPERTS, TOP_K, dtype) if kind == "packed" else Model("listed")


def step(rank: int, model: nn.Module, optimizer: Any, number: int, dtype: torch.dtype = torch.float64) -> float:
    """Train one step on tokens that its number and the rank decide; return the sum of the ranks' losses."""
    g = torch.Generator().manual_seed(100 * number + rank)
    y: Tensor = model(torch.randn(1 + (rank + number) % 4, HIDDEN, generator=g, dtype=torch.float64).to(dtype))
    loss = (y * y).mean()
    optimizer.zero_grad()
    loss.backward()
    reduce_gradients(model)
    optimizer.step()
    total = loss.detach().double()
    dist.all_reduce(total)
    return float(total)


def contents(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, int], set[str]]:
    """Return a hash of the weights and the state of every copy of every expert, on all ranks together."""
    mine = []
    for name, layer in find_moe_layers(model).items():
        for slot, expert in enumerate(layer.exchange.layout.my_experts):
            digest = hashlib.sha256()
            for what, part in layer.held.parts(slot).items():
                state = optimizer.state.get(part.param, {})
                for key, value in [("", part.param.detach()), *sorted(state.items())]:
                    own = part.of(value) if isinstance(value, Tensor) and value.ndim else value
                    digest.update(f"{what} {key} {own.tolist() if isinstance(own, Tensor) else own}".encode())
            mine.append(((name, expert), digest.hexdigest()))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    found: dict[tuple[str, int], set[str]] = {}
    for key, digest_of in (pair for theirs in everyone for pair in theirs):
        found.setdefault(key, set()).add(digest_of)
    return found


class Watch:
    """A guard that adds up the bytes that migrations send to other ranks."""

    def __init__(self, rank: int) -> None:
        self.rank, self.sent, self.most = rank, 0, 0

    def check(self, call: str, sends: Any = (), receives: Any = ()) -> None:
        if call.startswith("migration"):
            assert sends[self.rank] == receives[self.rank] == 0, "what stays does not travel"
            self.sent += sum(sends)
            self.most = max(self.most, sum(sends) + sum(receives))


def there_and_back(rank: int, size: int, kind: str, name: str, memory_bytes: int) -> None:
    """Go through plans with other copies and numbers of slots; after each move every expert is what it was."""
    model, watch = build(kind), Watch(rank)
    apply_expert_parallel(model, mesh(size), plan(1), guard=watch)
    optimizer = OPTIMIZERS[name](model.parameters())
    order = [id(group) for group in optimizer.param_groups]
    for number in range(2):
        step(rank, model, optimizer, number)
    before, whole = contents(model, optimizer), gather_state_dict(model)
    assert all(len(copies) == 1 for copies in before.values())
    for seed in (2, 3, 1):
        watch.sent = watch.most = 0
        report = migrate_to(model, plan(seed), optimizer, memory_bytes=memory_bytes)
        assert contents(model, optimizer) == before
        bytes_of_ranks: list[Any] = [None] * size
        dist.all_gather_object(bytes_of_ranks, watch.sent)
        assert sum(bytes_of_ranks) == report.moved_bytes == report.moves * expert_bytes(model, optimizer)
        assert watch.most <= report.staged_bytes <= memory_bytes
    after = gather_state_dict(model)
    assert all(torch.equal(whole[key], after[key]) for key in whole)
    assert order == [id(group) for group in optimizer.param_groups]
    managed = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(managed) == sorted(map(id, model.parameters()))
    assert {id(param) for param in optimizer.state} <= set(managed)
    step(rank, model, optimizer, 3)
    check_replicas_equal(model)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_experts_arrive_whole_with_their_optimizer_state(name: str) -> None:
    on_ranks(4, there_and_back, "packed", name, 2**20, timeout_s=PATIENCE_S)


@pytest.mark.parametrize(("kind", "memory_bytes"), [("packed", 1999), ("listed", 9973)])
def test_chunks_of_any_size(kind: str, memory_bytes: int) -> None:
    on_ranks(4, there_and_back, kind, "adam", memory_bytes, timeout_s=PATIENCE_S)


def curve(
    rank: int, size: int, dtype: torch.dtype, steps: int, moves: dict[int, Plan]
) -> tuple[list[float], list[str]]:
    model = build("packed", dtype)
    apply_expert_parallel(model, mesh(size), plan(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, said = [], []
    for number in range(steps):
        if number in moves:
            said.append(str(migrate_to(model, moves[number], optimizer, predicted_us=1234.0)))
        layers = find_moe_layers(model)
        if number in moves:
            with Conformance(layers, moves[number]) as watched:
                losses.append(step(rank, model, optimizer, number, dtype))
            assert [verdict.problems for verdict in watched.verdicts()] == [()] * len(layers)
        else:
            losses.append(step(rank, model, optimizer, number, dtype))
    check_replicas_equal(model)
    return losses, said


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"),
    [(torch.float64, 20, 1e-11), pytest.param(torch.float32, 100, 2e-4, marks=pytest.mark.slow)],
)
def test_the_loss_goes_on_as_if_nothing_had_happened(dtype: torch.dtype, steps: int, tolerance: float) -> None:
    """Migrated three times on the way, to another exchange each time; rounding is all that may differ."""
    first, second, third = (int(part * steps) for part in (0.3, 0.5, 0.7))
    moves = {first: plan(5, "dedup"), second: plan(6, "two-level", replicas=0.0), third: plan(7)}
    moved = on_ranks(4, curve, dtype, steps, moves, timeout_s=PATIENCE_S)
    stayed = on_ranks(4, curve, dtype, steps, {}, timeout_s=PATIENCE_S)
    found, wanted = np.array(moved[0][0]), np.array(stayed[0][0])
    assert (found[:first] == wanted[:first]).all()
    assert np.abs(found / wanted - 1).max() < tolerance, found / wanted - 1
    assert wanted[-4:].mean() < 0.95 * wanted[:4].mean(), "it learns"
    assert len(moved[0][1]) == 3
    assert "(1.2 ms predicted)" in moved[0][1][0]


def refused(
    rank: int, size: int, plans: list[Plan], optimizer: str, memory_bytes: int, exchanges: list[str | None]
) -> tuple[str, bool]:
    """Try to migrate rank by rank to `plans` and `exchanges`; return what was said, and whether all is as it was."""
    model = build("packed")
    apply_expert_parallel(model, mesh(size), plan(1))
    used = (
        torch.optim.Adafactor(model.parameters())
        if optimizer == "adafactor"
        else OPTIMIZERS["adam"](model.parameters())
    )
    step(rank, model, used, 0)
    before, layouts = contents(model, used), [one.exchange.layout for one in find_moe_layers(model).values()]
    said = ""
    try:
        migrate_to(model, plans[rank], used, memory_bytes=memory_bytes, exchange=exchanges[rank])
    except BadInput as error:
        said = str(error)
    same = [one.exchange.layout for one in find_moe_layers(model).values()] == layouts
    return said, same and contents(model, used) == before


@pytest.mark.parametrize(
    ("plans", "optimizer", "memory_bytes", "exchanges", "said"),
    [
        ([plan(2)] * 3 + [plan(3)], "adam", 2**20, [None] * 4, "rank 3: its plan is not that of the other ranks"),
        (
            [plan(2, size=2)] * 4,
            "adam",
            2**20,
            [None] * 4,
            "rank 0: the plan is for 2 ranks (test), the ep dimension has 4",
        ),
        (
            [plan(2)] * 2 + [plan_of(Case((8,) * 4, experts=6, top_k=2))] + [plan(2)],
            "adam",
            2**20,
            [None] * 4,
            "rank 2: layers.0: 8 experts, the plan has 6",
        ),
        (
            [plan(2)] * 4,
            "adafactor",
            2**20,
            [None] * 4,
            "rank 0: layers.0: gate_up: the optimizer's 'col_var' is neither",
        ),
        ([plan(2)] * 4, "adam", 1, [None] * 4, "memory_bytes is 1; a byte of each expert that moves takes"),
        ([plan(2)] * 4, "adam", 2**20, [None, "ring", None, None], "rank 1: unknown exchange 'ring'; known: dedup"),
        (
            [plan(2)] * 4,
            "adam",
            2**20,
            [None, None, "dedup", None],
            "rank 2 has exchange dedup, most ranks have exchange pairwise",
        ),
    ],
    ids=["other plan", "other size", "other model", "factored state", "no memory", "no exchange", "other exchange"],
)
def test_refused_on_all_ranks_before_anything_moves(
    plans: list[Plan], optimizer: str, memory_bytes: int, exchanges: list[str | None], said: str
) -> None:
    for text, untouched in on_ranks(4, refused, plans, optimizer, memory_bytes, exchanges, timeout_s=PATIENCE_S):
        assert text.startswith(said)
        assert untouched


def to_an_empty_rank(_rank: int, size: int) -> str:
    """Rank 3 holds no module after which it could make one."""
    slots = [[0, 1, 2], [3, 4, 5], [6, 7], []]
    base = plan(1, replicas=0.0)
    empty = base.model_copy(
        update={"layers": tuple(one.model_copy(update={"slots": slots, "shares": {}}) for one in base.layers)}
    )
    model = build("listed")
    apply_expert_parallel(model, mesh(size), empty)
    with pytest.raises(BadInput) as error:
        migrate_to(model, plan(2))
    packed = build("packed")
    apply_expert_parallel(packed, mesh(size), empty)
    optimizer = OPTIMIZERS["adam"](packed.parameters())
    step(_rank, packed, optimizer, 0)
    before = contents(packed, optimizer)
    migrate_to(packed, plan(2), optimizer)
    assert contents(packed, optimizer) == before
    return str(error.value)


def test_a_rank_without_experts() -> None:
    """Packed ones come to it as they are; modules it cannot make."""
    for said in on_ranks(4, to_an_empty_rank, timeout_s=PATIENCE_S):
        assert said.startswith("layers.0: its experts are modules, and rank 3 holds none after which it could make the")


def even_plan(seed: int) -> Plan:
    """Return a plan for 2 ranks, 5 slots each: experts 0 and 1 twice, the others where the seed wants them."""
    rng, base = np.random.default_rng(seed), plan(1, replicas=0.0, size=2)
    layers = []
    for one in base.layers:
        rest = (2 + rng.permutation(EXPERTS - 2)).tolist()
        slots = tuple(tuple(rng.permutation([0, 1, *part]).tolist()) for part in (rest[:3], rest[3:]))
        layers.append(one.model_copy(update={"slots": slots, "shares": {}}))
    return base.model_copy(update={"layers": tuple(layers)})


def sharded(rank: int, _size: int, moves: bool) -> tuple[list[float], str]:
    """Train under (fsdp 2, ep 2), migrating on the way; each fsdp rank has half of every expert."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "ep"))
    model = build("packed")
    apply_expert_parallel(model, both, even_plan(0))
    apply_fsdp(model, both)
    optimizer = torch.optim.Adam(parameter_groups(model), lr=1e-2)
    losses, said = [], ""
    for number in range(6):
        if moves and number in (2, 4):
            before = contents(model, optimizer)
            assert migrate_to(model, even_plan(number), optimizer, memory_bytes=2000).moves
            assert contents(model, optimizer) == before
        y: Tensor = model(torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(10 * number + rank)).double())
        loss = (y * y).mean()
        optimizer.zero_grad()
        loss.backward()
        sum_replica_gradients(model)
        optimizer.step()
        total = loss.detach()
        dist.all_reduce(total)
        losses.append(float(total))
    try:
        migrate_to(model, plan(1, replicas=0.0, size=2), optimizer)
    except BadInput as error:
        said = str(error)
    return losses, said


def test_parts_of_experts_migrate_under_fsdp() -> None:
    moved, stayed = (on_ranks(4, sharded, moves, timeout_s=PATIENCE_S) for moves in (True, False))
    assert moved[0][0] == pytest.approx(stayed[0][0], rel=1e-10)
    assert moved[0][0][:2] == stayed[0][0][:2]
    for _, said in moved:
        assert "so the number of slots must stay: rank 1 has 5, the plan 3" in said


def same_tokens(_rank: int, size: int) -> float:
    """With `batch="same"` gradients are means over the ranks, for parameters that were replaced, too."""
    model, dense = build("packed"), build("packed")
    apply_expert_parallel(model, mesh(size), plan(1), batch="same")
    migrate_to(model, plan(2))
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one in (model, dense):
        one(x).square().sum().backward()
    sum_replica_gradients(model)
    errors = []
    for layer, reference in zip(find_moe_layers(model).values(), find_moe_layers(dense).values(), strict=True):
        mine = torch.tensor(layer.exchange.layout.my_experts, dtype=torch.int64)
        (found, *_), (wanted, *_) = layer.held.parameters(), reference.held.parameters()
        assert found.grad is not None
        assert wanted.grad is not None
        errors.append(relative(found.grad, wanted.grad[mine]))
    return max(errors)


def test_hooks_follow_the_parameters() -> None:
    assert max(on_ranks(4, same_tokens, timeout_s=PATIENCE_S)) < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3), st.floats(0, 0.7))
def test_moves(seed: int, size: int, domains: int, replicas: float) -> None:
    """Every slot that changes gets its expert once, from a nearest holder; both ends agree; nobody else moves."""
    cases = [Case((1,) * size, domains=min(domains, size), replicas=replicas, seed=seed + i) for i in range(2)]
    olds, news = ([layout_of(one, rank) for rank in range(size)] for one in cases)
    moves = moves_between(olds[0], news[0])
    before, after = olds[0].placement.slots(), news[0].placement.slots()
    arriving = {
        (rank, slot): e for rank, row in enumerate(after) for slot, e in enumerate(row) if e not in before[rank]
    }
    assert {(move.rank, move.slot): move.expert for move in moves.fetched} == arriving
    domain_R = news[0].domain_R
    for move in moves.fetched:
        holders = [rank for rank, row in enumerate(before) if move.expert in row]
        assert move.source in holders
        at_home = [rank for rank in holders if domain_R[rank] == domain_R[move.rank]]
        assert not at_home or move.source in at_home
    for rank, (old, new) in enumerate(zip(olds, news, strict=True)):
        for other in range(size):
            sent = [before[rank][slot] for slot in moves.sends(old)[other]]
            assert sent == [after[other][slot] for slot in moves.receives(other)[rank]]
        kept = {after[rank][b]: before[rank][a] for a, b in moves.kept_R[rank]}
        assert all(a == b for a, b in kept.items())
        assert set(kept) == set(after[rank]) & set(before[rank])
        assert new.rank == rank


def test_senders_take_turns() -> None:
    """Ranks 0 and 1 both hold experts 0..3, ranks 2 and 3 want two each: everyone sends two."""
    old = contiguous_layout(4, 4, 0)
    placement = type(old.placement).equal_shares
    layouts = [
        type(old)(placement(slots, 4, 1), old.domain_R, old.rail_R, 0)
        for slots in ([[0, 1, 2, 3], [0, 1, 2, 3], [], []], [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1], [2, 3]])
    ]
    assert sorted(move.source for move in moves_between(*layouts).fetched) == [0, 0, 1, 1]


def test_a_report_reads_as_one_line() -> None:
    report = MigrationReport((), 12, 2**20, 2e3, None)
    assert "predicted" not in str(report)
    assert "0 of 12 slots" in str(report)
