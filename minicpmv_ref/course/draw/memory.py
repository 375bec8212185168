"""Lesson 05: what lives in memory at which moment, and which device has room for it."""

from minicpmv_ref.config import PRESETS
from minicpmv_ref.deploy.memory import DEVICES, DTYPES, estimate, fits, parameters

from .canvas import WIDTH, Canvas, text_width
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PURPLE, RED, SKY, YELLOW

MEMORY_COLORS = {  # from the ground up: what is always there comes first
    **{"weights": BLUE, "optimizer": SKY, "gradients": ORANGE},
    **{"vision": GREEN, "activations": YELLOW, "kv_cache": PURPLE},
}
MODELS = [(name.removeprefix("v").replace("_", "."), name) for name in PRESETS]  # (words in a menu, key)
MOST_SLICES = min(config.slicing.max_slice_nums for config in PRESETS.values())
BAR_LEFT, BAR_RIGHT = 106, WIDTH - 16  # where the bars begin and end


def plan_memory(preset: str, weights: str, training: bool, recompute: bool, batch: int, slices: int, text: int):
    """What the controls of `MemoryPanel` mean: (Estimate, arguments of `estimate` that were used).

    Quantized weights cannot be trained: then 16 bits are taken. There is less text where a model has no more positions.
    """
    config = PRESETS[preset]
    quantized = weights not in DTYPES
    tokens = min((1 + slices) * config.resampler.num_queries + text, config.llm.max_position_embeddings)
    given = dict(training=training, batch=batch, slices=slices, tokens=tokens, checkpointing=training and recompute)
    given["dtype"] = "bfloat16" if quantized else weights
    given["mixture"] = weights if quantized and not training else None
    return estimate(config, **given), given


def in_bytes(count: float) -> str:
    """16.2 GB, 51.4 MB, 7 kB; 1 GB is 10^9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def own_bytes(gigabytes: int) -> float:
    """What a GPU of this size has for a model, as the GPUs of DEVICES."""
    return DEVICES["8 GB GPU"][1] * gigabytes * 2**30


def memory_bars(preset: str, own: int, part: tuple | None = None, **controls) -> Canvas:
    """One bar for each moment, stacked by part, against lines of what devices have: phones above, GPUs below.

    `own` is your GPU in GB; `part` the (moment, part) whose formula is shown, None for the most important ones. Its
    facts: "moments" {moment: {part: bytes}}, "total" bytes in the fullest, "fits" {device: bool}, also of "own", and
    "gigabytes", a function from x to a GPU's size. Its spots: "part" and "own".
    """
    need, given = plan_memory(preset, **controls)
    canvas, most = Canvas(WIDTH, 366), 1.06 * need.total
    canvas.facts = {"moments": need.moments, "total": need.total}
    canvas.facts["fits"] = {name: fits(need, name) for name in DEVICES} | {"own": need.total <= own_bytes(own)}
    scale = (BAR_RIGHT - BAR_LEFT) / most
    canvas.facts["gigabytes"] = lambda x: (x - BAR_LEFT) / scale / own_bytes(1)
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
        x, y, full = BAR_LEFT, 52 + 40 * place, moment == need.fullest
        canvas.text(BAR_LEFT - 8, y + 20, moment, align="right", bold=full)
        for each in [each for each in MEMORY_COLORS if each in parts]:
            wide, words = parts[each] * scale, f"{moment}, {_plain(each)}"
            canvas.rect(x, y, wide, 30, MEMORY_COLORS[each], title=f"{words}: {in_bytes(parts[each])}")
            box, chosen = (x, y, max(wide, 6), 30), (moment, each) == part
            canvas.spot("part", (moment, each), box, f"formula of {words}", chosen=chosen)
            x += wide
        canvas.rect(BAR_LEFT, y, x - BAR_LEFT, 30, stroke=INK if full else GRAY, line=2 if full else 1)
    for spot in canvas.spots.values():
        if spot.chosen:
            canvas.rect(*spot.box, stroke=RED, line=4)
    x = BAR_LEFT + own_bytes(own) * scale
    if x <= BAR_RIGHT:
        canvas.path([(x, 47), (x, low)], RED, 3)
        step = (own_bytes(1) * scale, 0)
        canvas.spot("own", None, (x - 6, 47, 12, low - 47), "drag: a GPU of another size", "drag", (x, 120), step)

    used = {part for parts in need.moments.values() for part in parts}
    canvas.legend(8, 203, [(color, _plain(part)) for part, color in MEMORY_COLORS.items() if part in used])
    canvas.text(8, 20, f"{in_bytes(need.total)} in the fullest moment, “{need.fullest}”", bold=True)
    formulas = _part_formula(preset, need, given, *part) if part else _formulas(preset, need, given)
    canvas.lines(8, 242, formulas, 23, 14)
    _draw_devices(canvas, own)
    return canvas


def _draw_devices(canvas, own):
    """One box for each device: green if the model fits."""
    x = 8
    for kind, title in (("phone", "phones"), ("GPU", "GPUs"), ("own", "")):
        if title:
            canvas.text(x, 354, title)
            x += text_width(title) + 8
        for name, fit in canvas.facts["fits"].items():
            if name.endswith(kind):
                label = f"own {own}" if name == "own" else name.removesuffix(f" {kind}")
                wide = 70 if name == "own" else 51
                canvas.rect(x, 336, wide, 26, GREEN if fit else "white", GREEN if fit else RED, 2)
                canvas.text(x + wide / 2, 354, label, 14, "white" if fit else RED, "middle", bold=True)
                x += wide + 3
        x += 6


def _labels(lines):
    """[(middle, text), ...] of lines [(x, text), ...] from left to right; lines too close for two labels share one."""
    groups = []
    for line in lines:
        group = [line]
        while groups and _span(group)[0] < _span(groups[-1])[1] + 6:
            group = groups.pop() + group
        groups.append(group)
    return [_span(group)[2:] for group in groups]


def _span(lines):
    """(left end, right end, middle, text) of the label of some lines; it stays between the titles and the border."""
    (first, text), (last, other) = lines[0], lines[-1]
    text = text if text == other else f"{text}–{other}"
    half = text_width(text, 14) / 2
    middle = min(max((first + last) / 2, BAR_LEFT + half), WIDTH - half)
    return middle - half, middle + half, middle, text


def _plain(part: str) -> str:
    return "KV cache" if part == "kv_cache" else part


def _weights(config, need, given):
    if given["mixture"]:
        from minicpmv_ref.deploy.gguf import plan_mixture

        words = plan_mixture(config, given["mixture"]).total_bytes
        eyes = need.weights - words
        return f"weights: LLM in {given['mixture']} {in_bytes(words)} + ViT, resampler in 16 bits {in_bytes(eyes)}"
    count = sum(parameters(config).values())
    return f"weights: {count:,} parameters x {DTYPES[given['dtype']]} B = {in_bytes(need.weights)}"


def _part_formula(preset, need, given, moment, part):
    """Where the bytes of one part in one moment come from."""
    config, size = PRESETS[preset], DTYPES[given["dtype"]]
    count, views = need.moments[moment][part], given["batch"] * (1 + given["slices"])
    rows = given["batch"] * given["tokens"]
    yield f"“{moment}”, {_plain(part)}: {in_bytes(count)}"
    if part == "weights":
        yield _weights(config, need, given)
    elif part == "kv_cache":
        layers, heads, wide = config.llm.num_hidden_layers, config.llm.num_key_value_heads, config.llm.head_width
        yield f"a key and a value: 2 x {layers} layers x {heads} heads x {wide}"
        yield f"= {2 * layers * heads * wide:,} numbers a token"
        yield f"x {given['batch']} x {given['tokens']:,} tokens x {size} B"
    elif part == "vision":
        yield f"{views} views x {count // views // size:,} numbers x {size} B"
        every = "all that the backward pass will need, of every layer"
        yield f"of a view: {every if given['training'] else 'one layer’s, the largest'}"
    elif part == "activations" and moment == "update":
        yield f"AdamW takes one tensor at a time: 2 x {count // 2 // size:,} numbers x {size} B"
        yield "the largest tensor, twice"
    elif part == "activations":
        yield f"{given['batch']} x {given['tokens']:,} tokens x {count // rows:,} B"
        kept = f"{config.llm.num_hidden_layers} layers, and the head with its logits in 32 bits"
        kept = "each layer’s input, and one layer or the head" if given["checkpointing"] else kept
        one = {"read": "one layer’s, the largest moment of it"}
        one["backward"] = "the one layer through which the gradient goes"
        yield f"of a token: {one.get(moment, kept)}"
    else:
        numbers = count // size
        yield f"{numbers:,} numbers x {size} B"
        if part == "optimizer":
            yield "of each parameter, the mean of its gradients and that of their squares"
        else:
            later = " of the LLM; the ViT’s come when the LLM’s are done"
            yield f"one for each parameter{later if moment == 'backward' else ''}"


def _formulas(preset, need, given):
    """The numbers of this state, put into the formulas."""
    config = PRESETS[preset]
    llm, size = config.llm, DTYPES[given["dtype"]]
    yield _weights(config, need, given)
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
