"""What the verbs load when the user names all, a part, or nothing."""

from __future__ import annotations

import pytest

from app.inputs import load_inputs
from topologies import BadInput


def test_with_nothing_named_the_bundled_example_is_whole() -> None:
    inputs = load_inputs(None, None, None)
    assert (inputs.model.experts, inputs.cluster.num_ranks) == (inputs.routing.num_experts, 16)


@pytest.mark.parametrize("model", ["", "olmoe-1b-7b"])
def test_an_empty_name_is_a_mistake_and_never_the_bundled_example(model: str) -> None:
    with pytest.raises(BadInput, match=r"unknown model ''|is a directory"):
        load_inputs(model, "hgx-h100:1", "")
    with pytest.raises(BadInput, match=r"--routing is missing"):
        load_inputs(model, "hgx-h100:1", None)
