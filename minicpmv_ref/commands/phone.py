"""`phone`: one question about pictures and clips, answered by llama.cpp."""

import tempfile

from .common import THREADS, CommandError, add_answer_length, add_number, add_question, need, say
from .export import MIXTURES


def options(parser):
    parser.add_argument("files", metavar="IMAGE", nargs="+", help="pictures, animated pictures or videos")
    add_question(parser)
    parser.add_argument("--mixture", choices=MIXTURES, default="Q4_K_M", help="of the language model (default: Q4_K_M)")
    add_answer_length(parser)
    add_number(parser, "--threads", within=THREADS, type=int, default=1, metavar="N", help="of the CPU (default: 1)")


def run(args):
    for module in ("torch", "transformers", "gguf"):
        need(module, "the model")
    from ..deploy import llamacpp
    from ..deploy.gguf import export as write
    from ..inputs.clips import read_clip
    from ..model import MiniCPMV, decode_answer
    from ..processor import Processor
    from .ask import check_question, choose_model, cut_off

    if llamacpp.missing():
        raise CommandError(
            f"this runs the model in llama.cpp, which is not installed. Install it with\n{llamacpp.missing()}"
        )
    try:
        check_question(args.question)
        clips = [read_clip(file) for file in args.files]
        images = [frame for clip in clips for frame in clip.frames]
        name = args.model or choose_model(clips, args.question)
        processor, model = Processor.from_pretrained(name), MiniCPMV.from_pretrained(name)
        processor([{"role": "user", "content": [*images, args.question]}])  # refuses what cannot be asked
        with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as folder:
            llm, mmproj = write(model, processor, folder, args.mixture)
            sizes = [path.stat().st_size / 1e6 for path in (llm, mmproj)]
            prompt = llamacpp.prompt_text(args.question, processor, len(images))
            said = llamacpp.run(llm, mmproj, [(prompt, images)], args.max_new_tokens, args.threads)[0]
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    say(f"model    {name}")
    print(f"files    {args.mixture}: language model {sizes[0]:,.2f} MB; ViT and resampler {sizes[1]:,.2f} MB")
    visual = sum(map(len, said.visual))
    print(f"prompt   {said.prompt_tokens} tokens, {visual} of them visual, in {said.prompt_seconds * 1000:,.1f} ms")
    say(f"\nanswer: {decode_answer(said.tokens, processor.tokenizer, processor.stop_ids)}\n")
    steps = len(said.tokens)
    print(
        f"decoding {steps} tokens in {said.answer_seconds * 1000:,.1f} ms: {steps / said.answer_seconds:,.0f} tokens/s"
    )
    if steps == args.max_new_tokens:
        print(f"\n{cut_off(steps, steps)}")
