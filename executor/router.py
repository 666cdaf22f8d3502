"""The router: which experts each token visits, and with which weights.

Shapes: T tokens, K top_k, E experts, G groups of experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from topologies.errors import BadInput

TINY = 1e-20
"""Added to a sum of weights, which may underflow to zero where every sigmoid does (as DeepSeek-V3 does it)."""


@dataclass(frozen=True)
class RouterConfig:
    """How a router scores and chooses. The defaults are Mixtral's.

    | model            | score   | normalise | other fields                                                          |
    |------------------|---------|-----------|-----------------------------------------------------------------------|
    | Mixtral          | softmax | yes       |                                                                       |
    | Qwen3-MoE        | softmax | either    |                                                                       |
    | gpt-oss          | softmax | -         | softmax_after_top_k, bias                                             |
    | DeepSeek-V2      | softmax | no        | num_groups, top_groups, group_score "max", scale                      |
    | DeepSeek-V3, GLM | sigmoid | yes       | num_groups, top_groups, group_score "top2", scale, correction_bias    |

    Attributes:
        num_experts: E.
        top_k: experts a token visits.
        score: what turns logits into scores, each of which is in 0..1.
        normalise: divide a token's K weights by their sum. With top_k 1 every weight is then 1, and no gradient reaches
            the router: Switch Transformers leave it off.
        scale: factor of the weights, after `normalise`.
        softmax_after_top_k: choose by logits, and take the softmax over the K chosen ones only.
        num_groups: the experts form this many equal groups, in order of ids.
        top_groups: a token stays within this many groups, those of the best group score.
        group_score: "max", the best score of the group, or "top2", the sum of its two best.
        bias: the logits have a learned bias.
        correction_bias: scores are corrected by a bias when experts and groups are chosen; weights never see it. It
            is a buffer, set by balancing (`executor.balancing`) and not by gradients.

    """

    num_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    softmax_after_top_k: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    bias: bool = False
    correction_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit together."""
        E, G, top_groups = self.num_experts, self.num_groups, self.top_groups
        if G < 1 or E < 1 or E % G:
            raise BadInput(f"num_groups ({G}) does not divide num_experts ({E})")
        if not 1 <= top_groups <= G:
            raise BadInput(f"top_groups ({top_groups}) is not in 1..num_groups ({G})")
        reachable = top_groups * (E // G)
        if not 1 <= self.top_k <= reachable:
            raise BadInput(f"top_k ({self.top_k}) is not in 1..{reachable}, the experts in top_groups groups")
        if self.score not in ("softmax", "sigmoid"):
            raise BadInput(f"score is {self.score!r}; known: sigmoid, softmax")
        if self.group_score not in ("max", "top2"):
            raise BadInput(f"group_score is {self.group_score!r}; known: max, top2")
        if self.group_score == "top2" and G > 1 and E // G < 2:
            raise BadInput(f'group_score "top2" needs two experts in a group; num_experts / num_groups is {E // G}')
        if self.softmax_after_top_k and self.score != "softmax":
            raise BadInput(f"softmax_after_top_k goes with score 'softmax', not {self.score!r}")


class Routed(NamedTuple):
    """What a router says of T tokens.

    Attributes:
        logits_TE: in fp32, or fp64 where the tokens are.
        scores_TE: softmax or sigmoid of the logits.
        weights_TK: of the chosen experts, the largest choice first.
        ids_TK: int64, the chosen experts.

    """

    logits_TE: Tensor
    scores_TE: Tensor
    weights_TK: Tensor
    ids_TK: Tensor


class Router(nn.Module):
    """Scores every expert for every token and chooses top_k of them; a pure function of its tokens.

    Attributes:
        config: see RouterConfig.
        weight: (E, H).
        bias: (E,) or None.
        correction_bias: buffer (E,) or None; it stays fp32 when the module is cast to a smaller type, in which the
            small steps of balancing would be lost.

    """

    correction_bias: Tensor | None

    def __init__(
        self,
        config: RouterConfig,
        hidden: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(config.num_experts, device=device, dtype=dtype)) if config.bias else None
        correction_bias_E = torch.zeros(config.num_experts, device=device, dtype=torch.float32)
        self.register_buffer("correction_bias", correction_bias_E if config.correction_bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as `nn.Linear` does, uniform in +-1/sqrt(H); the bias is zero."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_TH: Tensor) -> Routed:
        """Return logits, scores, and the chosen experts with their weights; computed in fp32 at least."""
        logits_TE = self._logits(x_TH)
        scores_TE = logits_TE.sigmoid() if self.config.score == "sigmoid" else logits_TE.softmax(-1)
        choice_TE = (logits_TE if self.config.softmax_after_top_k else scores_TE).detach()
        ids_TK = self._choose(choice_TE)
        return Routed(logits_TE, scores_TE, self._weigh(logits_TE, scores_TE, ids_TK), ids_TK)

    def _logits(self, x_TH: Tensor) -> Tensor:
        dtype = torch.promote_types(x_TH.dtype, torch.float32)
        bias_E = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x_TH.device.type, enabled=False):
            return functional.linear(x_TH.to(dtype), self.weight.to(dtype), bias_E)

    def _choose(self, choice_TE: Tensor) -> Tensor:
        if self.correction_bias is not None:
            choice_TE = choice_TE + self.correction_bias
        if self.config.num_groups > 1:
            choice_TE = choice_TE.masked_fill(~self._in_top_groups(choice_TE), -torch.inf)
        return choice_TE.topk(self.config.top_k, dim=-1).indices

    def _in_top_groups(self, choice_TE: Tensor) -> Tensor:
        """Return a mask [T, E] of the experts of each token's best groups."""
        G, E = self.config.num_groups, self.config.num_experts
        choice_TGe = choice_TE.view(len(choice_TE), G, E // G)
        best = 2 if self.config.group_score == "top2" else 1
        score_TG = choice_TGe.topk(best, dim=-1).values.sum(-1)
        groups = score_TG.topk(self.config.top_groups, dim=-1).indices
        mask_TG = torch.zeros_like(score_TG, dtype=torch.bool).scatter_(1, groups, True)
        return mask_TG.repeat_interleave(E // G, dim=1)

    def _weigh(self, logits_TE: Tensor, scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
        if self.config.softmax_after_top_k:
            weights_TK = logits_TE.gather(1, ids_TK).softmax(-1)
        else:
            weights_TK = scores_TE.gather(1, ids_TK)
            if self.config.normalise:
                weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + TINY)
        return weights_TK if self.config.scale == 1.0 else weights_TK * self.config.scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        bias_E = self.correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch ships it without types
        if bias_E is not None and self.correction_bias is not None and self.correction_bias.dtype.itemsize < 4:
            self.correction_bias = bias_E.to(self.correction_bias.device)
        return self

    def extra_repr(self) -> str:
        """Return the configuration for print()."""
        return f"hidden={self.weight.shape[1]}, {self.config}"
