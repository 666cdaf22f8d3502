"""Every family in every layout under every kind of plan, on 2, 4 and 8 ranks: one step, and 20 of training."""

from __future__ import annotations

import pytest

from planner import Plan
from tests.executor.parallel_steps import Layout, on_trajectory, one_step, train
from tests.executor.planned import KINDS, plan_for
from tests.executor.ranks import on_ranks

pytest.importorskip("transformers", reason="transformers is not installed")

LAYOUTS = {
    "ep": [Layout(ep=2), Layout(ep=4), Layout(ep=8)],
    "tp, ep": [Layout(tp=2), Layout(tp=2, ep=2), Layout(tp=2, ep=4)],
    "tp+sp, ep": [Layout(tp=2, sequence=True), Layout(tp=2, ep=2, sequence=True), Layout(tp=2, ep=4, sequence=True)],
    "fsdp, ep": [Layout(fsdp=2), Layout(fsdp=2, ep=2), Layout(fsdp=2, ep=4)],
    "tp+sp, fsdp, ep": [
        Layout(tp=2, fsdp=1, sequence=True),
        Layout(tp=2, fsdp=2, sequence=True),
        Layout(tp=2, fsdp=2, ep=2, sequence=True),
    ],
    "tp+sp with expert slices, fsdp, ep": [
        Layout(tp=2, fsdp=1, sequence=True, slices=True),
        Layout(tp=2, fsdp=1, ep=2, sequence=True, slices=True),
        Layout(tp=2, fsdp=2, ep=2, sequence=True, slices=True),
    ],
}
FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3")
CASES = [
    (family, layout, KINDS[(number + turn) % len(KINDS)])
    for number, layout in enumerate(layout for layouts in LAYOUTS.values() for layout in layouts)
    for turn, family in enumerate(FAMILIES)
]
"""Family, layout, and the plan to train under: in turns, so that every layout and every family trains under each."""


def all_plans(
    rank: int, size: int, family: str, layout: Layout, plans: dict[str, Plan | None], trained: str
) -> list[str]:
    """Return what is wrong with one step under each plan, and with training under one of them."""
    wrong = []
    for kind, plan in plans.items():
        errors = one_step(rank, size, family, layout, plan)
        if any(error >= 1e-5 for error in errors.values()):
            wrong.append(f"{kind}: one step {errors}")
    most = train(rank, size, family, layout, plans[trained])
    return wrong if on_trajectory(most) else [*wrong, f"{trained}: training {most}"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout", "trained"), CASES)
def test_as_in_one_process(family: str, layout: Layout, trained: str) -> None:
    """Logits, loss, router logits and gradients; then losses, clipped norms and weights of 20 steps."""
    kinds = KINDS if layout.ep > 1 else KINDS[:1]
    trained = trained if layout.ep > 1 else KINDS[0]
    plans = {kind: plan_for(layout.ep, kind) for kind in kinds}
    for rank, wrong in enumerate(on_ranks(layout.ranks, all_plans, family, layout, plans, trained, timeout_s=1200)):
        assert not wrong, f"rank {rank}: {wrong}"
