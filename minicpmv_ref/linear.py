"""A matrix product that is fast on a CPU, and when a faster way may be taken at all.

Left alone, torch multiplies float32 with MKL. On processors of AMD it takes twice as long as oneDNN, on those of Intel
a fifth less: so both are tried once.
"""

from __future__ import annotations

import timeit
from functools import cache

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
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    # Subtle: some libraries hook into a single module by an attribute `forward`, which hides that of its class.
    return type(module) is kind and not hooks and "forward" not in module.__dict__ and not _has_any_global_hook()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias, as F.linear; float32 inference on a CPU goes through oneDNN where that is quicker."""
    if x.dtype == torch.float32 and suits_onednn(x, weight) and _onednn_is_quicker():
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return F.linear(x, weight, bias)


def suits_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN may multiply: on a CPU, in a dtype it has, no gradient wanted, and enough rows to be worth it."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False  # first of all: torch.compile must not see that the number of rows matters below
    if type(weight) not in (torch.Tensor, nn.Parameter):
        return False  # a quantized tensor brings its own way to multiply
    fits = x.is_cpu and x.dtype == weight.dtype and _onednn_has(x.dtype)
    return fits and x.shape[:-1].numel() >= 128


@cache
def _onednn_has(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:  # older processors have none; where torch cannot tell, it multiplies itself
        return getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


@cache
def _onednn_is_quicker() -> bool:
    x, weight = (torch.ones(rows, 256, dtype=torch.float32, device="cpu") for rows in (256, 512))
    return is_quicker(lambda: F.linear(x.to_mkldnn(), weight).to_dense(), lambda: F.linear(x, weight))


def is_quicker(way, usual) -> bool:
    """Whether a function clearly beats the usual one, best of 9 calls each: near a tie, every run takes the same."""
    return min(timeit.repeat(way, number=1, repeat=9)) < 0.75 * min(timeit.repeat(usual, number=1, repeat=9))
