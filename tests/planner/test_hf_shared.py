"""Shared experts, and rows of routed ones that are narrower than those of the model: sizes against checkpoints."""

import pytest

from planner.hf_config import parse_config
from planner.model import build_model
from tests.planner.test_hf_families import FAMILIES


def test_experts_of_kimi_k3_are_the_tensors_of_its_checkpoint():
    """A w1 and a w3 of [3072, 1792] bytes and [3072, 112] scales, a w2 of [3584, 1536] and [3584, 96]; of all bytes."""
    model = build_model(
        {"name": "k3"} | parse_config(FAMILIES["Kimi-K3 (nested, narrower rows, mxfp4)"][0], "k3"), "k3"
    )
    assert model.expert_bytes == 2 * 3072 * (1792 + 112) + 3584 * (1536 + 96)
    assert 0.9 < model.expert_bytes * model.experts * len(model.moe_layers) / 1_560_936_091_448 < 0.95
    assert model.hidden * model.shared_intermediate == 7168 * 6144  # each of the three shared matrices


def test_shared_experts_beside_latent_ones_see_rows_of_the_whole_width():
    """Nemotron-3-Super: two matrices of 4096 x 5376 beside routed ones of 1024 x 2688."""
    config = FAMILIES["Nemotron-3-Nano-30B (two matrices, layers by letters)"][0]
    latent = {"hidden_size": 4096, "moe_latent_size": 1024, "moe_shared_expert_intermediate_size": 5376}
    fields = parse_config(config | latent, "config.json")
    assert fields["hidden"] == 1024
    assert 2 * fields["hidden"] * fields["shared_intermediate"] == 2 * 4096 * 5376


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({"n_shared_experts": 2, "shared_experts_intermediate_size": 700}, 1400),  # dots3: so many of that width
        ({"n_shared_experts": 2}, 2 * 1408),
        ({"n_shared_experts": 2, "share_expert_dims": 0}, 0),
        ({}, 2 * 1408),
    ],
)
def test_widths_of_shared_experts(fields, width):
    assert parse_config(FAMILIES["dots.llm1"][0] | fields, "config.json")["shared_intermediate"] == width
