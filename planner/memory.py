"""What the MoE layers of a model take of a rank's memory: slots, what every rank holds besides, and buffers.

Inference keeps the weights of a slot as they are stored. Training keeps 16 bytes for each parameter (Rajbhandari et
al., ZeRO, SC 2020, section 3.1: mixed-precision Adam): the bf16 weight 2, its bf16 gradient 2, and in float32 a master
copy, the momentum and the variance, 4 each. Every copy of an expert keeps its own, as the executor does.

Dispatch buffers hold the rows of one layer at a time, on their way in and out, for as many rows as a rank gets in a
step: the `LOAD_QUANTILE` of the expected rows over all layers and ranks, and the same quantile of the Poisson noise of
a step on top. Attention, embeddings, projections around latent experts, KV cache and saved activations are not known
here: the budget is for the rest.

Shapes: L layers, R ranks, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

from planner.model import MoEModel
from planner.placement import IntArray, Placement
from planner.weights import WEIGHT_FORMATS
from planner.wire import pair_rows_CR
from planner.workload import Workload

LOAD_QUANTILE = 0.99
SHARED_BYTES_OF_4_BITS = 2
"""Of a shared expert's weight where routed ones have 4 bits: bf16 in Kimi-K2.5 and K3, fp8 in DeepSeek-V4."""
TRAINED_WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 2, 12  # of one parameter: see above


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the fullest rank, by kind; those of training are 0 in inference.

    Attributes:
        expert_bytes: weights of the slots of all layers.
        gradient_bytes, optimizer_bytes: of all that is trained here: slots, shared experts, routers.
        shared_bytes: weights of shared experts and routers, which every rank holds.
        buffer_bytes: dispatched rows and their outputs, of one layer.

    """

    expert_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    shared_bytes: int
    buffer_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return the sum of all kinds."""
        return sum(asdict(self).values())


def slot_bytes(model: MoEModel, *, training: bool) -> int:
    """Return the bytes of one slot of one layer, gradients and optimizer states included."""
    if training:
        return model.expert_params * (TRAINED_WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES)
    return model.expert_bytes


def buffer_rows(workload: Workload, placements: Sequence[Placement]) -> int:
    """Return the rows that the buffers of a rank have to hold (see above)."""
    domain_C, size_C = workload.class_domain_C, workload.class_size_C
    load_LR = [
        size_C @ pair_rows_CR(workload.rows_LCE[row], domain_C, placement) for row, placement in enumerate(placements)
    ]
    expected = float(np.quantile(load_LR, LOAD_QUANTILE))
    return int(np.ceil(expected + NormalDist().inv_cdf(LOAD_QUANTILE) * np.sqrt(expected)))


def memory_use(workload: Workload, slots: int, rows: int, *, training: bool) -> MemoryUse:
    """Return what a rank keeps that holds `slots` slots, all layers together, and buffers of so many rows."""
    model = workload.model
    shared_params, router_params = _shared_params(model), len(model.moe_layers) * model.hidden * model.experts
    trained = slots * model.expert_params + shared_params + router_params
    bits = WEIGHT_FORMATS[model.weight_dtype].bits
    stored = bits / 8 if bits >= 8 else SHARED_BYTES_OF_4_BITS
    shared = TRAINED_WEIGHT_BYTES * shared_params if training else int(stored * shared_params)
    return MemoryUse(
        expert_bytes=slots * (TRAINED_WEIGHT_BYTES * model.expert_params if training else model.expert_bytes),
        gradient_bytes=GRADIENT_BYTES * trained if training else 0,
        optimizer_bytes=OPTIMIZER_BYTES * trained if training else 0,
        shared_bytes=shared + 2 * router_params,  # routers are bf16
        buffer_bytes=rows * (model.dispatch_row_bytes + model.combine_row_bytes),
    )


def most_slots(placements: Sequence[Placement]) -> int:
    """Return the slots of all layers on the fullest rank."""
    slots_R: IntArray = np.sum([placement.slots_R for placement in placements], axis=0)
    return int(slots_R.max())


def size_text(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _shared_params(model: MoEModel) -> int:
    return len(model.moe_layers) * model.hidden * model.shared_intermediate * (3 if model.gated else 2)
