"""Run two checkouts on this machine and compare what they compute, exactly: for changes that must change nothing.

    python tools/same.py OLD NEW               all of it, about 10 minutes on two cores
    python tools/same.py OLD NEW --only api    some of it: api, help, stages, data, processes, resume

OLD and NEW are folders with the repository; a second one comes from `git worktree add ../old COMMIT`. Names are looked
up in the whole package, so code may move freely. What is compared:

    help       the help of every command
    api        loss and gradients of a packed batch, DPO, LoRA, bytes of exported files, 20 answers
    stages     5 steps of each stage: weights, metrics, what is printed; with 0 and 2 workers
    data       5 steps on your own data: all parts, and LoRA
    processes  5 steps of two stages in 2 processes
    resume     stopped after 3 steps and resumed; and a training checkpoint of OLD that NEW goes on from
"""

import argparse
import hashlib
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

PARTS = ("help", "api", "stages", "data", "processes", "resume")
TIMES = re.compile(r"\d[\d.,]* (s|ms|GB|MB)\b|in \d+ s|about \d.*$")  # they differ from run to run
TIMED = ("seconds", "tokens_per_s", "views_per_s", "tflops_per_s", "mfu")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    both = {"OLD": args.old.resolve(), "NEW": args.new.resolve()}
    different = 0
    with tempfile.TemporaryDirectory() as place:
        for part in args.only:
            found = {}
            for which, checkout in both.items():
                folder = Path(place, part, which)
                folder.mkdir(parents=True)
                found[which] = PROBES[part](checkout, folder, both["OLD"])
            names = sorted(found["OLD"].keys() | found["NEW"].keys())
            unequal = [name for name in names if found["OLD"].get(name) != found["NEW"].get(name)]
            print(f"{part:<10} {len(names) - len(unequal)} of {len(names)} equal", flush=True)
            for name in unequal:
                print(
                    f"    {name}", *(f"        {which} {of.get(name)!s:.300}" for which, of in found.items()), sep="\n"
                )
            different += len(unequal)
    return 1 if different else 0


# ---- in processes of their own, each with the package of one checkout


def python(checkout: Path, *words, torchrun: int = 0, codes=(0,)) -> str:
    """Run the inner part of this file with a checkout's package; what it prints."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"] if torchrun else ["-P"]
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, *start, __file__, "inside", *map(str, words)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, cwd=checkout)
    if ran.returncode not in codes:
        raise SystemExit(f"{' '.join(command)}\nended with {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")
    return ran.stdout


def training(checkout: Path, folder: Path, *options, inner: str = "command", **how) -> dict:
    """The train command: what it printed, its metrics, and the checksum of each file that it left."""
    said = python(checkout, inner, *options, "--out", folder, **how)
    said = re.sub(r"\S*/data_samples/", "data_samples/", said.replace(str(folder), "OUT"))
    lines = [TIMES.sub("", line) for line in said.splitlines()]
    return {"printed": [line for line in lines if not line.startswith("memory")], **left_in(folder)}


def left_in(folder: Path) -> dict:
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name == "metrics.jsonl":
            rows = map(json.loads, file.read_text().splitlines())
            found[name] = [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
        elif file.suffix in (".safetensors", ".gguf") or file.name in ("config.json", "tokenizer.json"):
            found[name] = hashlib.sha256(ordered(file)).hexdigest()
    return found


def ordered(file: Path) -> bytes:
    """The bytes of a file; of safetensors with the header sorted, for its metadata have no fixed order."""
    raw = file.read_bytes()
    if file.suffix != ".safetensors":
        return raw
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.dumps(json.loads(raw[8:start]), sort_keys=True).encode() + raw[start:]


def named(prefix: str, found: dict) -> dict:
    return {f"{prefix}: {name}": value for name, value in found.items()}


RECORDS = Path("data_samples", "records")
OWN = ("--from", "nano", "--steps", "5", "--batch", "4", "--rate", "0.3")


def own_data(checkout: Path) -> tuple:
    records = checkout / RECORDS
    return "train", "--data", records / "train.json", "--held-out", records / "test.json", *OWN


def probe_help(checkout, folder, old):
    return json.loads(python(checkout, "help"))


def probe_api(checkout, folder, old):
    return json.loads(python(checkout, "api", folder).splitlines()[-1])


def probe_stages(checkout, folder, old):
    runs = {f"{n} workers": training(checkout, folder / str(n), "train", "--workers", n) for n in (0, 2)}
    return {name: value for run, found in runs.items() for name, value in named(run, found).items()}


def probe_data(checkout, folder, old):
    full = training(checkout, folder / "full", *own_data(checkout))
    return named("full", full) | named("LoRA", training(checkout, folder / "lora", *own_data(checkout), "--lora", 4))


def probe_processes(checkout, folder, old):
    found = named("replicated", training(checkout, folder / "ddp", *own_data(checkout), torchrun=2))
    training(checkout, folder / "fsdp", "train")  # the stages before the last
    shutil.rmtree(folder / "fsdp" / "sft-2")
    sharded = training(checkout, folder / "fsdp", "train", "--stage", "sft-2", "--shard", torchrun=2)
    return found | named("sharded", sharded)


def probe_resume(checkout, folder, old):
    stopped = {"inner": "stop-after-3", "codes": (143,)}
    training(checkout, folder / "own", *own_data(checkout), **stopped)
    found = named("resumed", training(checkout, folder / "own", *own_data(checkout)))
    training(old, folder / "from-old", *own_data(old), **stopped)
    return found | named("resumed from OLD", training(checkout, folder / "from-old", *own_data(old)))


PROBES = {part: globals()[f"probe_{part}"] for part in PARTS}


# ---- the inner part: it imports the package of one checkout


def inside(what: str, *words: str):
    sys.path[:] = [os.environ["PYTHONPATH"], *(folder for folder in sys.path if folder != os.path.dirname(__file__))]
    return {"help": inside_help, "api": inside_api, "command": command, "stop-after-3": stop_after_3}[what](*words)


def modules():
    import minicpmv_ref

    for info in pkgutil.walk_packages(minicpmv_ref.__path__, "minicpmv_ref."):
        if not re.search("[.](course|commands|__main__)", info.name):
            yield import_module(info.name)


def where(*names: str):
    """A function or class by its name, or by an older one, in whatever file it stands."""
    for module in modules():
        for name in names:
            if getattr(vars(module).get(name), "__module__", None) == module.__name__:
                return vars(module)[name]
    raise SystemExit(f"none of {names} is in the package")


def inside_help():
    from minicpmv_ref.__main__ import COMMANDS, build_parser

    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action.choices, dict))
    print(json.dumps({name: commands.choices[name].format_help() for name, *_ in COMMANDS}))


def command(*words: str):
    from minicpmv_ref.__main__ import main as run_command

    stages, profiles = (
        next(vars(module)[name] for module in modules() if name in vars(module)) for name in ("STAGES", "PROFILES")
    )
    for stage in stages:
        object.__setattr__(stage, "steps", 5)
    for name, value in (("steps", 1.0), ("batch", 1 / 8)):
        object.__setattr__(profiles["fast"], name, value)
    return run_command(list(words))


def stop_after_3(*words: str):
    import torch

    step, taken = torch.optim.AdamW.step, []

    def stopping(self, *args, **kwargs):
        taken.append(step(self, *args, **kwargs))
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)

    torch.optim.AdamW.step = stopping
    return command(*words)


def mark(*tensors) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights(model) -> str:
    return mark(*(tensor for _, tensor in sorted(model.state_dict().items())))


def inside_api(folder: str):
    import torch

    from minicpmv_ref import MiniCPMV, Processor, load_image
    from minicpmv_ref.deploy.gguf import export
    from minicpmv_ref.learn.dpo import Pair, prepare

    torch.set_num_threads(1)
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    files = sorted(Path("data_samples", "images").glob("*.*g"))[:5]
    questions = ("What is this?", "What color is the circle?", "Read the text.", "How many stars are there?")
    asked = [[{"role": "user", "content": [load_image(file), text]}] for file in files for text in questions]
    found = {f"answer {i}": model.chat(one, processor, max_new_tokens=20) for i, one in enumerate(asked)}

    chats = [[*one, {"role": "assistant", "content": found[f"answer {i}"] or "none"}] for i, one in enumerate(asked)]
    batch = processor(chats[:6])
    packed = where("pack_batch")(batch, [[0, 1, 2], [3, 4], [5]])
    loss = where("packed_loss")(model, packed)
    loss.backward()
    found |= {
        "packed loss": loss.item(),
        "its gradient": mark(*(p.grad for p in model.parameters() if p.grad is not None)),
    }
    model.zero_grad()

    pairs = prepare(model, processor, [Pair(one, "a red circle", "two blue stars") for one in asked[:4]])
    found["DPO"] = where("train_dpo")(model, pairs, steps=3, batch_size=2, lr=1e-4)
    found["after DPO"] = weights(model)

    add, save, load, merge = (where(f"{verb}_lora") for verb in ("add", "save", "load", "merge"))
    model = add(MiniCPMV.from_pretrained("nano"), 4, whole=())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    save(model, Path(folder, "adapter"))
    found |= {f"LoRA {name}": value for name, value in left_in(Path(folder, "adapter")).items()}
    model = load(MiniCPMV.from_pretrained("nano"), Path(folder, "adapter"))
    with torch.no_grad():
        found["LoRA logits"] = mark(model(batch).logits)
    found["LoRA merged"] = weights(merge(model))

    model = MiniCPMV.from_pretrained("nano")
    for mixture in ("F32", "F16", "Q8_0", "Q4_K_M"):
        export(model, processor, Path(folder, mixture), mixture)
    found |= {name: value for name, value in left_in(Path(folder)).items() if name.endswith("gguf")}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(inside(*sys.argv[2:]) if sys.argv[1:2] == ["inside"] else main())
