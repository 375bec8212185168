"""Measure how much memory the kernel of a lesson takes while all its cells run. Linux only.

    python tools/kernel_memory.py 01 04 07

In MB: `most`, the peak of the whole process; `own`, the peak of what no other process shares with it, so that it counts
for every learner; `shared`, files in memory (such as PyTorch's libraries) that all kernels together need once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # as docs/server/jupyterhub_config.py sets them


def measure(lesson: str) -> dict[str, float]:
    """Run a lesson; the figures above, and the seconds that it took."""
    (path,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
    client = NotebookClient(nbformat.read(path, 4), timeout=600, resources={"metadata": {"path": path.parent}})
    most, own, shared, done, start = 0, 0, 0, threading.Event(), time.monotonic()

    def watch(kernel):
        nonlocal most, own, shared
        while not done.wait(0.5):
            now = kernel.memory_full_info()
            most, own, shared = max(most, now.rss), max(own, now.uss), max(shared, now.shared)

    with client.setup_kernel():
        watcher = threading.Thread(target=watch, args=[psutil.Process(client.km.provisioner.pid)])
        watcher.start()
        try:
            for number, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, number)
        finally:
            done.set()
            watcher.join()
    figures = {"most": most, "own": own, "shared": shared}
    return {name: size / 1e6 for name, size in figures.items()} | {"seconds": time.monotonic() - start}


if __name__ == "__main__":
    for name in sys.argv[1:] or ["01", "04", "07"]:
        print(name, ", ".join(f"{what} {value:.0f}" for what, value in measure(name).items()), flush=True)
