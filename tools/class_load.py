"""Measure how soon a picture follows its slider, and what memory goes, when many learners share a machine. Linux only.

    python tools/class_load.py 01 1 2 4 8

Each learner has a Jupyter server and a kernel, as under JupyterHub. The lesson runs up to a panel; then all move a
slider over the websocket as a browser does, the next step when the last picture has come. `all at once`: nobody rests.
`every 2 s`: a step in two seconds from each. The hub's proxy, HTTPS, the network and the browser are left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from itertools import chain, cycle
from pathlib import Path

import nbformat
import psutil
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

ROOT = Path(__file__).resolve().parent.parent
MOVED = {"01": ("SlicingPlayground", "width"), "04": ("AnswerAttention", "token")}  # lesson: panel, slider
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # as docs/server/jupyterhub_config.py sets them
WORDS = "--no-browser --allow-root --IdentityProvider.token= --ServerApp.disable_check_xsrf=True"
WORDS += " --ServerApp.kernel_websocket_connection_class=minicpmv_ref.commands.websocket.SendsAtOnce"  # as start.py
SECONDS = 20  # of each measurement


class Learner:
    async def start(self, folder: str, port: int):
        own = dict.fromkeys(["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"], folder)
        command = [sys.executable, "-m", "jupyterlab", *WORDS.split(), f"--port={port}", f"--ServerApp.root_dir={ROOT}"]
        environment = {**os.environ, **QUIET, **own, "JUPYTER_PREFER_ENV_PATH": "1"}
        self.server = psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        url, body, reply = f"http://127.0.0.1:{port}/api/kernels", '{"name": "python3", "path": "notebooks"}', None
        while reply is None:
            try:
                reply = await AsyncHTTPClient().fetch(url, method="POST", body=body, request_timeout=300)
            except OSError:  # it is not up yet
                await asyncio.sleep(0.5)
        channels = f"ws{url[4:]}/{json.loads(reply.body)['id']}/channels"
        self.socket = await websocket_connect(channels, connect_timeout=300)

    async def ask(self, kind: str, content: dict) -> list[dict]:
        """Send a message; what the kernel publishes until it has handled it."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": "1", "version": "5.3"}
        rest = {"parent_header": {}, "metadata": {}, "buffers": [], "channel": "shell"}
        await self.socket.write_message(json.dumps({"header": header, "content": content, **rest}))
        published = []
        while not published or published[-1]["content"].get("execution_state") != "idle":
            message = await self.socket.read_message()
            message = json.loads(message) if isinstance(message, str) else {}
            if message.get("channel") == "iopub" and message["parent_header"].get("msg_id") == header["msg_id"]:
                assert message["msg_type"] != "error", "\n".join(message["content"]["traceback"])
                published.append(message)
        return published

    async def open_lesson(self, cells: list[str], slider: str):
        for code in [*cells, f"_c = _.controls['{slider}']; print(_c.comm.comm_id, _c.min, _c.max)"]:
            published = await self.ask("execute_request", {"code": code, "silent": False, "store_history": True})
        printed = "".join(m["content"]["text"] for m in published if m["msg_type"] == "stream")
        self.slider, low, high = printed.split()
        self.values = cycle([*range(int(low) + 1, int(high) + 1), int(low)])  # a panel may begin at the first

    async def move(self, pause: float, end: float) -> list[float]:
        """Move the slider until `end`; the milliseconds that each picture took."""
        taken = []
        await asyncio.sleep(random.random() * pause)
        while (start := time.monotonic()) < end:
            data = {"method": "update", "state": {"value": next(self.values)}, "buffer_paths": []}
            published = await self.ask("comm_msg", {"comm_id": self.slider, "data": data})
            taken.append(1000 * (time.monotonic() - start))
            assert any("<svg" in json.dumps(message["content"]) for message in published), "no picture came"
            await asyncio.sleep(max(0.0, pause - taken[-1] / 1000))
        return taken


async def measure(lesson: str, number: int):
    (path,), (panel, slider) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb"), MOVED[lesson]
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    cells = cells[: 1 + next(i for i, source in enumerate(cells) if f"panels.{panel}(" in source)]
    learners, free = [Learner() for _ in range(number)], psutil.virtual_memory().available

    def processes():
        for learner in learners:
            yield from (learner.server, *learner.server.children(recursive=True))

    def cpu() -> float:
        return sum(1000 * sum(process.cpu_times()[:2]) for process in processes())

    with tempfile.TemporaryDirectory() as folder:
        try:
            await asyncio.gather(*(each.start(f"{folder}/{i}", 9500 + i) for i, each in enumerate(learners)))
            await asyncio.gather(*(each.open_lesson(cells, slider) for each in learners))
            for name, pause in (("all at once", 0.0), ("every 2 s", 2.0)):
                before, end = cpu(), time.monotonic() + SECONDS
                taken = sorted(chain(*await asyncio.gather(*(each.move(pause, end) for each in learners))))
                half, most = statistics.median(taken), taken[int(0.95 * len(taken))]
                spent = (cpu() - before) / len(taken)
                print(f"{lesson}, {number} learners, {name}: {half:.0f} ms, 95 % within {most:.0f} ms", end="; ")
                print(f"{len(taken)} steps, CPU {spent:.0f} ms each", flush=True)
            own = sum(process.memory_full_info().uss for process in processes()) / number / 1e6
            gone = (free - psutil.virtual_memory().available) / 1e9
            print(f"{lesson}, {number} learners: own memory {own:.0f} MB each; {gone:.2f} GB less are free", flush=True)
        finally:
            for process in list(processes()):
                process.kill()


if __name__ == "__main__":
    for count in sys.argv[2:]:
        asyncio.run(measure(sys.argv[1], int(count)))
