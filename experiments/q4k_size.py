"""How many bytes are left after Q4_K_M? Counted tensor by tensor, as the files are written."""

from __future__ import annotations

from minicpmv_ref.config import PRESETS
from minicpmv_ref.deploy.gguf import plan_mixture, plan_vision

from ._frame import CONFIRMED, REFUTED, Claim, Finding

CLAIM = Claim(
    title="Q4_K_M takes 17 GB to about 5 GB",
    place="Section 5, on MiniCPM-Llama3-V 2.5.",
    says="In fp16 the model needs 16 to 17 GB; quantized to 4 bits with Q4_K_M it needs about 5 GB.",
    done="Bytes of every tensor in both GGUF files, by the mixture that llama.cpp's quantizer chooses. GB are "
    "10^9 bytes.",
    limits="Memory while it runs: KV cache, activations and what the engine needs come on top. How good the answers "
    "still are.",
)
SETTINGS = {"fast": {"models": ["v2_5"]}, "cpu": {"models": ["v2_5", "v2_6"]}, "gpu": {"models": ["v2_5", "v2_6"]}}


def run(setting: dict, each) -> Finding:
    def count(model: str) -> list[float]:
        config = PRESETS[model]
        before, after = (plan_mixture(config, mixture) for mixture in ("F16", "Q4_K_M"))
        eye = plan_vision(config).total_bytes
        return [before.total_bytes / 1e9, eye / 1e9, after.total_bytes / 1e9, after.bits_per_weight]

    table = [["model", "LLM, F16", "LLM, Q4_K_M", "bits a weight", "ViT and resampler, F16", "all, F16", "all, Q4_K_M"]]
    found = dict(zip(setting["models"], each(setting["models"], count)))
    for model, (before, eye, after, bits) in found.items():
        numbers = [before, after, bits, eye, before + eye, after + eye]
        table.append([model.replace("_", "."), *(f"{number:.2f}" for number in numbers)])
    before, eye, after, _ = found["v2_5"]
    return Finding(
        CONFIRMED if 16 <= before + eye <= 17.5 and 4.5 <= after <= 5.5 else REFUTED,
        f"{before + eye:.2f} GB before; {after:.2f} GB after is the language model alone. ViT and resampler stay in 16 "
        f"bits, so that both files have {after + eye:.2f} GB: the 5 GB are the part that was quantized.",
        {
            "language model of 2.5, Q4_K_M": f"{after:.2f} GB",
            "with ViT and resampler": f"{after + eye:.2f} GB",
            "before, all in F16": f"{before + eye:.2f} GB",
        },
        table=table,
    )
