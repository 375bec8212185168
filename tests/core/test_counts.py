"""The formulas of counts.py against real modules: parameters and bytes on the meta device, FLOPs by PyTorch."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minicpmv_ref.config import PRESETS, nano, v2_0, v2_6
from minicpmv_ref.counts import (
    PARTS,
    Workload,
    flops,
    flops_by_part,
    kv_cache_numbers,
    parameters,
    planned_state_bytes,
    state_bytes,
    trainable_parameters,
)
from minicpmv_ref.model import MiniCPMV, build_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PUBLISHED = {"v2_0": 3_434_965_792, "v2_5": 8_537_092_336, "v2_6": 8_099_175_152}
PATTERNS = [(), ("resampler",), ("vpm",), ("vpm", "resampler"), ("llm",), PARTS]


@pytest.fixture(scope="module", params=PRESETS)
def preset(request):
    """A config, its model on the meta device, and which of its parameters never learn."""
    with torch.device("meta"):
        model = MiniCPMV(PRESETS[request.param])
    return request.param, PRESETS[request.param], model, [p for p in model.parameters() if not p.requires_grad]


def test_parameters(preset):
    name, config, model, frozen = preset
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
    assert parameters(config) == counts
    assert sum(counts.values()) == PUBLISHED.get(name, sum(counts.values()))
    never = sum(p.numel() for p in frozen)
    assert trainable_parameters(config) == counts | {"resampler": counts["resampler"] - never}
    assert (never > 0) == (config == v2_0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_a_config_are_those_of_its_parameters(preset, dtype):
    _, config, model, frozen = preset
    model.to(dtype)
    try:
        for learning in PATTERNS:
            for part in PARTS:
                getattr(model, part).requires_grad_(part in learning)
            for parameter in frozen:
                parameter.requires_grad_(False)
            state, plan = state_bytes(model.parameters()), planned_state_bytes(config, learning, dtype.itemsize)
            assert plan == state
            # Mixed precision: a float32 copy of what learns, and AdamW's two means of that copy.
            copies = state_bytes(p.float() for p in model.parameters() if p.requires_grad)
            mixed = planned_state_bytes(config, learning, dtype.itemsize, mixed=True)
            assert mixed == state | {"optimizer": copies["weights"] + copies["optimizer"]}
    finally:
        model.requires_grad_(True)


def test_the_kv_cache_is_that_of_transformers(preset):
    llm, tokens = preset[1].llm, 160
    with torch.device("meta"):
        model = build_llm(replace(llm, vocab_size=8)).to(torch.bfloat16)  # no words are needed, only layers
        prompt = torch.empty(2, tokens, llm.hidden_size, dtype=torch.bfloat16)
        mask = torch.empty(2, 1, tokens, tokens, dtype=torch.bool)
    with torch.no_grad():
        layers = model.model(inputs_embeds=prompt, attention_mask=mask, use_cache=True).past_key_values.layers
    assert kv_cache_numbers(llm) * 2 * tokens == sum(t.numel() for each in layers for t in (each.keys, each.values))


@pytest.mark.parametrize("learning", PATTERNS, ids="+".join)
@pytest.mark.parametrize("name", PRESETS)
def test_flops_are_those_that_pytorch_counts(name, learning):
    """To the last one, forward and backward, of two samples with two views each. Attention is plain on that device."""
    full = PRESETS[name]
    config = replace(full, vision=replace(full.vision, layers=2), llm=replace(full.llm, num_hidden_layers=2))
    with torch.device("meta"):
        model = MiniCPMV(config)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    rows, cols, text, side = 3, 4, 10, config.vision.patch_size
    for part in PARTS:
        getattr(model, part).requires_grad_(part in learning)
    for parameter in frozen:
        parameter.requires_grad_(False)
    views = [torch.empty(3, side * rows, side * cols, device="meta") for _ in range(4)]
    with FlopCounterMode(display=False) as counter:
        visual = model.encode_images(views, [(rows, cols)] * 4).reshape(2, -1, config.llm.hidden_size)
        words = model.llm.get_input_embeddings()(torch.zeros(2, text, dtype=torch.long, device="meta"))
        # With a cache, transformers does not look for packed samples. On the meta device there is nothing to look at.
        logits = model.llm(inputs_embeds=torch.cat([visual, words], dim=1), use_cache=True).logits
        if learning:
            logits.sum().backward()
    length, patches = 2 * config.resampler.num_queries + text, rows * cols
    workload = Workload(2 * length, 2 * length, 2 * length**2, 4, 4 * patches, 4 * patches**2)
    assert flops(config, workload, learning) == counter.get_total_flops()


def test_flops_of_text_alone():
    text = Workload(tokens=10, supervised=2, token_pairs=100)
    assert flops(nano, text, ["vpm"]) == flops(nano, text, ["resampler"]) == flops(nano, text, [])  # no gradient at all
    c = nano.llm
    layer = 2 * c.hidden_size**2 + 2 * c.hidden_size * 128 + 3 * c.hidden_size * c.intermediate_size
    products = 10 * c.num_hidden_layers * layer + 2 * c.hidden_size * c.vocab_size
    assert flops(nano, text) == 6 * products + 3 * c.num_hidden_layers * 4 * 100 * c.hidden_size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parameters(v2_6.llm), "config must be MiniCPMVConfig"),
        (lambda: kv_cache_numbers(v2_6), "llm must be LLMConfig"),
        (lambda: flops({}, Workload(1, 1, 1)), "config must be"),
        (lambda: flops(nano, (1, 1, 1)), "workload must be"),
        (lambda: flops(nano, Workload(1.5, 1, 1)), "workload.tokens must be"),
        (lambda: flops(nano, Workload(1, 1, 1), "llm"), "learning must be"),
        (lambda: flops(nano, Workload(1, 1, 1), 3), "learning must be"),
        (lambda: flops_by_part(nano, Workload(1, 1, 1), ["lm"]), "learning must be"),
    ],
)
def test_a_wrong_type_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_negative_count_is_named():
    with pytest.raises(ValueError, match=r"^workload\.supervised must be") as refusal:
        flops(nano, Workload(1, -1, 1))
    assert not isinstance(refusal.value, TypeError)


def test_counting_needs_no_torch():
    code = (
        "import sys; from minicpmv_ref.counts import *; from minicpmv_ref.config import v2_6; parameters(v2_6); "
        "flops(v2_6, Workload(1, 1, 1)); print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
