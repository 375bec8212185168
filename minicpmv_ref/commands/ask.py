"""`ask`: one question about a picture, with the plan and the timings."""

from ..inputs.checks import LIMITS, printable
from .common import FACTORS, SEEDS, CommandError, Stopwatch, add_answer_length, add_number, add_question, need


def options(parser):
    add_question(parser)
    add_number(
        parser,
        "--max-slice-nums",
        within=(1, LIMITS["max_slice_nums"]),
        type=int,
        metavar="N",
        help="at most so many slices (default: the model's own)",
    )
    add_answer_length(parser)
    add_number(
        parser,
        "--temperature",
        within=FACTORS,
        type=float,
        default=0.0,
        help="0: the likeliest token (default); above 0: sampled",
    )
    add_number(parser, "--seed", within=SEEDS, type=int, default=0, help="of the sampling")


def run(args):
    for module in ("torch", "transformers"):
        need(module, "the model")
    import torch

    from ..inputs.pictures import load_image
    from ..model import decode_stream
    from ..peers import load

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
