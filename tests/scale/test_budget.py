"""What a step costs: FLOPs against PyTorch's counter, bytes against its profiler, and savings that change nothing."""

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from profiled import profiled_peak
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.counts import flops, parameters
from minicpmv_ref.learn.objectives import draw_samples, objective_for
from minicpmv_ref.learn.stages import PARTS, STAGES, freeze, stage_named, start
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.scale import budget as module
from minicpmv_ref.scale.budget import (
    Budget,
    budget,
    checkpointed,
    compile_layers,
    device_memory,
    mfu,
    peak_flops,
    workload_of,
)
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.parallel import LossModule, Processes, backward
from minicpmv_ref.scale.profiles import PROFILES, scaled
from minicpmv_ref.scale.steps import train_steps

pytestmark = pytest.mark.usefixtures("one_thread")
# Nano at half its width. Weights shrink with the square, so more of a step's bytes are those that have to be measured.
SMALL = replace(
    nano,
    vision=replace(nano.vision, width=64, mlp_width=160),
    resampler=replace(nano.resampler, width=128, kv_width=64),
    llm=replace(nano.llm, hidden_size=128, intermediate_size=256, num_key_value_heads=1),
)
PROCESSOR = Processor(Processor.from_pretrained("nano").tokenizer, SMALL)


def at_work(name: str, size: int = 4):
    """Model, objective and samples of a stage, a third of the scenes large."""
    stage = replace(stage_named(name), turns=2, large=0.3, batch=size)
    model = start(SMALL)
    freeze(model, stage)
    objective = objective_for(model, PROCESSOR, stage)
    sample = draw_samples(stage, 0, "train", objective.view)
    return stage, model.train(), objective, [sample(number) for number in range(size)]


# ---- FLOPs


@pytest.mark.parametrize("name", ["start-text", "stage-1", "stage-2", "stage-3", "sft-1"])
def test_flops_are_those_that_pytorch_counts(name):
    """Counted from a batch, to the last one, forward and backward, whatever is frozen."""
    stage, model, objective, samples = at_work(name)
    workload = workload_of(objective.prepare(samples, 1)[0])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it cannot count the CPU's kernel
        loss = objective(samples, 1)[0]
        assert flops(SMALL, workload, learning=()) == counter.get_total_flops()
        loss.backward()
    assert flops(SMALL, workload, stage.learning_rates) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (step,) = train_steps(
            model, PROCESSOR, replace(stage, steps=1), machine=Machine(micro_batches=2, half_precision=False)
        )
    assert step.flops == counter.get_total_flops()


def test_peaks_and_mfu():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L40S") == 362e12 and peak_flops("NVIDIA L4") == 121e12 and peak_flops("toaster") is None
    assert peak_flops("NVIDIA H200") == 989e12 and peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert mfu(2e12, 0.5, 8e12) == 0.5


# ---- bytes


@pytest.mark.parametrize(
    ("name", "half", "checkpointing", "pieces"),
    [
        ("sft-1", False, False, 1),
        ("sft-1", True, False, 1),
        ("sft-1", True, True, 1),
        ("sft-1", False, False, 2),
        ("stage-1", False, False, 1),
        ("stage-3", True, False, 1),
        ("stage-3", False, True, 1),
        ("start-text", True, False, 1),
        ("start-vit", True, False, 1),
    ],
)
def test_bytes_are_those_that_the_profiler_sees(name, half, checkpointing, pieces):
    stage, model, objective, samples = at_work(name)
    if pieces == 2:
        samples = [sample for sample in samples for _ in range(2)]  # two pieces of the same samples
    optimizer, learner = optimizer_for(model, stage, objective), LossModule(model, objective)
    need = budget(model, objective, samples, len(samples), pieces, half, checkpointing)

    def step():
        backward(learner, [objective.prepare(samples[i::pieces], 1) for i in range(pieces)], Processes(), half)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with checkpointed(model) if checkpointing else nullcontext():
        step()  # the optimizer makes its state here
        work = profiled_peak(step)
    assert need.total == pytest.approx(need.weights + need.optimizer + work, rel=0.15 if checkpointing else 0.06)


def test_exact_parts():
    _, model, objective, samples = at_work("stage-3", size=3)
    need, counts = budget(model, objective, samples, 3), parameters(SMALL)
    assert need.weights == 4 * sum(counts.values())
    assert need.gradients == 4 * (counts["vpm"] + counts["resampler"]) and need.optimizer == 2 * need.gradients
    assert need.copies == 0
    matrices = [p.numel() for p in model.parameters() if p.ndim == 2]
    table = SMALL.vision.table_side**2 * SMALL.vision.width  # is looked up, never multiplied
    assert budget(model, objective, samples, 3, half_precision=True).copies == 2 * (sum(matrices) - table)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())  # none is left behind
    _, model, contrast, samples = at_work("start-vit", size=2)  # its scaffolding learns, too
    both = {*model.parameters(), *contrast.parameters()}  # they share the ViT
    assert budget(model, contrast, samples, 2).weights == 4 * sum(p.numel() for p in both)


def test_what_is_kept_grows_with_samples_and_shrinks_with_micro_batches():
    _, model, objective, samples = at_work("sft-1", size=2)
    one = budget(model, objective, samples, 2)
    for need, factor in (
        (budget(model, objective, samples, 8), 4),
        (budget(model, objective, samples, 8, micro_batches=4), 1),
    ):
        assert [need.vision, need.llm] == [factor * one.vision, factor * one.llm]
        assert need.weights == one.weights
    # With checkpointing: one layer at a time, and the inputs of all.
    less, workload = (
        budget(model, objective, samples, 8, checkpointing=True),
        workload_of(objective.prepare(samples, 1)[0]),
    )
    (v, c), layers = (SMALL.vision, SMALL.llm), SMALL.llm.num_hidden_layers
    assert less.vision == 4 * (one.vision / v.layers + v.layers * 4 * workload.patches * v.width)
    assert less.llm == 4 * (one.llm / layers + layers * 4 * workload.tokens * c.hidden_size)


def test_the_fullest_moment():
    parts = dict(weights=100, gradients=50, optimizer=100)
    assert Budget(**parts, copies=1, vision=2, llm=300).total == 200 + 303  # at the end of the forward pass
    assert Budget(**parts, copies=1, vision=2, llm=300, accumulates=True).total == 200 + 303 + 50
    assert Budget(**parts, copies=1, vision=90, llm=10).total == 200 + 91 + 50  # in the backward pass
    assert Budget(**parts, copies=1, vision=2, llm=3).total == 200 + 50 + 50  # in AdamW


def test_sharding_divides_what_belongs_to_the_parameters():
    assert Budget(100, 60, 80, 40, 7, 9, True).sharded(4) == Budget(25, 15, 20, 10, 7, 9, True)


def test_the_line_says_what_is_needed_and_what_is_there(monkeypatch):
    need = Budget(4_000_000_000, 1_000_000_000, 2_000_000_000, 0, 500_000_000, 2_500_000_000)
    monkeypatch.setattr(module, "device_memory", lambda device: (12_000_000_000, 16_000_000_000))
    said = "memory: about 9.00 GB (weights 4.00, gradients 1.00, AdamW 2.00, kept for backward 3.00)"
    assert need.line("cpu") == f"{said} of 12.0 free, 16.0 in all"
    monkeypatch.setattr(module, "device_memory", lambda device: (9_500_000_000, 16_000_000_000))
    assert need.line("cpu").endswith("9.5 free, 16.0 in all; that is too much: more micro-batches, or checkpointing")


def test_what_is_kept_by_whom():
    """A ViT that does not learn keeps nothing; the resampler counts as vision, too."""
    kept = {}
    for name in ("start-text", "stage-1", "stage-3"):
        _, model, objective, samples = at_work(name, size=2)
        kept[name] = budget(model, objective, samples, 2).vision
    assert kept["start-text"] == 0 < kept["stage-1"] < kept["stage-3"] / 2


def test_device_memory_is_asked(monkeypatch):
    free, has = device_memory("cpu")
    assert 0 < free <= has and has > 2**28
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 7))
    assert device_memory("cuda") == (5, 7)


def v2(most, used, cache=None) -> dict[str, str]:
    return {"max": most, "current": used, "stat": "anon 1" + ("" if cache is None else f"\ninactive_file {cache}")}


def v1(most, used, cache=0) -> dict[str, str]:
    return {"limit_in_bytes": most, "usage_in_bytes": used, "stat": f"inactive_file 1\ntotal_inactive_file {cache}"}


@pytest.mark.parametrize(
    ("said", "groups", "wanted"),
    [
        (None, {"": v2(500, 100)}, (900, 1000)),  # no Linux
        ("0::/", {"": v2(500, 100)}, (400, 500)),  # a container sees itself as the base
        ("0::/", {"": v2(500, 100, cache=40)}, (440, 500)),
        ("0::/", {"": v2("max", 100)}, (900, 1000)),
        ("0::/", {"": v2(500, 501)}, (0, 500)),
        ("0::/", {"": v2(5000, 10)}, (900, 1000)),  # more than there is
        ("0::/slice/job", {"slice": v2(500, 100), "slice/job": v2("max", 1)}, (400, 500)),
        ("0::/slice/job", {"slice": v2(500, 480), "slice/job": v2(300, 10)}, (20, 300)),  # the slice is nearly full
        ("0::/slice/job", {"slice": v2(500, 100), "slice/other": v2(3, 1)}, (400, 500)),
        ("0::/../../job", {"": v2(500, 100), "job": v2(3, 1)}, (400, 500)),
        ("5:cpu,memory:/docker/a\n0::/docker/a", {"memory": v1(500, 100, 50)}, (450, 500)),  # the path from outside
        ("5:memory:/a\n4:cpu:/b", {"memory/a": v1(300, 0), "memory": v1(500, 100), "b": v1(1, 1)}, (300, 300)),
        ("5:memory:/", {"memory": v1(9223372036854771712, 100)}, (900, 1000)),  # no limit
        ("12:memory:/a:b", {"memory/a:b": v1(500, 100)}, (400, 500)),
        ("0::/", {"": v2("", "")}, (900, 1000)),
        ("0::/", {"": {"max": 500}}, (900, 1000)),
        ("nonsense\n\n0::/", {"": v2(500, 100)}, (400, 500)),
    ],
)
def test_a_container_has_what_it_may_have(tmp_path, monkeypatch, said, groups, wanted):
    """Files as in Linux's Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000, available=900))
    monkeypatch.setattr("minicpmv_ref.inputs.memory.SYSTEM", tmp_path)
    for group, files in groups.items():
        (tmp_path / "sys/fs/cgroup" / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / "sys/fs/cgroup" / group / f"memory.{name}").write_text(f"{text}\n")
    if said is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(said + "\n")
    assert device_memory("cpu") == wanted


# ---- the two savings


def gradients(model, objective, samples):
    model.zero_grad(set_to_none=True)
    backward(LossModule(model, objective), [objective.prepare(samples, 1)], Processes())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_checkpointing_changes_no_gradient():
    _, model, objective, samples = at_work("sft-1", size=3)
    plain, layer = gradients(model, objective, samples), model.llm.model.layers[0]
    with checkpointed(model):
        assert "forward" in vars(layer) and "forward" in vars(model.vpm.encoder["layers"][-1])
        again = gradients(model, objective, samples)
    assert all(map(torch.equal, plain, again)) and len(plain) == len(again)
    assert "forward" not in vars(layer)
    with pytest.raises(ZeroDivisionError), checkpointed(model):
        1 / 0  # noqa: B018
    assert "forward" not in vars(layer)


def test_compiling_changes_no_name_and_no_gradient():
    _, model, objective, samples = at_work("sft-1", size=2)
    plain, names = gradients(model, objective, samples), list(model.state_dict())
    compiled = CompileCounter()  # runs what it is given as it is
    compile_layers(model, backend=compiled)
    again = gradients(model, objective, samples)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, again)) and len(plain) == len(again)
    assert list(model.state_dict()) == names
    parts = [part for part in model.modules() if part._compiled_call_impl]
    assert len(parts) == 3 * (SMALL.vision.layers + SMALL.llm.num_hidden_layers)  # two norms and an MLP of each layer
    before = compiled.frame_count
    gradients(model, objective, samples[:1])
    assert compiled.frame_count == before > 0  # another length is not compiled anew


# ---- the profile for a GPU


def test_the_larger_model_has_sizes_that_llama_cpp_takes():
    config = PROFILES["gpu"].config
    with torch.device("meta"):
        model = MiniCPMV(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(parameters(config).values()) and 20e6 < count < 100e6
    llm = config.llm
    assert llm.hidden_size % 256 == llm.intermediate_size % 256 == 0
    assert llm.head_width == nano.llm.head_width
    assert config.resampler.width // config.resampler.heads == 128
    same = [(c.slicing, c.llm.vocab_size, c.resampler.num_queries, c.vision.patch_size) for c in (config, nano)]
    assert same[0] == same[1]


def test_the_hard_world():
    hard = {stage.name: scaled(stage, PROFILES["gpu"]) for stage in STAGES}
    for stage in STAGES:
        assert hard[stage.name].aligned == (stage.objective != "answer")
        assert hard[stage.name].large == (0.5 if stage.large else 0)
        assert hard[stage.name].learning_rates == {part: 0.5 * rate for part, rate in stage.learning_rates.items()}
    sample = draw_samples(hard["sft-2"], 0, "train", 112)
    documents = [s.facts for s in map(sample, range(60)) if s.kind == "read"]
    cut = [line for document in documents for line in document.lines if (line.y % 112) > 100]
    assert documents and cut  # such a line begins above a slice border and ends below it


def test_the_larger_model_learns_a_step():
    """A tenth of it: layers of that width, fewer of them, through every part."""
    config = PROFILES["gpu"].config
    config = replace(config, vision=replace(config.vision, layers=1), llm=replace(config.llm, num_hidden_layers=1))
    processor, stage = Processor(PROCESSOR.tokenizer, config), scaled(stage_named("sft-1"), PROFILES["gpu"])
    model = start(config)
    freeze(model, stage)
    objective = objective_for(model, processor, stage)
    sample = draw_samples(stage, 0, "train", objective.view)
    pieces = [objective.prepare([sample(number)], 1) for number in range(2)]
    loss, tokens, views = backward(LossModule(model, objective), pieces, Processes(), half_precision=True)
    assert 0 < loss < 20 and tokens > 0 and views > 0
    assert all(p.grad.isfinite().all() for part in PARTS for p in getattr(model, part).parameters())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: workload_of(None), "packed"),
        (lambda: peak_flops(None), "card"),
        (lambda: mfu("1", 1, 1), "step_flops"),
        (lambda: mfu(1, None, 1), "seconds"),
        (lambda: device_memory(3), "device"),
        (lambda: budget(None, print, [1], 1), "model"),
        (lambda: Budget(1, 1, 1, 1, 1, 1).sharded(2.0), "processes"),
    ],
)
def test_a_wrong_type_is_named(call, name):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        call()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: mfu(1, 0, 1), "seconds"),
        (lambda: mfu(1, 1, math.nan), "peak"),
        (lambda: mfu(-1, 1, 1), "step_flops"),
        (lambda: device_memory("toaster"), "device"),
        (lambda: device_memory("cuda:99"), "device"),
        (lambda: Budget(1, 1, 1, 1, 1, 1).sharded(0), "processes"),
    ],
)
def test_a_wrong_value_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name} must be") as refusal:
        call()
    assert not isinstance(refusal.value, TypeError)


def test_a_budget_needs_samples():
    _, model, objective, samples = at_work("sft-1", 2)
    for change, name in (
        (dict(samples=[]), "samples"),
        (dict(samples=None), "samples"),
        (dict(size=0), "size"),
        (dict(micro_batches=0), "micro_batches"),
        (dict(objective=None), "objective"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must"):
            budget(**{**dict(model=model, objective=objective, samples=samples, size=2), **change})
