"""How fast are our quantizers? Ours against ggml's C on one thread and gguf-py's numpy, in one process.

    python benchmarks/kquant.py --rounds 7

MB/s of float32 input. ggml's C needs the extra `llamacpp`, without which its columns stay empty; gguf-py has only
Q8_0 and Q5_0. Results are asserted equal byte for byte first. Ours runs on one thread too.

    python benchmarks/kquant.py --devices cpu cuda --threads 2

adds ours with the search in torch, there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import time
from pathlib import Path
from statistics import median

import gguf
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import paired, speedup

from minicpmv_ref.deploy.kquant import FORMATS, quantize

IGNORE_IMPORTANCE = ("Q8_0",)


def ggml_quantizer():
    """ggml's quantizer as a function of (array, kind, importance), or None without the extra."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        return None
    ggml = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libggml-base.*"))))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize_in_c(array, kind, importance):
        rows, cols = array.shape
        out = np.empty((rows, cols // FORMATS[kind].weights * FORMATS[kind].bytes), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        number = gguf.GGMLQuantizationType[kind].value
        ggml.ggml_quantize_chunk(number, array.ctypes.data, out.ctypes.data, 0, rows, cols, weights)
        return out

    return quantize_in_c


def measure(x: np.ndarray, kind: str, importance, in_c, devices, rounds: int, clock) -> dict[str, list[float]]:
    calls = {"ours": lambda: quantize(x, kind, importance)}
    if in_c is not None:
        calls["C"] = lambda: in_c(x, kind, importance)
    if kind in ("Q8_0", "Q5_0") and importance is None:
        calls["gguf"] = lambda: gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind])
    for device in devices:
        calls[device] = lambda device=device: quantize(x, kind, importance, device)
    first, *others = [call() for call in calls.values()]
    for name, other in zip(list(calls)[1:], others):
        assert (first == other).all(), f"{kind}: {name} writes other bytes"
    return paired(calls, rounds, clock)


def main() -> None:
    parser = arguments(__doc__, threads=1)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--devices", nargs="*", default=[], help="also with the search in torch, on cpu or cuda")
    parser.add_argument("--cpu", action="store_true", help="CPU time, for crowded machines")
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.rows, args.cols), np.float32)
    importance, in_c = rng.random(args.cols, np.float32), ggml_quantizer()

    rows = []
    for kind in FORMATS:
        rows.append({"kind": kind})
        for weights, suffix in ((None, ""), (importance, ", importance")):
            if weights is not None and kind in IGNORE_IMPORTANCE:
                rows[-1]["ours / C, importance"] = "ignored by both"
                continue
            times = measure(x, kind, weights, in_c, args.devices, args.rounds, clock)
            rows[-1] |= {name + suffix: x.nbytes / 1e3 / median(t) for name, t in times.items()}
            rows[-1] |= {f"ours / {n}{suffix}": speedup(times[n], times["ours"]) for n in times if n != "ours"}
        print(rows[-1], file=sys.stderr, flush=True)
    report("kquant", args, rows, numpy=np.__version__, dtype="float32", unit="MB of input per second")


if __name__ == "__main__":
    main()
