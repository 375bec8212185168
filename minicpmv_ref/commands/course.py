"""`course`: opens the notebooks in JupyterLab."""

import json
import os
import secrets
import socket
import tempfile
from pathlib import Path

from .common import ROOT, CommandError, add_number, kernel_environment, need, notebooks_folder


def options(parser):
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    add_number(
        parser, "--port", within=(1, 65535), type=int, help="use this port (default: the first free one from 8888 on)"
    )


def run(args):
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
        config = {
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

        LabApp.launch_instance(argv=[f"--{name}={value}" for name, value in config.items()])


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
