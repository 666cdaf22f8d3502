"""epplan as an expert-parallel implementation of Hugging Face transformers, from 5.23 on.

    use_plan(exchange="dedup")
    layout = DistributedConfig(fsdp_size=8, ep_size=8, ep_implementation="epplan")
    model = AutoModelForCausalLM.from_pretrained(path, distributed_config=layout)

transformers deals experts out by itself while it loads them, contiguously and evenly. So what a plan says here is which
exchange to use and where the ranks sit; one that moves or copies experts is for `apply_expert_parallel`, and refused.

Shapes: T tokens, K top_k, E experts, H hidden.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from executor.adapters.huggingface import run
from executor.deployment import Deployment
from executor.exchange import exchange_name, make_exchange
from executor.layout import LayerLayout, contiguous_layout, plan_layouts
from executor.transport import Transport
from planner import Plan
from topologies.errors import BadInput

NAME = "epplan"


def use_plan(plan: Plan | None = None, exchange: str | None = None) -> None:
    """Register "epplan" for `DistributedConfig(ep_implementation=...)`, with this plan, for models loaded from now on.

    Args:
        plan: for as many ranks as `ep_size`, with contiguous and equal slots; None for ranks that share one domain.
        exchange: `pairwise`, `dedup` or `two-level`; the plan's own by default (`pairwise` without a plan).

    Raises:
        BadInput: transformers is missing or older than 5.23. A plan that does not fit is refused as the model loads.

    """
    try:
        interface = import_module("transformers.distributed.expert_parallel").EPImplementationInterface
    except (ImportError, AttributeError) as error:
        raise BadInput(
            "transformers 5.23 or later is needed for ep_implementation='epplan'; with an older one call"
            " apply_expert_parallel(model, device_mesh, plan)"
        ) from error
    interface.register(NAME, partial(PlannedEP, plan=plan, exchange=exchange))


class PlannedEP:
    """What transformers makes of each `experts` module, and calls in its place.

    The module carries the deployment, so that `find_moe_layers` finds it.

    Attributes:
        experts: those of this rank, as transformers has sharded them.
        tp_mesh: ranks that share this rank's tokens.
        deployment: exchange, recorder, clock.

    """

    def __init__(
        self, experts: Any, ep_mesh: Any, tp_mesh: Any, *, plan: Plan | None = None, exchange: str | None = None
    ) -> None:
        transport = Transport(ep_mesh.get_group())
        layout = _layout(experts.num_experts * transport.size, transport, plan)
        self.experts, self.tp_mesh = experts, tp_mesh
        self.deployment = Deployment(make_exchange(exchange_name(exchange, plan), layout, transport))
        experts.ep_deployment = self.deployment

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return [T, H]: the experts' weighted outputs for this rank's tokens; ids [T, K] are of all experts.

        Ranks that share a batch each send a slice of it, so that no token is computed twice.
        """
        inputs = (hidden_states, top_k_index, top_k_weights)
        if self.tp_mesh.size() == 1:
            return run(self.deployment, self.experts, *inputs)
        x_TH, ids_TK, weights_TK = (_slice(one, self.tp_mesh) for one in inputs)
        y_TH = run(self.deployment, self.experts, x_TH, ids_TK, weights_TK)
        return _whole(y_TH, hidden_states, self.tp_mesh)


def _slice(whole: Tensor, mesh: Any) -> Tensor:
    """Return this rank's rows of a tensor that all ranks of the mesh have; its gradient is gathered from all."""
    slices = DTensor.from_local(whole, mesh, [Replicate()], run_check=False).redistribute(placements=[Shard(0)])
    return slices.to_local()


def _whole(rows: Tensor, like: Tensor, mesh: Any) -> Tensor:
    """Return the rows of all ranks; each rank's gradient is its slice of the gradient, which all of them have."""
    slices = DTensor.from_local(
        rows.contiguous(), mesh, [Shard(0)], run_check=False, shape=like.shape, stride=(like.shape[1], 1)
    )
    return slices.full_tensor()


def _layout(num_experts: int, transport: Transport, plan: Plan | None) -> LayerLayout:
    """Return where transformers puts experts, on the ranks of the plan; raises BadInput where the plan differs.

    An `experts` module does not say which layer it is of: the layout is that of the plan's first one, as of all others.
    """
    here = contiguous_layout(num_experts, transport.size, transport.rank)
    if plan is None:
        return here
    if (plan.num_ranks, plan.model.experts) != (transport.size, num_experts):
        raise BadInput(
            f"the plan is for {plan.model.experts} experts on {plan.num_ranks} ranks, the model has {num_experts}"
            f" on ep_size {transport.size}"
        )
    layouts = plan_layouts(plan, transport.rank)
    for number, layout in layouts.items():
        if not layout.is_contiguous or layout.slots_R != here.slots_R:
            raise BadInput(
                f"layer {number}: the plan moves or copies experts, and ep_implementation='epplan' gets them from"
                " transformers, contiguous and evenly: call apply_expert_parallel(model, device_mesh, plan) instead"
            )
    return next(iter(layouts.values()))
