"""The references against loops over tokens, written once more from the definitions."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.reference import dense_moe, expert_parallel_dispatch
from topologies import BadInput

# ---- the dense layer


def test_dense_layer_by_hand():
    """H = I = 1, two experts with gelu(x * a) * b; token 0 visits both, token 1 one of them and a masked entry.

    token   ids       weights
      0    [0, 1]   [0.25, 0.75]
      1    [1, -1]  [0.50, 9.00]
    """
    x_TH = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    first = torch.tensor([[[1.0]], [[-1.0]]], dtype=torch.float64)
    second = torch.tensor([[[3.0]], [[5.0]]], dtype=torch.float64)
    ids = torch.tensor([[0, 1], [1, -1]])
    weights = torch.tensor([[0.25, 0.75], [0.5, 9.0]], dtype=torch.float64)
    phi = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))  # noqa: E731  # the normal distribution
    expected = [0.25 * 3 * phi(1) - 0.75 * 5 * phi(-1), -0.5 * 5 * 2 * phi(-2)]
    assert dense_moe(x_TH, ids, weights, first, second, "gelu").flatten().tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("activation", ["swiglu", "clamped-swiglu"])
def test_dense_layer_against_a_loop_over_pairs(activation):
    T, K, E, H, I = 5, 3, 4, 6, 7  # noqa: E741  # the legend's letter
    rng = np.random.default_rng(0)
    x, gate_up, down = rng.normal(size=(T, H)), rng.normal(size=(E, 2 * I, H)) * 3, rng.normal(size=(E, H, I))
    bias_1, bias_2 = rng.normal(size=(E, 2 * I)), rng.normal(size=(E, H))
    ids, weights = rng.integers(-1, E, size=(T, K)), rng.random((T, K))
    expected = np.zeros((T, H))
    for t in range(T):
        for e, weight in zip(ids[t], weights[t], strict=True):
            if e < 0:
                continue
            inner = gate_up[e] @ x[t] + bias_1[e]
            gate, up = inner[:I], inner[I:]
            if activation == "swiglu":
                inner = gate / (1 + np.exp(-gate)) * up
            else:
                gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
                inner = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            expected[t] += weight * (down[e] @ inner + bias_2[e])
    tensors = [torch.from_numpy(a) for a in (x, ids, weights, gate_up, down)]
    y = dense_moe(*tensors, activation, torch.from_numpy(bias_1), torch.from_numpy(bias_2))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)


# ---- expert_parallel_dispatch


def test_dispatch_by_hand():
    """Two ranks with one expert each; expert 0 doubles, expert 1 swaps the columns.

    tokens  [1, 2] [3, 4] [5, 6]
    expert     0      1      0
    """
    tokens, routing = [[1, 2], [3, 4], [5, 6]], [0, 1, 0]
    double, swap = [[2, 0], [0, 2]], [[0, 1], [1, 0]]
    assert expert_parallel_dispatch(tokens, routing, [double], 0, 2).tolist() == [[2, 4], [0, 0], [10, 12]]
    assert expert_parallel_dispatch(tokens, routing, [swap], 1, 2).tolist() == [[0, 0], [4, 3], [0, 0]]


def test_a_token_is_a_row_vector():
    W = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert expert_parallel_dispatch([[1.0, 0.0]], [0], [W], 0, 1).tolist() == [[1.0, 2.0]]


@settings(max_examples=50, deadline=None)
@given(
    world_size=st.integers(1, 5),
    local=st.integers(1, 3),
    N=st.integers(0, 20),
    d=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_sum_over_ranks_is_the_dense_layer(world_size, local, N, d, seed):
    rng = np.random.default_rng(seed)
    tokens, W = rng.normal(size=(N, d)), rng.normal(size=(world_size * local, d, d))
    routing = rng.integers(0, world_size * local, N)
    parts = [
        expert_parallel_dispatch(tokens, routing, list(W[r * local : (r + 1) * local]), r, world_size)
        for r in range(world_size)
    ]
    dense = np.einsum("ni,nij->nj", tokens, W[routing])
    np.testing.assert_allclose(sum(parts), dense, rtol=1e-12, atol=1e-12)
    assert all(part.shape == (N, d) for part in parts)
    owners = sum((np.any(part != 0, axis=1)).astype(int) for part in parts)
    assert np.all(owners <= 1), "a token is computed on one rank only"


def test_types_are_kept():
    eye = np.eye(2, dtype=np.float32)
    assert expert_parallel_dispatch(np.ones((3, 2), np.float32), [0, 0, 0], [eye], 0, 1).dtype == np.float32
    assert expert_parallel_dispatch(np.ones((3, 2), np.float32), [0, 0, 0], [eye.astype(float)], 0, 1).dtype == float


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [0, 0], [EYE], 0, 1), r"tokens has shape \(2,\), not \(N, d\)"),
        (([[1.0, 2.0]], [0, 0], [EYE], 0, 1), r"routing has shape \(2,\), not \(N,\) = \(1,\)"),
        (([[1.0, 2.0]], [0], [np.eye(3)], 0, 1), r"expert_Ws has shape \(1, 3, 3\).* d = 2"),
        (([[1.0, 2.0]], [0], [EYE, np.eye(3)], 0, 1), "not matrices of one shape"),
        (([[1.0, 2.0]], [0], [], 0, 1), r"expert_Ws has shape \(0,\)"),
        (([[1.0, 2.0]], [0], [EYE], 2, 2), r"rank 2 is not in 0..world_size-1 \(world_size is 2\)"),
        (([[1.0, 2.0]], [0], [EYE], 0, 0), "world_size is 0"),
        (([[1.0, 2.0]], [2], [EYE], 0, 2), r"routing\[0\] is expert 2, not in 0..1 .*world_size is 2"),
        (([[1.0, 2.0]], [-1], [EYE], 0, 2), r"routing\[0\] is expert -1"),
        (([[1.0, 2.0]], [0.0], [EYE], 0, 2), "routing is of type float64; expert ids are integers"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(BadInput, match=message):
        expert_parallel_dispatch(*arguments)


def test_unknown_activation_is_named():
    one = torch.ones(1, 1)
    with pytest.raises(BadInput, match="unknown activation 'swigl'; nearest: swiglu"):
        dense_moe(one, torch.zeros(1, 1).long(), one, torch.ones(1, 2, 1), torch.ones(1, 1, 1), "swigl")


def test_the_numpy_function_needs_no_torch():
    """The file itself imports no torch; what the package imports is the package's affair."""
    code = (
        "import importlib.util, sys; import topologies.errors;"
        "spec = importlib.util.find_spec('topologies');"
        f"spec = importlib.util.spec_from_file_location('reference', {str(_path())!r});"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "assert 'torch' not in sys.modules; print(module.expert_parallel_dispatch([[1]], [0], [[[7]]], 0, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[[7]]"


def _path():
    import executor.reference  # noqa: PLC0415  # for its place only

    return executor.reference.__file__
