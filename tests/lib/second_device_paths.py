"""Every path of training and inference on the CPU and on the second device; prints as JSON how they differ.

    python tests/lib/second_device_paths.py

For each path: the largest difference of its numbers, whether its texts are equal, what would have waited for a GPU, or
the error. A process of its own, because the second device changes PyTorch.
"""

import json
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import second_device
import torch
from second_device import WAITS
from tiny import lively, picture, several, tiny_model, tiny_processor

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.deploy import kquant
from minicpmv_ref.deploy.fold import fold
from minicpmv_ref.deploy.runtime import Runtime
from minicpmv_ref.learn.dpo import Pair, pair_batch, pair_logps, prepare, train_dpo
from minicpmv_ref.learn.evaluate import answers
from minicpmv_ref.learn.objectives import held_out_loss, objective_for
from minicpmv_ref.learn.rlaif import ask_yes_no, sample_answers
from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.scale.finetune import Recipe, loss_on, train_on
from minicpmv_ref.scale.lora import add_lora, load_lora, lora_optimizer, merge_lora, save_lora
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.records import read_records
from minicpmv_ref.scale.stage_run import Output, StageRun
from minicpmv_ref.scale.steps import train_steps

PROCESSOR = tiny_processor("2.6")
RATES = {"vpm": 1e-4, "resampler": 1e-4, "llm": 1e-4}
MIX = {"caption": 1, "question": 1}
# Scenes can be spelled in words only at the size and with the slots of the toy world.
CONFIG = PROCESSOR.config
CONFIG = replace(
    CONFIG, slicing=nano.slicing, resampler=replace(CONFIG.resampler, num_queries=nano.resampler.num_queries)
)
WORLD = Processor(PROCESSOR.tokenizer, CONFIG)


def model_on(device, version="2.6", config=None):
    return (lively(MiniCPMV.seeded(config)) if config else tiny_model(version)).to(device)


def forward(device):
    """Loss, logits and gradients of four conversations, three versions."""
    for version in ("2.0", "2.5", "2.6"):
        model = model_on(device, version)
        batch = tiny_processor(version)(several()).to(device)
        yield model(batch).logits
    talks = [[*chat, {"role": "assistant", "content": "Two of them."}] for chat in several()]
    loss = model(PROCESSOR(talks).to(device)).loss
    loss.backward()
    yield loss
    yield from (p.grad for p in model.parameters() if p.grad is not None)


def generation(device):
    """Greedy and sampled answers of a batch, one by one as a stream, and a chat."""
    model, batch = model_on(device), PROCESSOR(several()).to(device)
    yield model.generate(batch, 8)
    yield model.generate(batch, 8, temperature=0.9, top_k=20, top_p=0.9, seed=3)
    yield from model.stream(batch, 4)
    yield model.chat(several()[0], PROCESSOR, max_new_tokens=6)


def objectives(device):
    """Steps of each kind of stage, in one micro-batch and in two."""
    for objective, rates in (
        ("answer", RATES),
        ("spelled", RATES),
        ("raw", {"llm": 1e-4}),
        ("contrast", {"vpm": 1e-4}),
    ):
        stage = Stage("s", objective, rates, MIX, steps=2, batch=4)
        for parts in (1, 2) if objective == "answer" else (1,):
            model = model_on(device, config=CONFIG)
            settings = Machine(device, micro_batches=parts, half_precision=False)
            yield from (torch.tensor(step.loss) for step in train_steps(model, WORLD, stage, machine=settings))
            yield from model.parameters()
        yield torch.tensor(held_out_loss(objective_for(model, WORLD, stage), stage, n=4))


def bfloat16(device):
    """The same in mixed precision."""
    model, stage = model_on(device, config=CONFIG), Stage("s", "answer", RATES, MIX, steps=2, batch=4)
    settings = Machine(device, half_precision=True)
    yield from (torch.tensor(step.loss) for step in train_steps(model, WORLD, stage, machine=settings))


def workers(device):
    """Samples prepared by two processes beside."""
    model, stage = model_on(device, config=CONFIG), Stage("s", "answer", RATES, MIX, steps=3, batch=4)
    settings = Machine(device, workers=1, half_precision=False)
    yield from (torch.tensor(step.loss) for step in train_steps(model, WORLD, stage, machine=settings))


def checkpointing(device):
    """A run that is stopped on this device and goes on on the other one."""
    stage = Stage("s", "answer", RATES, MIX, steps=4, batch=4)
    with tempfile.TemporaryDirectory() as folder:
        output = Output(Path(folder) / "t", Path(folder) / "log", every=2, report=lambda line: None, progress=False)
        for part, place in ((stage, device), (stage, other(device))):
            model = model_on(place, config=CONFIG)
            settings = Machine(place, half_precision=False)
            run = StageRun(model, WORLD, part, output, seed=0, machine=settings)
            if place is device:
                stop_after(run, 2)
            else:
                run.train()
        yield from (p.cpu() for p in model.parameters())
        model.save_pretrained(folder)
        yield from MiniCPMV.from_pretrained(folder).parameters()


def stop_after(run, steps):
    """As Ctrl-C after so many steps."""
    real = run._after_step

    def after(step, *args):
        real(step, *args)
        if step.step == steps:
            raise KeyboardInterrupt

    run._after_step = after
    with suppress(KeyboardInterrupt):
        run.train()


def other(device):
    return "cpu" if torch.device(device).type == "twin" else second_device.DEVICE


def lora(device):
    """Adapters learn, are saved on this device, loaded on the other, and merged."""
    model, stage = (
        add_lora(model_on(device, config=CONFIG), rank=4, modules_to_save=()),
        Stage("s", "answer", {"llm": 1e-3}, MIX, steps=2, batch=4),
    )
    optimizer = lora_optimizer(model, 1e-3)
    settings = Machine(device, half_precision=False)
    steps = train_steps(model, WORLD, stage, optimizer=optimizer, machine=settings)
    yield from (torch.tensor(step.loss) for step in steps)
    with tempfile.TemporaryDirectory() as folder:
        save_lora(model, folder)
        loaded = load_lora(model_on(other(device), config=CONFIG), folder)
        yield from (p.cpu() for p in merge_lora(loaded).parameters())
    yield from merge_lora(model).parameters()


def preferences(device):
    """DPO: pairs, their log-probabilities, two steps."""
    model = model_on(device)
    chats = [several()[0], several()[2]]
    prepared = prepare(model, PROCESSOR, [Pair(chat, "A red circle.", "A blue square there.") for chat in chats])
    yield pair_logps(model, pair_batch(prepared))
    yield torch.tensor([step["loss"] for step in train_dpo(model, prepared, steps=2, batch_size=2, lr=1e-3)])
    yield from model.llm.parameters()


def alignment(device):
    """Sampled answers, and what the model says to yes-or-no questions."""
    model = model_on(device)
    yield sample_answers(model, PROCESSOR, several()[:2], n=2, temperature=0.8, max_new_tokens=5)
    yield from ask_yes_no(model, PROCESSOR, picture(56, 56), ["Is there a star?", "Is there a circle?"])


def grades(device):
    """Answers to a list of prompts, as `evaluate` asks for them."""
    yield answers(model_on(device), PROCESSOR, several(), max_new_tokens=6)


def deployment(device):
    """The folded resampler, the fast decoder, a quantized one, and the K-quant search."""
    model = model_on(device)
    batch = PROCESSOR(several()).to(device)
    with torch.no_grad():
        features = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)).to(device) for n in (12, 20)]
        yield fold(model.resampler)(features, [(3, 4), (4, 5)])
    yield Runtime(model).generate(batch, 6)
    kquant._check_device = torch.device  # it takes a CPU or CUDA only
    rows = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).numpy()
    for kind in ("Q4_K", "Q6_K"):
        yield torch.from_numpy(kquant.quantize(rows, kind, None, device)).float()


def own_records(device):
    """`train --data`: a JSON file, a checkpoint, its loss."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tiny_model("2.6").save_pretrained(folder / "start")
        PROCESSOR.save_pretrained(folder / "start")
        entries = []
        for i in range(3):
            picture(60 + 30 * i, 50, i).save(folder / f"{i}.png")
            talk = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat" * (i + 1)}]
            entries.append({"id": i, "image": f"{i}.png", "conversations": talk})
        (folder / "my.json").write_text(json.dumps(entries))
        settings = {"machine": Machine(device, half_precision=False), "report": lambda line: None, "progress": False}
        data, out = folder / "my.json", folder / "out"
        train_on(data, folder / "start", out, recipe=Recipe(steps=2, batch=2), **settings)
        model = MiniCPMV.from_pretrained(out).to(device)
        yield torch.tensor(loss_on(model, PROCESSOR, read_records(data)[0]))
        yield from model.parameters()


PATHS = (
    forward,
    generation,
    objectives,
    bfloat16,
    workers,
    checkpointing,
    lora,
    preferences,
    alignment,
    grades,
    deployment,
    own_records,
)


def compare(path) -> dict:
    """Run a path on both devices."""
    began = time.process_time()
    try:
        expected = [plain(x) for x in path("cpu")]
        WAITS.clear()
        got = [plain(x) for x in path(second_device.DEVICE)]
    except Exception:
        return {"error": traceback.format_exc()}
    numbers = [(a, b) for a, b in zip(expected, got, strict=True) if isinstance(a, torch.Tensor)]
    texts = [(a, b) for a, b in zip(expected, got, strict=True) if not isinstance(a, torch.Tensor)]
    difference = max(
        [((a - b).abs().max() / a.abs().max().clamp(1)).item() for a, b in numbers if a.numel()], default=0
    )
    return {
        "difference": difference,
        "equal_texts": all(a == b for a, b in texts),
        "waits": dict(WAITS),
        "seconds": time.process_time() - began,
    }


def plain(x):
    return x.detach().cpu().double() if isinstance(x, torch.Tensor) else x


if __name__ == "__main__":
    torch.manual_seed(0)
    chosen = [path for path in PATHS if path.__name__ in sys.argv[1:] or not sys.argv[1:]]
    print(json.dumps({path.__name__: compare(path) for path in chosen}))
