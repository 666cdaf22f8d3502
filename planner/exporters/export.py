"""From a plan to the file of a target, and the predicted cost of what the target cannot hold."""

from __future__ import annotations

from dataclasses import dataclass

from planner.exporters import eplb, lp_shares, megatron, omni, sglang, trtllm, vllm, vllm_ascend
from planner.exporters.adapt import Adaptation
from planner.exporters.target import Deployment, Target
from planner.placement import Placement
from planner.plan import Plan
from planner.predict import Prediction, predict
from planner.timing import TimingProfile, plain
from planner.workload import Workload
from topologies.errors import BadInput, unknown_name

TARGETS: dict[str, Target] = {
    "eplb": eplb.TARGET,
    "lp-shares": lp_shares.TARGET,
    "megatron": megatron.TARGET,
    "omni": omni.TARGET,
    "sglang": sglang.TARGET,
    "trtllm": trtllm.TARGET,
    **vllm.TARGETS,
    "vllm-ascend": vllm_ascend.TARGET,
}


@dataclass(frozen=True)
class Loss:
    """What an export left out, and the predicted times before and after.

    Attributes:
        what: one sentence each.
        before, after: predictions of the plan and of what the file says, on the same workload.

    """

    what: tuple[str, ...]
    before: Prediction
    after: Prediction

    @property
    def cost_us(self) -> float:
        """Predicted microseconds that all layers together take longer."""
        return self.after.total_us - self.before.total_us


@dataclass(frozen=True)
class Exported:
    """The file of a target.

    Attributes:
        deployment: what it says.
        data: its content.
        loss: None where it holds all of the plan.

    """

    target: Target
    deployment: Deployment
    data: bytes
    loss: Loss | None

    def hint(self, file: str) -> str:
        """Return how an engine is started with the file of this name."""
        return self.target.hint(self.deployment, file)

    def beside(self) -> tuple[str, bytes] | None:
        """Return the suffix and the content of the second file that the engine wants, if any."""
        return None if self.target.beside is None else (self.target.beside[0], self.target.beside[1](self.deployment))


def export_plan(
    plan: Plan, target: str, *, lossy: tuple[Workload, TimingProfile] | None = None, name: str = "the plan"
) -> Exported:
    """Return the file of a target, a key of `TARGETS`.

    Args:
        plan: what to write.
        target: where to.
        lossy: the workload of the plan's layers and the profile that losses are predicted with; without it a loss is
            refused.
        name: of the plan, for messages.

    Raises:
        BadInput: an unknown target, or one that cannot hold the plan; the message names the remedy.

    """
    if target not in TARGETS:
        raise unknown_name("export target", target, TARGETS)
    load_LE = None if lossy is None else lossy[0].load_LE
    placements = plan.placements()
    adaptation = Adaptation(plan, target, TARGETS[target].limits, load_LE, placements.copy())
    try:
        deployment = adaptation.run()
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error
    loss = None
    if adaptation.losses and lossy is not None:
        before = _predict("plan", plan, placements, *lossy)
        loss = Loss(tuple(adaptation.losses), before, _predict(target, plan, adaptation.placements, *lossy))
    return Exported(TARGETS[target], deployment, TARGETS[target].write(deployment), loss)


def _predict(
    name: str, plan: Plan, placements: list[Placement], workload: Workload, profile: TimingProfile
) -> Prediction:
    return predict(name, placements, workload, profile, plain(plan.exchange), overlap=plan.predicted.overlap)
