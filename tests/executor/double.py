"""Models in fp64 throughout: transformers computes softmax, routers and norms in fp32 whatever the model's type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def double_stays_double() -> Iterator[None]:
    """Let no call turn fp64 into fp32: after 20 steps its rounding could not be told from a small mistake of ours."""
    softmax, methods = functional.softmax, {name: getattr(Tensor, name) for name in ("to", "type", "float")}

    def double_softmax(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return softmax(x, *args, dtype=torch.float64 if x.dtype == torch.float64 else dtype, **options)

    def keeping(name: str) -> Any:
        def method(x: Tensor, *args: Any, **options: Any) -> Any:
            to_single = name == "float" or torch.float32 in (*args, *options.values())
            return x if x.dtype == torch.float64 and to_single else methods[name](x, *args, **options)

        return method

    try:
        functional.softmax = double_softmax  # type: ignore[assignment]  # the same function, more exact
        for name in methods:
            setattr(Tensor, name, keeping(name))
        yield
    finally:
        functional.softmax = softmax  # type: ignore[assignment]  # as above
        for name, method in methods.items():
            setattr(Tensor, name, method)
