"""shadow_parameters: while a module runs, the names of its parameters mean other tensors, made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def shadow_parameters(module: nn.Module, made: Callable[[str, nn.Parameter], Tensor]) -> None:
    """Let the module's own forward see `made(name, parameter)`; gradients flow through to the parameters.

    After FSDP2 has brought the parameters together, and again where activations are computed anew.
    """

    def shadow(module: nn.Module, _args: Any) -> None:
        for name, param in module.named_parameters(recurse=False):
            vars(module)[name] = made(name, param)

    module.register_forward_pre_hook(shadow)
    module.register_forward_hook(_unshadow, always_call=True)


def _unshadow(module: nn.Module, _args: Any, _output: Any) -> None:
    for name, _ in module.named_parameters(recurse=False):
        vars(module).pop(name, None)
