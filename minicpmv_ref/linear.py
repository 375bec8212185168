"""A matrix product that is fast on a CPU, and when a faster way may be taken at all.

Left alone, torch multiplies float32 with MKL, which takes twice as long as oneDNN on processors of AMD.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook


class Linear(nn.Linear):
    """torch's own layer, which multiplies by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this kind and its forward() all that a call of it runs.

    Only then may its weights be used without a call: wrappers (LoRA, a quantized layer, hooks) would be bypassed.

    Example:
        >>> is_plain(nn.Linear(2, 2), nn.Linear), is_plain(Linear(2, 2), nn.Linear)
        (True, False)
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    # Subtle: some libraries hook into a single module by an attribute `forward`, which hides that of its class.
    return type(module) is kind and not hooks and "forward" not in module.__dict__ and not _has_any_global_hook()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias, as F.linear; for float32 inference on a CPU it goes through oneDNN.

    Example:
        >>> linear(torch.ones(200, 3), torch.ones(2, 3)).sum()
        tensor(1200.)
    """
    if suits_onednn(x, weight):
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return F.linear(x, weight, bias)


def suits_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `linear` takes the other way: float32 on a CPU, no gradient wanted, and enough rows to be worth it."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False  # first of all: torch.compile must not see that the number of rows matters below
    if type(weight) not in (torch.Tensor, nn.Parameter):
        return False  # a quantized tensor brings its own way to multiply
    fits = x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return fits and x.shape[:-1].numel() >= 128
