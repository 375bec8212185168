"""Lesson 05: what lives in memory at which moment, and which device has room for it."""

from minicpmv_ref.config import PRESETS
from minicpmv_ref.deploy.memory import DEVICES, DTYPES, estimate, fits, parameters

from .canvas import BLUE, GRAY, GREEN, INK, ORANGE, PURPLE, RED, SKY, WIDTH, YELLOW, Canvas, text_width

MEMORY_COLORS = {  # from the ground up: what is always there comes first
    "weights": BLUE,
    "optimizer": SKY,
    "gradients": ORANGE,
    "vision": GREEN,
    "activations": YELLOW,
    "kv_cache": PURPLE,
}
BAR_LEFT, BAR_RIGHT = 106, WIDTH - 16  # where the bars begin and end


def plan_memory(preset: str, weights: str, training: bool, recompute: bool, batch: int, slices: int, text: int):
    """What the panel's controls mean: (Estimate, arguments of `estimate` that were used).

    Args:
        preset: a name of PRESETS.
        weights: a dtype, or a mixture. Quantized weights cannot be trained: then 16 bits are taken.
        training: a step of AdamW instead of an answer.
        recompute: activation checkpointing.
        batch: samples.
        slices: of the one picture of each.
        text: tokens of text and answer; fewer where the model has no more positions.
    """
    config = PRESETS[preset]
    quantized = weights not in DTYPES
    given = {
        "training": training,
        "dtype": "bfloat16" if quantized else weights,
        "batch": batch,
        "slices": slices,
        "tokens": min((1 + slices) * config.resampler.num_queries + text, config.llm.max_position_embeddings),
        "mixture": weights if quantized and not training else None,
        "checkpointing": training and recompute,
    }
    return estimate(config, **given), given


def in_bytes(count: float) -> str:
    """16.2 GB, 51.4 MB, 7 kB; 1 GB is 10^9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def memory_bars(preset: str, **controls) -> Canvas:
    """One bar for each moment, stacked by part, against lines of what devices have: phones above, GPUs below.

    Its facts: "moments" {moment: {part: bytes}}, "fullest" moment, "total" bytes in it, "fits" {device: bool}.
    """
    need, given = plan_memory(preset, **controls)
    canvas, most = Canvas(WIDTH, 366), 1.06 * need.total
    canvas.facts = {"moments": need.moments, "fullest": need.fullest, "total": need.total}
    canvas.facts["fits"] = {name: fits(need, name) for name in DEVICES}
    scale = (BAR_RIGHT - BAR_LEFT) / most
    low = 52 + 40 * len(need.moments)
    rooms = sorted((BAR_LEFT + size * share * scale, name) for name, (size, share) in DEVICES.items())
    rooms = [(x, name) for x, name in rooms if x <= BAR_RIGHT]
    for x, _ in rooms:
        canvas.path([(x, 47), (x, low)], GRAY, 1)
    for kind, title, y in (("phone", "phones", 42), ("GPU", "GPUs", low + 14)):
        labels = _labels([(x, name.split()[0]) for x, name in rooms if name.endswith(kind)])
        if labels:
            canvas.text(BAR_LEFT - 8, y, f"{title}, GB", 14, GRAY, "right")
        for middle, label in labels:
            canvas.text(middle, y, label, 14, GRAY, "middle")
    for place, (moment, parts) in enumerate(need.moments.items()):
        y = 52 + 40 * place
        full = moment == need.fullest
        canvas.text(BAR_LEFT - 8, y + 20, moment, align="right", bold=full)
        bars = [
            (parts[part] * scale, color, f"{moment}, {_plain(part)}: {in_bytes(parts[part])}")
            for part, color in MEMORY_COLORS.items()
            if part in parts
        ]
        x = canvas.stack(BAR_LEFT, y, 30, bars)
        canvas.rect(BAR_LEFT, y, x - BAR_LEFT, 30, stroke=INK if full else GRAY, line=2 if full else 1)

    used = {part for parts in need.moments.values() for part in parts}
    canvas.legend(8, 203, [(color, _plain(part)) for part, color in MEMORY_COLORS.items() if part in used])
    canvas.text(8, 20, f"{in_bytes(need.total)} in the fullest moment, “{need.fullest}”", bold=True)
    canvas.lines(8, 242, _formulas(preset, need, given), 23, 14)
    _draw_devices(canvas)
    return canvas


def _draw_devices(canvas):
    """One box for each device: green if the model fits."""
    x = 8
    for kind, title in (("phone", "phones"), ("GPU", "GPUs")):
        canvas.text(x, 354, title)
        x += text_width(title) + 10
        for name in DEVICES:
            if name.endswith(kind):
                fit = canvas.facts["fits"][name]
                canvas.rect(x, 336, 56, 26, GREEN if fit else "white", GREEN if fit else RED, 2)
                canvas.text(
                    x + 28, 354, name.removesuffix(f" {kind}"), 14, "white" if fit else RED, "middle", bold=True
                )
                x += 62
        x += 14


def _labels(lines):
    """[(middle, text), ...] of lines [(x, text), ...] from left to right; lines too close for two labels share one."""
    groups = []  # (x of the first line, x of the last, text of the first, text of the last)
    for x, text in lines:
        group = (x, x, text, text)
        while groups and _span(*group)[0] < _span(*groups[-1])[1] + 6:
            first, _, text, _ = groups.pop()
            group = (first, group[1], text, group[3])
        groups.append(group)
    return [_span(*group)[2:] for group in groups]


def _span(first, last, text, other):
    """(left end, right end, middle, text) of one label; it stays between the titles and the border."""
    text = text if text == other else f"{text}–{other}"
    half = text_width(text, 14) / 2
    middle = min(max((first + last) / 2, BAR_LEFT + half), WIDTH - half)
    return middle - half, middle + half, middle, text


def _plain(part: str) -> str:
    return "KV cache" if part == "kv_cache" else part


def _formulas(preset, need, given):
    """The numbers of this state, put into the formulas."""
    config = PRESETS[preset]
    llm, size = config.llm, DTYPES[given["dtype"]]
    if given["mixture"]:
        from minicpmv_ref.deploy.gguf import plan_mixture

        words = plan_mixture(config, given["mixture"]).total_bytes
        eyes = need.weights - words
        yield f"weights: LLM in {given['mixture']} {in_bytes(words)} + ViT, resampler in 16 bits {in_bytes(eyes)}"
    else:
        yield f"weights: {sum(parameters(config).values()):,} parameters x {size} B = {in_bytes(need.weights)}"
    if given["training"]:
        each = f"weights, gradients and AdamW’s two: 4 x {size} B a parameter"
        yield f"{each} = {in_bytes(need.weights + need.gradients + need.optimizer)}"
        kept = "each layer's input, and one layer" if given["checkpointing"] else "all that the backward pass needs"
        yield f"the LLM keeps {kept}: {in_bytes(need.activations)} for {given['batch']} x {given['tokens']:,} tokens"
    else:
        heads = f"{llm.num_hidden_layers} layers x {llm.num_key_value_heads} heads x {llm.head_width}"
        tokens = f"{given['batch']} x {given['tokens']:,} tokens"
        yield f"KV cache: 2 x {heads} x {tokens} x {size} B = {in_bytes(need.kv_cache)}"
        views = given["batch"] * (1 + given["slices"])
        what = f"{views} views" if views > 1 else "1 view"
        yield f"vision: {what} at a time take {in_bytes(need.vision)}, gone before the LLM reads"
    one = next(one for one in (1e9, 1e6, 1e3) if need.total >= one)
    parts = need.moments[need.fullest]
    parts = [f"{parts[part] / one:.3g}" for part in MEMORY_COLORS if part in parts]
    yield f"{need.fullest}: {' + '.join(parts)} = {in_bytes(need.total)}"
