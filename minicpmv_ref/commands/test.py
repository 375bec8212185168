"""`test`: lint, tests, coverage, notebooks."""

import os
import subprocess
import sys
import tempfile
import time

from .common import ROOT, kernel_environment, need, notebooks_folder

COVERAGE_FLOOR = 95  # percent of the lines in the files directly in minicpmv_ref/
MOST_TEST_PROCESSES = 4  # each takes up to 2 GB


def options(parser):
    parser.add_argument(
        "--fast",
        action="store_true",
        help="quick: no notebooks, browser, coverage, nor the slow tests (tests/slow.txt)",
    )


def run(args):
    notebooks = sorted(notebooks_folder().glob("*.ipynb"))
    for module in ("ruff", "pytest", "pytest_cov", "xdist", "nbval"):
        need(module, "the tests")
    chosen = args.pytest_args
    package = ROOT / "minicpmv_ref"
    core = [str(path.relative_to(ROOT)) for path in sorted([*package.glob("*.py"), *package.glob("inputs/*.py")])]

    tests = ["pytest", "--fast"] if args.fast else ["pytest", "--cov=minicpmv_ref", "--cov-report="]
    if not chosen:  # each file of tests goes to one of the processes
        processes = min(os.cpu_count() or 1, MOST_TEST_PROCESSES)
        tests += [f"--numprocesses={processes}", "--dist=loadfile", "--no-loadscope-reorder"]
    coverage = ["coverage", "report", f"--include={','.join(core)}", f"--fail-under={COVERAGE_FLOOR}"]
    nbval = ["pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120", "-p", "no:cacheprovider"]
    nbval.append(f"--nbval-sanitize-with={ROOT / 'tests/lib/nbval.cfg'}")

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
    folder = tempfile.TemporaryDirectory(prefix="minicpmv-ref-")  # nbval kills its kernels: they leave their files here
    for name, command, left_out in parts:
        if left_out:
            summary.append((name, f"left out ({left_out})", 0.0))
            continue
        print(f"\n==== {name}", flush=True)
        start = time.monotonic()
        temporary = {"TMPDIR": folder.name} if "--nbval" in command else {}
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env={**env, **temporary}).returncode
        failed |= code != 0
        summary.append((name, "ok" if code == 0 else f"FAILED (exit code {code})", time.monotonic() - start))

    folder.cleanup()
    print("\n==== summary")
    width = max(len(name) for name, _, _ in summary)
    for name, result, seconds in summary:
        print(f"{name:<{width}}  {seconds:6.1f} s  {result}")
    print("something FAILED" if failed else "all passed", flush=True)
    return int(failed)
