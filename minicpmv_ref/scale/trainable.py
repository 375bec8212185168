"""What learns in a model, with or without adapters, and what its training takes."""

from __future__ import annotations

from torch import nn

from ..counts import state_bytes
from ..inputs.checks import check_type
from ..model import MiniCPMV


def learning(model: MiniCPMV) -> dict[str, tuple[int, int]]:
    """Count the parameters of each part: those that learn, and all.

    Args:
        model: with or without adapters.

    Returns:
        {part: (learning, all)}. "frozen copies" are what `peft` keeps of modules that learn in full.

    Example:
        >>> from minicpmv_ref.scale.lora import add_lora
        >>> counts = learning(add_lora(MiniCPMV.from_pretrained("nano"), rank=4, modules_to_save=()))
        >>> counts["adapters"], counts["resampler"][0]
        ((28672, 28672), 0)
    """
    check_type("model", model, nn.Module)
    counts = dict.fromkeys(("vpm", "resampler", "embed_tokens", "llm", "adapters", "frozen copies"), (0, 0))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            part = "adapters"
        elif ".original_module." in name:
            part = "frozen copies"
        else:
            part = "embed_tokens" if "embed_tokens" in name else name.split(".")[0]
        some, total = counts[part]
        counts[part] = some + parameter.numel() * parameter.requires_grad, total + parameter.numel()
    return counts


def training_bytes(model: MiniCPMV) -> dict[str, int]:
    """Estimate what training takes whatever the batch: weights, gradients, and AdamW's two means of each gradient.

    Args:
        model: with or without adapters; its `requires_grad` says what learns.

    Returns:
        {"weights": bytes, "gradients": bytes, "optimizer": bytes}.

    Example:
        >>> from minicpmv_ref.scale.lora import add_lora
        >>> model = MiniCPMV.from_pretrained("nano")
        >>> full, lora = training_bytes(model), training_bytes(add_lora(model, rank=4, modules_to_save=()))
        >>> full["optimizer"] == 2 * full["weights"], lora["optimizer"] * 50 < full["optimizer"]
        (True, True)
    """
    check_type("model", model, nn.Module)
    return state_bytes(model.parameters())


def table(model: MiniCPMV) -> str:
    """Write `learning` and `training_bytes` as text.

    Example:
        >>> from minicpmv_ref.scale.lora import add_lora
        >>> model = add_lora(MiniCPMV.from_pretrained("nano"), rank=4, modules_to_save=("resampler",))
        >>> print(table(model).splitlines()[0])
        part                 learn          all
    """
    rows = [("part", "learn", "all")]
    counts = learning(model) | {"together": tuple(map(sum, zip(*learning(model).values())))}
    rows += [(part, f"{some:,}", f"{total:,}") for part, (some, total) in counts.items() if total]
    lines = [f"{part:<14}{some:>12} {total:>12}" for part, some, total in rows]
    lines += [f"{what:<14}{size / 1e6:>9.2f} MB" for what, size in training_bytes(model).items()]
    return "\n".join(lines)
