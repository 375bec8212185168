"""The commands: `python -m minicpmv_ref COMMAND ...`, or `python3 lab.py COMMAND ...` from a fresh clone.

Only the standard library is imported up here, so that `--help` answers before anything is installed.
To add a command: write one function that takes the parsed arguments and returns an exit code (None is 0),
import what it needs inside, and add one line to COMMANDS.
"""

import argparse
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from .inputs.checks import LIMITS, printable

ROOT = Path(__file__).resolve().parent.parent
COVERAGE_FLOOR = 95  # percent of the lines in the files directly in minicpmv_ref/
MOST_TEST_PROCESSES = 4  # each takes up to 2 GB


class CommandError(Exception):
    """A command cannot run; the message is all that the user needs to see."""


# ---- the course


def course(args):
    folder = notebooks_folder()
    first = min(folder.glob("00_*.ipynb"), default=None)
    if first is None:
        raise CommandError(f"{folder} holds no notebook whose name starts with 00_")
    need("jupyterlab", "the course")
    port = free_port(args.port)
    token = secrets.token_hex(24)
    url = f"http://127.0.0.1:{port}/lab/tree/notebooks/{first.name}?token={token}"
    print(f"The course is at\n    {url}\nStop it with Ctrl-C.", flush=True)

    os.environ.update(kernel_environment())
    with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as settings:
        # Answers JupyterLab's first-start question about news, which covers a corner of every notebook.
        quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
        Path(settings, "overrides.json").write_text(json.dumps(quiet), encoding="utf-8")
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": ROOT,
            "ServerApp.open_browser": not args.no_browser,
            "ServerApp.allow_root": True,  # containers run as root; the address is this machine only
            "IdentityProvider.token": token,
            "LabApp.default_url": f"/lab/tree/notebooks/{first.name}",
            "LabApp.app_settings_dir": settings,
            "LabApp.extension_manager": "readonly",  # the other manager asks the package index at start
            "Application.log_level": "ERROR",
        }
        # In this process rather than a new one: the token must not appear in the list of processes.
        from jupyterlab.labapp import LabApp

        LabApp.launch_instance(argv=[f"--{name}={value}" for name, value in options.items()])


def free_port(wanted=None):
    """`wanted` or an error; without a wish, the first free port from 8888 on."""
    for port in [wanted] if wanted is not None else range(8888, 8988):
        try:
            with socket.socket() as probe:
                if os.name == "posix":  # a port that was just closed counts as free; on Windows it means more
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return port
        except (OSError, OverflowError) as error:
            reason = error
    what = "no port from 8888 to 8987 is free" if wanted is None else f"port {wanted} cannot be used"
    raise CommandError(f"{what} ({reason})")


# ---- one question


def ask(args):
    for module in ("torch", "transformers"):
        need(module, "the model")
    import torch

    from .inputs.pictures import load_image
    from .model import decode_stream
    from .peers import load

    if 0 < args.temperature < LIMITS["temperature"]:
        raise CommandError(f"--temperature must be 0 or at least {LIMITS['temperature']}, got {args.temperature}")
    watch = Stopwatch()
    try:
        image = load_image(args.image)
        watch.lap("read the picture")
        model, processor = load(args.model)
        watch.lap("load the model")
        messages = [{"role": "user", "content": [image, args.question]}]
        batch = processor(messages, max_slice_nums=args.max_slice_nums)
        watch.lap("slice and normalize")
        print(describe_plan(batch, processor.config))

        with torch.inference_mode():
            # As in encode_images, in two steps; the parts of a checkpoint may have different dtypes.
            features = model.vpm([view.to(model.vpm.post_layernorm.weight) for view in batch.images[0]])
            watch.lap("ViT")
            dtype = next(model.resampler.parameters()).dtype
            visual = model.resampler([f.to(dtype) for f in features], batch.patch_grids[0])
            watch.lap("resampler")
        tokens = model.stream(batch, args.max_new_tokens, temperature=args.temperature, seed=args.seed, visual=visual)
        print("\nanswer: ", end="", flush=True)
        count = 0

        def watched():
            nonlocal count
            for token in tokens:
                if count == 0:
                    watch.lap("LLM, prompt and first token")
                count += 1
                yield int(token)

        for piece in decode_stream(watched(), processor.tokenizer, batch.stop_ids):
            print(printable(piece), end="", flush=True)
        watch.lap(f"LLM, {count - 1} more tokens")
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    print(f"\n\n{watch}")


def describe_plan(batch, config):
    """The plan of the first image of a batch, in words and numbers."""
    plan, total = batch.plans[0][0], batch.input_ids.shape[1]
    visual = plan.visual_tokens(config.resampler.num_queries)
    lines = [
        f"picture   {plan.image_size[0]} x {plan.image_size[1]} pixels",
        f"overview  {plan.overview_size[0]} x {plan.overview_size[1]} pixels",
    ]
    if plan.grid:
        (cols, rows), (width, height) = plan.grid, plan.slice_size
        lines.append(f"slices    {cols} x {rows} (columns x rows), {width} x {height} pixels each")
    else:
        lines.append("slices    none: the overview is enough for so few pixels")
    patches = sum(r * c for r, c in plan.patch_grids)
    lines.append(f"tokens    {patches} patches -> {visual} visual tokens, {total} tokens with the text")
    return "\n".join(lines)


# ---- training


def train(args):
    for module in ("torch", "transformers", "matplotlib"):
        need(module, "training")
    import torch

    if args.data:
        refuse(args, "profile", "stage", why="belong to the toy world, not to --data")
        if not args.checkpoint:
            raise CommandError("--data needs --from CHECKPOINT, the model to start from")
    else:
        own = ("checkpoint", "held_out", "lora", "steps", "batch", "lr_scale", "root", "strict")
        refuse(args, *own, why="belong to --data, your own data")
    from .scale.parallel import join_processes
    from .scale.signals import Stopped

    args.profile = args.profile or "fast"
    folder = Path(args.out or Path("runs") / (Path(args.data).resolve().stem if args.data else args.profile))
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("there is no GPU that this torch can use; --device cpu works everywhere")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        with join_processes(args.device) as processes:
            train_in(processes, folder, args)
    except (ValueError, OSError, FloatingPointError) as error:
        raise CommandError(error) from error
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        how = "the same command goes on from the newest training checkpoint"
        raise CommandError(f"another process has died: {error}; {how}") from error
    except Stopped as stop:
        say(f"\n{stop}; the same command goes on from there")
        return stop.code
    except KeyboardInterrupt:
        say(f"\nstopped; the same command goes on with what is saved in {folder}")
        return 130


def train_in(processes, folder, args):
    """Train in one of several processes; the first one prints and draws the curves."""
    import torch

    from .scale.loader import usual_workers
    from .scale.machine import Machine
    from .scale.metrics import plot

    first = processes.rank == 0
    report = report_line if first else lambda text: None
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    name = name if processes.size == 1 else f"{processes.size} processes of {name}"
    what = args.data or f"profile {args.profile}"
    report(f"{what}, seed {args.seed}, {name}; everything is written to {folder}")
    workers = usual_workers(args.device, processes.size) if args.workers is None else args.workers
    options = {name: getattr(args, name) for name in ("device", "shard", "micro_batches", "checkpointing", "compile")}
    how = {"machine": Machine(processes=processes, workers=workers, **options), "report": report, "progress": first}
    if args.data:
        from .scale.finetune import Recipe, train_on

        given = {name: getattr(args, name) for name in ("steps", "batch", "lr_scale", "lora", "seed", "strict")}
        recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
        train_on(args.data, args.checkpoint, folder, args.held_out, root=args.root, recipe=recipe, **how)
        report(f'ask it: lab.py ask IMAGE "QUESTION" --model {folder}')
    else:
        from .processor import Processor
        from .scale.profiles import PROFILES
        from .scale.run import run

        profile = PROFILES[args.profile]
        processor = Processor(Processor.from_pretrained("nano").tokenizer, profile.config)
        run(folder, profile, processor, args.stage, args.seed, **how)
    if first:
        report(f"curves: {plot(folder)}")


def refuse(args, *names, why):
    """Options that do not fit the others are an error, not ignored."""
    flags = {"checkpoint": "--from"}
    given = [
        flags.get(name, "--" + name.replace("_", "-")) for name in names if getattr(args, name) not in (None, False)
    ]
    if given:
        raise CommandError(f"{', '.join(given)}: these options {why}")


def report_line(text):
    from tqdm import tqdm

    tqdm.write(printable(text))  # print would tear the progress bar


def say(text):
    """Print what holds the names of files, or words of a model or a file: a terminal must not obey them."""
    print(printable(str(text)), flush=True)


class Stopwatch:
    """Seconds between laps, each under a name."""

    def __init__(self):
        self.laps, self.last = {}, time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def __str__(self):
        width = max(map(len, self.laps))
        return "\n".join(f"{name:<{width}}  {seconds * 1000:8.1f} ms" for name, seconds in self.laps.items())


# ---- your own data


def records(args):
    for module in ("torch", "transformers"):
        need(module, "the check")
    from .processor import Processor
    from .scale.records import read_records
    from .scale.shards import open_shards

    try:
        processor = Processor.from_pretrained(args.model) if args.model else None
        if Path(args.file).is_dir():
            _, report = open_shards(args.file, processor)
        else:
            pictures = "header" if args.quick else "decode"
            _, report = read_records(args.file, args.root, pictures=pictures, processor=processor)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    say(report.text(args.most))
    return 1 if report.problems else 0


def shards(args):
    for module in ("torch", "transformers", "webdataset"):
        need(module, "the writing")
    from .scale.records import read_records
    from .scale.shards import write_shards

    if args.per_shard < 1:
        raise CommandError(f"--per-shard: there must be one or more in a shard, got {args.per_shard}")
    try:
        good, report = read_records(args.file, args.root, pictures="decode")
        if not good:
            raise CommandError(f"no good record. {report.text(3)}")
        paths = write_shards(good, args.out, args.per_shard)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    say(report.text())
    size = sum(path.stat().st_size for path in paths)
    say(f"{args.out}: {len(good)} records, {len(paths)} tar files, {size / 1e6:,.1f} MB")


# ---- alignment


def dpo(args):
    for module in ("torch", "transformers", "matplotlib"):
        need(module, "the alignment")
    import torch

    find_experiments()
    from experiments.alignment import SEEDS, SETTINGS, SUMMARY, experiment, measured_on, outcome

    from .model import MiniCPMV
    from .processor import Processor

    device = "cuda" if args.profile == "gpu" and torch.cuda.is_available() else "cpu"
    folder = Path(args.folder) if args.folder else ROOT / "runs" / f"dpo-{args.profile}"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    watch = Stopwatch()
    try:
        model, processor = (
            MiniCPMV.from_pretrained(args.model).float().to(device),
            Processor.from_pretrained(args.model),
        )
        judge = None
        if args.labeler:
            judge = MiniCPMV.from_pretrained(args.labeler).float().to(device), Processor.from_pretrained(args.labeler)
        summary = experiment(
            model,
            processor,
            SETTINGS[args.profile],
            folder,
            only=None if args.run == "all" else args.run,
            seeds=SEEDS if args.profile != "fast" else SEEDS[:1],
            judge=judge,
            base="nano" if args.model == "nano" else None,
            report=say,
        )
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, and the same command goes on from there")
        return 130
    watch.lap("alignment")
    say(f"\n{outcome(summary)}\n{measured_on(summary)}\n\n{watch}\nall figures are in {folder / SUMMARY}")


# ---- the paper's claims


def experiment(args):
    for module in ("torch", "transformers"):
        need(module, "the experiments")
    find_experiments()
    from experiments import _frame as frame

    try:
        for name in frame.NAMES if args.name == "all" else [args.name]:
            result = frame.run(name, args.profile, args.again)
            say(f"{name}: {result['verdict']}, {result['seconds']} s\n    {result['found']}")
        if args.profile != "fast":
            frame.write(frame.PAGE, frame.page())
            say(f"all figures: {frame.PAGE}")
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept, and the same command goes on from there")
        return 130


# ---- on the phone


def export(args):
    for module in ("torch", "transformers", "gguf"):
        need(module, "the export")
    from .deploy.gguf import export as write
    from .model import MiniCPMV
    from .processor import Processor

    def show(name, done, total):
        print(f"\r{done / 1e6:,.1f} of {total / 1e6:,.1f} MB  {name:<40}", end="", flush=True)

    start = time.monotonic()
    try:
        processor, model = Processor.from_pretrained(args.checkpoint), MiniCPMV.from_pretrained(args.checkpoint)
        progress = show if sys.stdout.isatty() else None
        paths = write(model, processor, args.folder, args.mixture, args.force, progress)
    except FileExistsError as error:
        raise CommandError(str(error).replace("force=True", "--force")) from error
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    if progress:
        print(f"\r{'':<78}\r", end="")
    for what, path in zip(("language model", "ViT and resampler"), paths):
        say(f"{what:<17}  {path.stat().st_size / 1e6:10,.2f} MB  {path}")
    print(f"in {time.monotonic() - start:.1f} s")


def phone(args):
    for module in ("torch", "transformers", "gguf"):
        need(module, "the model")
    from .deploy import llamacpp
    from .deploy.gguf import export as write
    from .model import MiniCPMV, decode_answer
    from .processor import Processor, load_image

    if llamacpp.missing():
        raise CommandError(
            f"this runs the model in llama.cpp, which is not installed. Install it with\n{llamacpp.missing()}"
        )
    try:
        image = load_image(args.image)
        processor, model = Processor.from_pretrained(args.model), MiniCPMV.from_pretrained(args.model)
        processor([{"role": "user", "content": [image, args.question]}])  # refuses what cannot be asked
        with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as folder:
            llm, mmproj = write(model, processor, folder, args.mixture)
            sizes = [path.stat().st_size / 1e6 for path in (llm, mmproj)]
            prompt = llamacpp.prompt_text(args.question, processor)
            said = llamacpp.run(llm, mmproj, [(prompt, image)], args.max_new_tokens, args.threads)[0]
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    print(f"files    {args.mixture}: language model {sizes[0]:,.2f} MB; ViT and resampler {sizes[1]:,.2f} MB")
    visual = sum(map(len, said.visual))
    print(f"prompt   {said.prompt_tokens} tokens, {visual} of them visual, in {said.prompt_seconds * 1000:,.1f} ms")
    say(f"\nanswer: {decode_answer(said.tokens, processor.tokenizer, processor.stop_ids)}\n")
    steps = len(said.tokens)
    print(
        f"decoding {steps} tokens in {said.answer_seconds * 1000:,.1f} ms: {steps / said.answer_seconds:,.0f} tokens/s"
    )


# ---- ports to other languages


def compare(args):
    for module in ("torch", "transformers"):
        need(module, "the comparison")
    from .ports.check import check
    from .ports.kit import KIT, make

    if len(args.paths) != (2 if args.action == "check" else 1):
        raise CommandError("it is `compare make FOLDER`, or `compare check FOLDER THEIRS`")
    if args.action == "check" or args.model:
        refuse(args, "version", why="belong to `compare make` with the tiny model")
    try:
        if args.action == "make":
            files = make(args.paths[0], args.version or "2.6", args.model)
            say(f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB, in {args.paths[0]}; {KIT} says what is what")
            return 0
        refuse(args, "model", why="belong to `compare make`")
        verdicts = check(*args.paths)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    for verdict in verdicts:
        say(str(verdict))
    wrong = [verdict.stage for verdict in verdicts if verdict.different]
    say(f"Begin with {wrong[0]}: later stages are computed from it." if wrong else "No difference was found.")
    return int(bool(wrong))


# ---- the tests


def test(args):
    notebooks = sorted(notebooks_folder().glob("*.ipynb"))
    for module in ("ruff", "pytest", "pytest_cov", "xdist", "nbval"):
        need(module, "the tests")
    chosen = args.pytest_args
    core = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "minicpmv_ref").glob("*.py"))]

    tests = ["pytest", "--fast"] if args.fast else ["pytest", "--cov=minicpmv_ref", "--cov-report="]
    if not chosen:  # each file of tests goes to one of the processes
        processes = min(os.cpu_count() or 1, MOST_TEST_PROCESSES)
        tests += [f"--numprocesses={processes}", "--dist=loadfile", "--no-loadscope-reorder"]
    coverage = ["coverage", "report", f"--include={','.join(core)}", f"--fail-under={COVERAGE_FLOOR}"]
    nbval = ["pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120", "-p", "no:cacheprovider"]

    no_coverage = "--fast" if args.fast else "you chose the tests" if chosen else None
    parts = [  # (name, Python module and its arguments, why it is left out)
        ("lint", ["ruff", "check", "."], None),
        ("format", ["ruff", "format", "--check", "."], None),
        ("tests", tests + chosen, None),
        ("coverage", coverage, no_coverage),
        *((f"nbval {path.stem}", [*nbval, str(path)], "--fast" if args.fast else None) for path in notebooks),
    ]
    return run_parts(parts)


def run_parts(parts):
    """Run every part, also after a failure. Prints a summary; returns 1 if any part failed."""
    env = {**os.environ, **kernel_environment()}
    summary, failed = [], False
    for name, command, left_out in parts:
        if left_out:
            summary.append((name, f"left out ({left_out})", 0.0))
            continue
        print(f"\n==== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env).returncode
        failed |= code != 0
        summary.append((name, "ok" if code == 0 else f"FAILED (exit code {code})", time.monotonic() - start))

    print("\n==== summary")
    width = max(len(name) for name, _, _ in summary)
    for name, result, seconds in summary:
        print(f"{name:<{width}}  {seconds:6.1f} s  {result}")
    print("something FAILED" if failed else "all passed", flush=True)
    return int(failed)


# ---- what several commands need


def find_experiments():
    if not (ROOT / "experiments").is_dir():
        raise CommandError(f"there is no experiments folder in {ROOT}: they need the whole repository")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def notebooks_folder():
    folder = ROOT / "notebooks"
    if not folder.is_dir():
        raise CommandError(
            f"there is no notebooks folder beside the package in {ROOT}. "
            "The course and its tests need the whole repository, not the installed package alone."
        )
    return folder


def need(module, purpose):
    if importlib.util.find_spec(module) is None:
        raise CommandError(f"{purpose} needs the package {module!r}. Run `python3 lab.py`: it installs everything.")


def kernel_environment():
    """What a notebook's kernel must inherit to import this package, with this environment's kernel."""
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, search)), "JUPYTER_PREFER_ENV_PATH": "1"}


# ---- the command line


def option(*names, **settings):
    """What argparse takes, and `within`: the least and the most that a number may be."""
    return names, settings


def old_name(name, dest, **settings):
    """The earlier name of an option, which still works and is in no help."""
    return option(name, dest=dest, help=argparse.SUPPRESS, **settings)


MIXTURES = ("Q4_K_M", "Q8_0", "F16", "F32")
SEEDS, THREADS, ANSWER = (0, 2**63 - 1), (1, 4096), (1, 2**20)  # no model has more positions
FACTORS = (0, 10**6)  # far beyond all that makes sense
COUNTS = (0, 2**31)  # where the work itself says what is too few, and why
COMMANDS = [  # (name, function, one line of help, *arguments); the first is the default
    (
        "course",
        course,
        "Open the notebooks in JupyterLab (the default).",
        option("--no-browser", action="store_true", help="only print the address"),
        option("--port", type=int, within=(1, 65535), help="use this port (default: the first free one from 8888 on)"),
    ),
    (
        "ask",
        ask,
        "Ask a question about a picture: prints the plan, the answer and the timings.",
        option("image", metavar="IMAGE", help="a picture file"),
        option("question", metavar="QUESTION", help="your question, in quotes"),
        option("--model", default="nano", help='a checkpoint folder (default: "nano", the model of the course)'),
        option(
            "--max-slice-nums",
            type=int,
            within=(1, LIMITS["max_slice_nums"]),
            metavar="N",
            help="at most so many slices (default: the model's own)",
        ),
        option(
            "--max-new-tokens",
            type=int,
            default=128,
            within=ANSWER,
            metavar="N",
            help="at most so many tokens of answer",
        ),
        option(
            "--temperature",
            type=float,
            default=0.0,
            within=FACTORS,
            help="0: the likeliest token (default); above 0: sampled",
        ),
        option("--seed", type=int, default=0, within=SEEDS, help="of the sampling"),
    ),
    (
        "train",
        train,
        "Train the nano model from random weights, stage by stage; or, with --data, any model on your own data. "
        "After a stop, the same command goes on.",
        option("--profile", choices=("fast", "cpu", "gpu"), help="how long (default: fast, a minute)"),
        option("--stage", metavar="NAME", help="this stage alone, from the one before it in the folder"),
        option("--data", metavar="DATA", help="your own data: a JSON file as for records, or a folder of shards"),
        option("--from", dest="checkpoint", metavar="CHECKPOINT", help='needed by --data: where to start, or "nano"'),
        option("--held-out", metavar="DATA", help="with --data: records that are only measured"),
        option(
            "--lora",
            type=int,
            within=(0, LIMITS["hidden_size"]),
            metavar="RANK",
            help="with --data: adapters learn, and are merged at the end",
        ),
        option("--steps", type=int, within=COUNTS, metavar="N", help="with --data: optimizer steps (default: 40)"),
        option(
            "--batch",
            type=int,
            within=COUNTS,
            metavar="N",
            help="with --data: records of a step, of all processes (default: 8)",
        ),
        option(
            "--lr-scale",
            type=float,
            within=FACTORS,
            metavar="X",
            help="with --data: factor on the learning rates of nano's last stage (default: 0.03)",
        ),
        old_name("--rate", "lr_scale", type=float, within=FACTORS),
        option("--root", metavar="FOLDER", help="with --data: where picture paths start (default: the file's folder)"),
        option("--strict", action="store_true", help="with --data: stop at bad records instead of skipping them"),
        option("--out", metavar="FOLDER", help="where to write (default: runs/PROFILE, or runs/ and the data's name)"),
        option("--seed", type=int, default=0, within=SEEDS, help="of weights and samples"),
        option("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one"),
        option("--threads", type=int, within=THREADS, metavar="N", help="CPU threads"),
        option("--shard", action="store_true", help="under torchrun: each process holds a part of each tensor (FSDP)"),
        option(
            "--workers",
            type=int,
            within=(0, 1024),
            metavar="N",
            help="processes that prepare samples (default: up to 8 for a GPU)",
        ),
        option(
            "--micro-batches",
            type=int,
            default=1,
            within=COUNTS,
            metavar="N",
            help="compute each step in N parts: less memory",
        ),
        old_name("--pieces", "micro_batches", type=int, within=COUNTS),
        option("--checkpointing", action="store_true", help="compute each layer twice: far less memory"),
        option("--compile", action="store_true", help="let torch.compile fuse what it can"),
    ),
    (
        "records",
        records,
        "Check your own training data: prints what is wrong with each record, and how to mend it.",
        option("file", metavar="DATA", help="a JSON list of records with id, image and conversations; or shards"),
        option("--root", metavar="FOLDER", help="where picture paths start and stay (default: the file's folder)"),
        option("--model", metavar="CHECKPOINT", help="also find records that are too long for this model"),
        option("--quick", action="store_true", help="read only the pictures' headers; truncated ones are not found"),
        option(
            "--most",
            type=int,
            default=20,
            within=COUNTS,
            metavar="N",
            help="print at most so many problems (default: 20)",
        ),
    ),
    (
        "shards",
        shards,
        "Write your own training data as tar shards; bad records are reported and left out.",
        option("file", metavar="FILE.json", help="a list of records with id, image and conversations"),
        option("--out", metavar="FOLDER", required=True, help="where to write"),
        option("--root", metavar="FOLDER", help="where picture paths start and stay (default: the file's folder)"),
        option(
            "--per-shard",
            type=int,
            default=1000,
            within=COUNTS,
            metavar="N",
            help="records of a shard (default: 1000)",
        ),
    ),
    (
        "dpo",
        dpo,
        "Make a model careless, then align it: sample answers, check claims, train on pairs; with controls.",
        option("--profile", choices=("fast", "cpu", "gpu"), default="fast", help="how much (default: fast, seconds)"),
        option("--model", default="nano", help='a checkpoint folder (default: "nano", the model of the course)'),
        option("--run", default="main", metavar="NAME", help='a control, or "all" (default: "main", without controls)'),
        option("--labeler", metavar="FOLDER", help="a model that checks claims (default: one is trained for it)"),
        option("--folder", help="where to write (default: runs/dpo-PROFILE); what was cut off is continued"),
        option("--threads", type=int, within=THREADS, metavar="N", help="CPU threads"),
    ),
    (
        "experiment",
        experiment,
        "Test a claim of the paper, or all of them; cpu and gpu write docs/claims.md.",
        option("name", metavar="NAME", help='a file of experiments/ without its .py, or "all"'),
        option("--profile", choices=("fast", "cpu", "gpu"), default="fast", help="how much (default: fast, seconds)"),
        option("--again", action="store_true", help="measure anew what an earlier run has kept"),
    ),
    (
        "export",
        export,
        "Write a checkpoint as the two GGUF files that llama.cpp runs.",
        option("checkpoint", metavar="CHECKPOINT", help='a checkpoint folder, or "nano"'),
        option("folder", metavar="OUT", help="the folder for the files; made if it is missing"),
        option("--mixture", choices=MIXTURES, default="Q4_K_M", help="of the language model (default: Q4_K_M)"),
        option("--force", action="store_true", help="replace files that are there"),
    ),
    (
        "phone",
        phone,
        "Ask a question as a phone would: the model becomes GGUF files, and llama.cpp answers.",
        option("image", metavar="IMAGE", help="a picture file"),
        option("question", metavar="QUESTION", help="your question, in quotes"),
        option("--model", default="nano", help='a checkpoint folder (default: "nano", the model of the course)'),
        option("--mixture", choices=MIXTURES, default="Q4_K_M", help="of the language model (default: Q4_K_M)"),
        option(
            "--max-new-tokens",
            type=int,
            default=128,
            within=ANSWER,
            metavar="N",
            help="at most so many tokens of answer",
        ),
        option("--threads", type=int, default=1, within=THREADS, metavar="N", help="of the CPU (default: 1)"),
    ),
    (
        "compare",
        compare,
        "Find where a port to another language differs: write a kit of right answers, or check a port's against it.",
        option("action", choices=("make", "check"), help="write a kit, or check what a port has computed"),
        option(
            "paths", nargs="+", metavar="PATH", help="the kit's folder; to check, then a .npz, .safetensors or .json"
        ),
        option("--version", choices=("2.0", "2.5", "2.6"), help="make: of the tiny model (default: 2.6)"),
        option("--model", metavar="CHECKPOINT", help="make: a checkpoint folder in place of the tiny model"),
    ),
    (
        "test",
        test,
        "Run every check: lint, tests, coverage, notebooks. What follows -- goes to pytest.",
        option(
            "--fast",
            action="store_true",
            help="quick: no notebooks, browser, coverage, nor the slow tests (tests/slow.txt)",
        ),
    ),
]


def build_parser():
    program = "lab.py" if os.environ.get("MINICPMV_REF_LAB") else "python -m minicpmv_ref"
    parser = argparse.ArgumentParser(
        prog=program, description="MiniCPM-V as a readable reference, taught in Jupyter notebooks."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, function, text, *arguments in COMMANDS:
        command = commands.add_parser(name, help=text, description=text)
        ranges = {}
        for names, settings in arguments:
            settings = dict(settings)
            within = settings.pop("within", None)
            added = command.add_argument(*names, **settings)
            if within:
                ranges.setdefault(added.dest, (names[0], *within))
        command.set_defaults(function=function, ranges=ranges)
    return parser


def check_ranges(args):
    """Refuse numbers that no command can work with, before a file is read or a model is loaded."""
    for name, (flag, least, most) in args.ranges.items():
        value = getattr(args, name)
        if value is None or least <= value <= most:
            continue
        known = flag if flag == f"--{name}" else f"{flag} ({name})"
        # Not-a-number is not at least anything.
        end = "2^63 - 1" if most == SEEDS[1] else f"{most:,}"
        allowed = f"from {least} to {end}" if value >= least else f"{least} or more"
        raise CommandError(f"{known} must be {allowed}, got {printable(str(value))}")


def main(argv=None):
    for stream in (sys.stdout, sys.stderr):  # not every terminal knows every character
        with suppress(AttributeError):  # what stands in for one may not
            stream.reconfigure(errors="replace")
    # Threads that wait must sleep: spinning ones make small models a hundred times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = [COMMANDS[0][0], *argv]
    # Only `test` hands words on. Elsewhere `--` keeps its usual meaning: no options from here on.
    cut = argv.index("--") if argv[0] == "test" and "--" in argv else len(argv)
    args = build_parser().parse_args(argv[:cut])
    args.pytest_args = argv[cut + 1 :]
    try:
        check_ranges(args)
        return args.function(args) or 0
    except CommandError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    # An exception, so that the programs that a command started are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
