"""migrate_to: from the plan in force to another one, while training.

    report = migrate_to(model, load_plan("next.json"), optimizer, memory_bytes=512 * 2**20)    # between two steps

Layer by layer, all ranks together. A slot that gets another expert fetches it, with its optimizer state, from the
nearest rank that has it; what stays is not touched. Experts travel as bytes, in chunks: the same range of bytes of all
experts of a layer that are on the way. A range is read everywhere before it is written anywhere, so slots are
overwritten in place, and beside the model there is only what goes out and what comes in. Where a rank gets more slots
or fewer, the new tensors of one layer stand beside its old ones, too.

Nothing of it is written down: a job that dies on the way goes on from its last checkpoint, which any plan can load.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from executor.conformance import check_deployed
from executor.exchange import exchange_name, make_exchange
from executor.migrate_cargo import Kept, Rows, form_of, resize, rows_of
from executor.migrate_steps import Step, agreed_steps
from executor.moe_layers import find_moe_layers
from executor.transport import Transport
from planner import Plan
from topologies import BadInput

MEMORY_BYTES = 256 * 2**20
MIB = 2**20


@dataclass(frozen=True)
class LayerMoved:
    """What one layer took: experts that travelled between ranks, their bytes, and this rank's microseconds."""

    layer: int
    moves: int
    moved_bytes: int
    chunks: int
    measured_us: float


@dataclass(frozen=True)
class MigrationReport:
    """What a migration took.

    Attributes:
        layers: one after the other.
        slots: of the new plan, all layers and ranks together.
        staged_bytes: most that any rank had on the way at once, out and in.
        measured_us: wall time on this rank, from the check of the plan to the check of what is deployed.
        predicted_us: of the transfers, as the caller gave it; None without.

    """

    layers: tuple[LayerMoved, ...]
    slots: int
    staged_bytes: int
    measured_us: float
    predicted_us: float | None

    @property
    def moves(self) -> int:
        """Experts that travelled between ranks."""
        return sum(layer.moves for layer in self.layers)

    @property
    def moved_bytes(self) -> int:
        """What travelled between ranks, optimizer state included."""
        return sum(layer.moved_bytes for layer in self.layers)

    @property
    def transfer_us(self) -> float:
        """Measured time of the layers alone, without the checks before and after: what `predicted_us` stands beside."""
        return sum(layer.measured_us for layer in self.layers)

    def __str__(self) -> str:
        """Return one line."""
        predicted = "" if self.predicted_us is None else f" ({self.predicted_us / 1e3:,.1f} ms predicted)"
        return (
            f"{self.moves} of {self.slots} slots fetched their expert: {self.moved_bytes / MIB:,.1f} MiB with optimizer"
            f" state in {self.transfer_us / 1e3:,.1f} ms measured{predicted}, {self.measured_us / 1e3:,.1f} ms with all"
            f" checks; at most {self.staged_bytes / MIB:,.1f} MiB on the way at once"
        )


@torch.no_grad()
def migrate_to(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    exchange: str | None = None,
    predicted_us: float | None = None,
) -> MigrationReport:
    """Bring a model from its plan to another one; all ranks of the job call, between two steps.

    Weights and the state of the optimizer travel; gradients of experts are dropped. Parameters stay the objects that
    they are where a rank keeps its number of slots, else they are replaced in the model and in the optimizer, in their
    places. Under tensor parallelism and FSDP2 every rank's part of an expert travels, and the numbers of slots must
    stay. Afterwards every rank has checked that what is deployed is the plan.

    Args:
        model: under `apply_expert_parallel`, with any plan or none.
        plan: rank r of the `ep` dimension takes the slots of rank r.
        optimizer: of any kind that keeps numbers and tensors shaped as the parameters (SGD, Adam, AdamW, ...).
        memory_bytes: what a rank may have on the way at once, out and in together.
        exchange: as of `apply_expert_parallel`; the plan's own by default.
        predicted_us: what `planner.migrate.migration` says, for the report.

    Raises:
        BadInput: on every rank, before anything moves: the plan does not fit on one of them, or the ranks differ.

    """
    started = time.perf_counter()
    layers, kept = find_moe_layers(model), Kept.by(optimizer)
    if not layers:
        raise BadInput("the model has no MoE layer: no module with experts")
    transport = next(iter(layers.values())).exchange.transport
    steps = agreed_steps(layers, transport, plan, kept, memory_bytes, exchange)
    transport.domain_of_rank = plan.domain_of_rank.tolist()
    name = exchange_name(exchange, plan)
    moved = tuple(_move_layer(step, kept, name) for step in steps)
    check_deployed(layers)
    return MigrationReport(
        layers=moved,
        slots=sum(step.new.num_slots for step in steps),
        staged_bytes=max(step.busiest * max(map(len, step.chunks), default=0) for step in steps),
        measured_us=1e6 * (time.perf_counter() - started),
        predicted_us=predicted_us,
    )


def expert_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Return the bytes of one expert with its optimizer state, of the largest layer, as this rank has them; or 0."""
    forms = [form_of(layer.held, Kept.by(optimizer)) for layer in find_moe_layers(model).values()]
    return max((form.expert_bytes for form in forms if form is not None), default=0)


def _move_layer(step: Step, kept: Kept, exchange: str) -> LayerMoved:
    """Move the experts of one layer, and put its new layout into force."""
    started = time.perf_counter()
    layer, transport, chunks = step.layer, step.layer.exchange.transport, step.chunks
    for param in layer.held.parameters():
        param.grad = None
    before = rows_of(layer.held, kept, step.form)
    if len(step.new.my_experts) != len(before):
        resize(layer.held, kept, step.form, len(step.new.my_experts))
    after = rows_of(layer.held, kept, step.form)
    for chunk in chunks:
        _move_chunk(step, before, after, chunk, transport)
    layer.exchange = make_exchange(exchange, step.new, transport)
    moves = len(step.moves.fetched)
    took_us = 1e6 * (time.perf_counter() - started)
    return LayerMoved(step.new.layer, moves, moves * step.form.expert_bytes, len(chunks), took_us)


def _move_chunk(step: Step, before: list[Rows], after: list[Rows], chunk: range, transport: Transport) -> None:
    """Move one range of the bytes of all experts on their way; all of it is read before any is written."""
    sends, receives = step.moves.sends(step.old), step.moves.receives(step.old.rank)
    copied = step.copied_R[step.old.rank]
    out = _read([before[slot] for slots in sends for slot in slots], chunk, transport.device)
    stay = _read([before[slot] for slot, _ in copied], chunk, transport.device)
    arrived = transport.all_to_all(
        f"migration of {step.name}",
        out,
        [len(slots) * len(chunk) for slots in sends],
        [len(slots) * len(chunk) for slots in receives],
    )
    _write([after[slot] for slots in receives for slot in slots], chunk, arrived)
    _write([after[slot] for _, slot in copied], chunk, stay)


def _read(rows: Sequence[Rows], chunk: range, device: torch.device) -> Tensor:
    """Return the range of all these rows, one after the other."""
    nothing = torch.empty(0, dtype=torch.uint8, device=device)
    return torch.cat([nothing, *(part for row in rows for part in _cut(row, chunk))])


def _write(rows: Sequence[Rows], chunk: range, values: Tensor) -> None:
    """Write what `_read` has returned."""
    parts = [part for row in rows for part in _cut(row, chunk)]
    for part, value in zip(parts, values.split_with_sizes([len(part) for part in parts]), strict=True):
        part.copy_(value)


def _cut(row: Rows, chunk: range) -> Iterator[Tensor]:
    """Yield the parts of a row's columns that lie in a range of the row's bytes."""
    first = 0
    for column in row:
        begin, end = max(chunk.start - first, 0), min(chunk.stop - first, len(column))
        if begin < end:
            yield column[begin:end]
        first += len(column)
