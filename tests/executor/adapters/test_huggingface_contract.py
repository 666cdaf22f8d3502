"""Which blocks of transformers are known, by what they do and not by name; recording, timing; what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from executor.adapters.huggingface import hugging_face_layer
from executor.measure import PhaseClock
from executor.moe_layers import check_all_found, find_moe_layers
from executor.record import RoutingRecorder
from tests.executor.adapters.families import EXPERTS, FAMILIES, batches, forward, model_of
from topologies import BadInput

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("family", FAMILIES)
def test_found_as_it_is(family: str) -> None:
    """Finding changes nothing, and tells the sizes."""
    model = model_of(family, torch.bfloat16)
    layers = find_moe_layers(model)
    check_all_found(model, list(layers))
    first = 1 if family == "deepseek_v3" else 0
    assert list(layers) == [f"model.layers.{first + i}.mlp" for i in range(2)]
    for layer in layers.values():
        assert (layer.num_experts, layer.top_k, layer.held.hidden, layer.held.intermediate) == (EXPERTS, 2, 8, 12)
        assert layer.misfit == ""
    assert not any("forward" in vars(module) for module in model.modules())


def experts_of(family: str, experts: str, config: str) -> nn.Module:
    """Return a block with a family's experts at their default size, without memory."""
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    settings = getattr(importlib.import_module(f"transformers.models.{family}.configuration_{family}"), config)
    block = nn.Module()
    with torch.device("meta"):
        block.experts = getattr(modeling, experts)(settings())
    return block


@pytest.mark.parametrize(
    ("family", "prefix", "problem"),
    [
        ("nemotron_h", "NemotronH", ""),  # no gate
        ("openai_privacy_filter", "OpenAIPrivacyFilter", ""),  # transposed, gate before up, biases
        ("deepseek_v4", "DeepseekV4", ""),  # clamps
        ("jamba", "Jamba", ""),
        ("longcat_flash", "LongcatFlash", "its packed parameters have 512 and 768 experts"),
        ("llama4", "Llama4Text", "its experts cannot be called with (hidden_states, ids, weights)"),
    ],
)
def test_other_families(family: str, prefix: str, problem: str) -> None:
    layer = hugging_face_layer(experts_of(family, f"{prefix}Experts", f"{prefix}Config"))
    assert layer is not None
    assert layer.misfit.startswith(problem)
    assert bool(layer.misfit) == bool(problem)


def doubled(experts: Any) -> None:
    theirs = type(experts).forward

    class Doubled(type(experts)):  # type: ignore[misc]  # the class is only known here
        def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            return 2 * theirs(self, x, ids, weights)

    experts.__class__ = Doubled
    experts.config._experts_implementation = "eager"


def identity(experts: Any) -> None:
    """Give the first id that is no expert's a meaning."""
    theirs = type(experts).forward

    class WithIdentity(type(experts)):  # type: ignore[misc]  # the class is only known here
        def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            y: Tensor = theirs(self, x, ids.remainder(EXPERTS), weights * (ids < EXPERTS))
            return y + x * (weights * (ids == EXPERTS)).sum(1, keepdim=True)

    experts.__class__ = WithIdentity


def quantised(experts: Any) -> None:
    experts.down_proj = nn.Parameter(torch.zeros(experts.down_proj.shape, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda experts: setattr(experts, "_is_expert_parallel", True), "its experts are expert-parallel already"),
        (lambda experts: setattr(experts, "forward", print), "the forward of its experts has been replaced already"),
        (lambda experts: setattr(experts, "norm", nn.RMSNorm(8)), "its experts share norm.weight"),
        (quantised, "down_proj is stored as torch.int8"),
        (doubled, "its experts compute something else than gate, up and down matrices say"),
        (identity, "its experts give the id 8 a meaning of its own"),
    ],
)
def test_what_does_not_fit_says_why(change: Callable[[Any], None], problem: str) -> None:
    model: Any = model_of("mixtral", torch.float32)
    change(model.model.layers[1].mlp.experts)
    first, second = find_moe_layers(model).values()
    assert first.misfit == ""
    assert second.misfit.startswith(problem)


def test_experts_of_another_form_are_named() -> None:
    model: Any = model_of("mixtral", torch.float32)
    model.model.layers[1].mlp.experts = nn.ModuleDict({"expert_0": nn.Linear(8, 8)})
    with pytest.raises(BadInput, match=r"model.layers.1.mlp: its experts \(ModuleDict\) are of no form"):
        check_all_found(model, list(find_moe_layers(model)))
    with pytest.raises(BadInput, match="the model has no MoE layer"):
        check_all_found(nn.Linear(1, 1), [])


def test_recording_and_timing_leave_the_outputs_as_they_are(tmp_path: Any) -> None:
    """Counts are those of the routers themselves; the phases after routing are timed, forward and backward."""
    model: Any = model_of("deepseek_v3", torch.float64)
    ids = batches(1, 4)[0]
    chosen: list[Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _module, _args, out: chosen.append(out[2]))
        for layer in model.model.layers[1:]
    ]
    wanted = forward(model, "deepseek_v3", ids).logits
    for hook in hooks:
        hook.remove()
    layers, recorder = find_moe_layers(model), RoutingRecorder(EXPERTS)
    recorder.attach({1 + i: layer for i, layer in enumerate(layers.values())})
    clock = PhaseClock()
    next(iter(layers.values())).clock = clock
    out = forward(model, "deepseek_v3", ids)
    out.loss.backward()
    torch.testing.assert_close(out.logits, wanted, rtol=1e-12, atol=1e-12)
    for record, routed in zip(recorder.layers.values(), chosen, strict=True):
        assert torch.equal(record.total_E(), torch.bincount(routed.flatten(), minlength=EXPERTS))
    recorder.save(tmp_path / "trace.npz")
    phases = clock.spreads()
    assert set(phases[False]) == set(phases[True]) == {"dispatch", "compute", "combine"}


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_an_id_that_is_no_experts_is_skipped(family: str) -> None:
    """transformers marks entries to skip with the number of experts; ours masks them."""
    model = model_of(family, torch.float64)
    (name, layer), *_ = find_moe_layers(model).items()
    experts = model.get_submodule(name).experts
    x, weights = torch.randn(6, 8, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)
    ids = torch.tensor([[0, 1], [8, 3], [2, 8], [8, 8], [7, 7], [5, 4]])
    wanted = experts(x, ids.clamp(max=EXPERTS - 1), weights * (ids < EXPERTS))  # 5.17 knows no such id
    layer.recorder = None  # from here on the experts run our way
    assert "forward" in vars(experts)
    torch.testing.assert_close(experts(x, ids, weights), wanted, rtol=1e-12, atol=1e-12)
