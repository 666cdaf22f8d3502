"""Kernels for sums of rows, on a GPU or by Triton's interpreter, against sums of torch in fp64.

rows  0  1  2  3  4      bags  {1 4}  {}  {0 2}  {3}      columns: more than one block, and not a multiple of it
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from executor.exchange import row_sums
from executor.exchange.row_sums import Bags, spread_rows, sum_rows

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
COMPARE = """
import sys, torch
from executor.exchange import row_kernels, row_sums
from executor.exchange.row_sums import Bags, sum_rows, spread_rows

torch.set_default_device(sys.argv[1])
row_kernels.BLOCK = 64
if sys.argv[1] == "cpu":
    assert type(row_kernels._sum_rows).__name__ == "InterpretedFunction"
    row_sums.has_kernels = lambda y: y.dtype != torch.float64
torch.manual_seed(0)
for bag_N, num_bags, hidden in (
    ([2, 0, 2, 3, 0], 4, 100), ([0], 1, 64), ([1, 1, 1], 5, 8), ([], 3, 70), (torch.randint(9, (50,)).tolist(), 9, 130)
):
    bags = Bags.of(torch.tensor(bag_N, dtype=torch.int64), num_bags)
    for dtype, weight_type, tolerance in (
        (torch.float32, torch.float32, 1e-5), (torch.bfloat16, torch.float32, 1e-2), (torch.bfloat16, None, 1e-2)
    ):
        y_NH = torch.randn(len(bag_N), hidden).to(dtype).requires_grad_()
        weight_N = None if weight_type is None else torch.rand(len(bag_N), dtype=weight_type).requires_grad_()
        inputs = [y_NH] if weight_N is None else [y_NH, weight_N]
        doubles = [one.detach().double().requires_grad_() for one in inputs]
        ours, theirs = sum_rows(y_NH, bags, *inputs[1:]), sum_rows(doubles[0], bags, *doubles[1:])
        grad = torch.randn(theirs.shape).to(dtype)
        assert ours.dtype == dtype and ours.shape == (num_bags, hidden)
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
        again = sum_rows(y_NH, bags, *inputs[1:])
        assert torch.equal(ours, again)
        found, wanted = torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, doubles, grad.double())
        for mine, right, given in zip(found, wanted, inputs, strict=True):
            assert mine.dtype == given.dtype
            torch.testing.assert_close(mine.double(), right, rtol=tolerance, atol=10 * tolerance)
        x_BH = torch.randn(num_bags, hidden).to(dtype).requires_grad_()
        (mine,) = torch.autograd.grad(spread_rows(x_BH, bags), x_BH, y_NH.detach())
        assert torch.equal(mine, sum_rows(y_NH.detach(), bags))
print("compared")
"""


@needs_triton
def test_equal_to_torch_in_the_interpreter() -> None:
    assert _printed(COMPARE, "cpu", interpret=True) == "compared"


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_equal_to_torch_on_the_gpu() -> None:
    assert _printed(COMPARE, "cuda", interpret=False) == "compared"


COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from executor.exchange import row_kernels

def ptx(kernel, signature, constants):
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names) if signature.get(name, "")[:1] == "*" or name == "hidden"
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    types = signature | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=places, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

rows = {"rows": "*bf16", "row_of": "*i64", "first_of": "*i64", "weight_of": "*fp32", "sums": "*bf16"}
found = ptx(row_kernels._sum_rows, rows | {"bags": "i32", "entries": "i32", "hidden": "i32"},
            {"weighted": True, "block": row_kernels.BLOCK})
assert re.search(r"ld\\.global\\S*\\.v4", found) and re.search(r"st\\.global\\S*\\.v4", found), found
assert "atom" not in found and "red.global" not in found
back = {"grad_sums": "*bf16", "rows": "*bf16", "row_of": "*i64", "bag_of": "*i64", "weight_of": "*fp32",
        "grad_rows": "*bf16", "grad_weights": "*fp32", "hidden": "i32"}
found = ptx(row_kernels._sum_rows_backward, back, {"block": row_kernels.BLOCK})
assert re.search(r"ld\\.global\\S*\\.v4", found) and re.search(r"st\\.global\\S*\\.v4", found), found
print("compiled")
"""


@needs_triton
def test_compile_for_hopper_with_whole_words() -> None:
    """Rows of bf16 are read and written 16 bytes at a time, without atomics; needs Triton's compiler, not a GPU."""
    assert _printed(COMPILE, interpret=False) == "compiled"


def _printed(script: str, *arguments: str, interpret: bool) -> str:
    """Run a script in a process of its own: the interpreter is chosen when the kernels are imported."""
    env = os.environ | {"TRITON_INTERPRET": str(int(interpret))}
    command = [sys.executable, "-c", script, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()


def test_bags_divide_the_rows() -> None:
    """The drawing of `Bags`."""
    bags = Bags.of(torch.tensor([1, 0, 1, 2, 0]), 3)
    assert bags.row_N.tolist() == [1, 4, 0, 2, 3]
    assert bags.first_B.tolist() == [0, 2, 4]


def test_spread_and_sum_are_each_others_gradient() -> None:
    """<spread(x), y> = <x, sum(y)> for all x and y, empty bags included."""
    bags = Bags.of(torch.tensor([2, 0, 2, 3, 0]), 5)
    x_BH, y_NH = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    left, right = (spread_rows(x_BH, bags) * y_NH).sum(), (x_BH * sum_rows(y_NH, bags)).sum()
    torch.testing.assert_close(left, right)
    assert torch.autograd.gradcheck(lambda x: spread_rows(x, bags), x_BH.requires_grad_())


def test_torch_sums_where_there_is_no_gpu() -> None:
    """Kernels are for CUDA alone."""
    assert not row_sums.has_kernels(torch.zeros(1, 1))
