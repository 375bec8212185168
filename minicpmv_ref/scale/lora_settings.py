"""The settings of a LoRA adapter, checked: those of `add_lora`, and those of an adapter_config.json from a stranger."""

from __future__ import annotations

import json
import re
from pathlib import Path

from peft import LoraConfig

from ..inputs.checks import LIMITS, check_choice, check_int, check_list, check_number, check_type, printable, shown
from ..inputs.files import read_json

ADAPTED = r"llm\..*layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"
MODULES_TO_SAVE = ("embed_tokens", "resampler", "vpm")  # what the official script trains in full beside the adapters


def named(path: Path) -> str:
    """A path for messages: short, and without what a terminal would obey."""
    return printable(str(path)[:300])


# Fields of adapter_config.json that say what the adapter computes, and those that say where it came from. A file that
# sets any other is refused: peft would import a module that a stranger's file may name, or change the base's weights.
MEANING = {"r", "lora_alpha", "target_modules", "modules_to_save", "lora_dropout", "use_rslora"}
ORIGIN = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type", "peft_version"}


def read_settings(file: Path) -> LoraConfig:
    """Read and check the settings of a saved adapter."""
    fields, where = read_json(file), named(file)
    if fields.pop("peft_type", None) != "LORA":
        raise ValueError(f"{where} is not of a LoRA adapter")
    plain = json.loads(json.dumps(LoraConfig().to_dict(), default=str))
    odd = sorted(k for k in fields.keys() - MEANING - ORIGIN if fields[k] != plain.get(k))
    if odd:
        raise ValueError(f"{where}: {printable(odd[0])} = {shown(fields[odd[0]])} is not supported")
    missing = [key for key in ("r", "lora_alpha", "target_modules") if key not in fields]
    if missing:
        raise ValueError(f"{where} does not say {missing[0]}")
    try:
        return lora_settings(**{key: fields[key] for key in MEANING & fields.keys()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def lora_settings(
    r, lora_alpha, target_modules, modules_to_save=None, lora_dropout=0.0, use_rslora=False
) -> LoraConfig:
    """Check the settings of an adapter, from a caller or from a stranger's file."""
    r = check_int("r (the rank, a positive number)", r, most=LIMITS["lora_rank"])
    name = "lora_alpha (divided by the rank it is the scale)"
    alpha = check_number(name, lora_alpha, above=0, most=LIMITS["lora_alpha"])
    for name in check_list("modules_to_save", modules_to_save or [], str):
        check_choice("each of modules_to_save", name, (*MODULES_TO_SAVE, "lm_head"))
    return LoraConfig(
        r=r,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        target_modules=_targets(target_modules),
        modules_to_save=modules_to_save or None,
        lora_dropout=check_number("lora_dropout", lora_dropout, least=0, most=0.99),
        use_rslora=check_type("use_rslora", use_rslora, bool),
    )


# What an expression over module names may consist of: letters, dots, digits, any text, a choice of names. Nothing
# repeats inside of what repeats, so a name is matched or not in a moment.
_PART = r"\w|\.\*|\\?\.|\\d\+|\(\?=\\\.\)|\((?:\?:)?\w[\w.]*(?:\|\w[\w.]*)*\)"
_EXPRESSION = re.compile(rf"\^?(?:(?:{_PART})+|\((?:{_PART})+\))\$?", re.ASCII)


def _targets(targets: str | list[str]) -> str | list[str]:
    """The layers to adapt: names (a name also stands for all that end with it), "all-linear", or an expression."""
    if isinstance(targets, str):
        few = len(targets) <= 500 and all(targets.count(c) <= most for c, most in (("*", 2), ("(", 3), ("|", 30)))
        if targets != "all-linear" and not (few and _EXPRESSION.fullmatch(targets)):
            allowed = f"a list of names, all-linear, or a simple expression such as {ADAPTED}"
            raise ValueError(f"target_modules must be {allowed}; got {shown(targets)}")
        return targets
    names = check_list("target_modules", targets, str, empty=False)
    if len(names) > LIMITS["lora_targets"]:
        raise ValueError(f"target_modules must be at most {LIMITS['lora_targets']:,} names, got {len(names):,}")
    odd = [name for name in names if not re.fullmatch(r"[\w.]+", name, re.ASCII)]
    if odd:
        raise ValueError(f"target_modules must be names of modules, got {shown(odd[0])}")
    return names
