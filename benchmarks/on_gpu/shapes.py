"""The layers that are measured, and how many rows each expert of a rank gets.

Shapes: S slots of the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """One model's MoE layer on one rank of an EP group.

    Attributes:
        name: of the model.
        experts, top_k, hidden, intermediate: of the layer (config.json of the model).
        ranks: of the group; the rank holds experts / ranks of them.
        groups, top_groups: of group-limited routing; 1 and 1 without.
        sigmoid: whether the router scores by sigmoid rather than softmax.

    """

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    ranks: int
    groups: int = 1
    top_groups: int = 1
    sigmoid: bool = False

    @property
    def slots(self) -> int:
        """S, experts that the rank holds."""
        return self.experts // self.ranks

    @property
    def expert_params(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden * self.intermediate

    def tokens(self, per_expert: int) -> int:
        """Return the tokens of the whole group that give every expert `per_expert` rows on average."""
        return max(per_expert * self.experts // self.top_k, 1)


SHAPES = (
    Shape("deepseek-v3", 256, 8, 7168, 2048, ranks=32, groups=8, top_groups=4, sigmoid=True),
    Shape("qwen3-235b-a22b", 128, 8, 4096, 1536, ranks=16),
    Shape("mixtral-8x7b", 8, 2, 4096, 14336, ranks=4),
    Shape("deepseek-v2-lite", 64, 6, 2048, 1408, ranks=8),
)
TINY = (
    Shape("tiny", 16, 4, 64, 32, ranks=4),
    Shape("tiny-grouped", 16, 4, 64, 32, ranks=2, groups=4, top_groups=2, sigmoid=True),
)
"""For trying the benchmark where there is no GPU."""


def slot_rows(shape: Shape, per_expert: int, distribution: str) -> list[int]:
    """Return [S] rows of the slots of one rank, as `planner.calibrate.loads` draws them: the busiest rank's.

    Args:
        shape: of the layer.
        per_expert: mean rows of an expert.
        distribution: "balanced", or "power_law_A" with the exponent A.

    """
    from planner.calibrate.loads import Step, rank_loads  # noqa: PLC0415  # its package needs more than torch and NumPy

    step = Step(shape.tokens(per_expert), shape.experts, shape.top_k, shape.ranks, shape.experts, distribution)
    rows: list[int] = rank_loads(step)[0].tolist()
    return rows


def routed_ids(shape: Shape, tokens: int, seed: int = 0) -> np.ndarray:
    """Return [tokens, top_k] distinct experts, evenly random."""
    rng = np.random.default_rng(seed)
    score_TE = rng.random((tokens, shape.experts), dtype=np.float32)
    return np.ascontiguousarray(score_TE.argpartition(shape.top_k - 1, axis=1)[:, : shape.top_k])
