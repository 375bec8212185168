"""llama.cpp runs the exported files: the proof that they are right, and what a phone would do.

It runs in a process of its own: where llama.cpp meets something it does not like, it aborts, and Python with it.
The parent writes a job into a temporary folder, the child (this same file) answers it there.
Needs the extra `llamacpp`. Settings are those that compute most exactly: float32 KV cache, no flash attention, no
repacked weights. Left out: GPUs, sampling, conversations of several turns.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..inputs.checks import check_int, check_list, check_type, quoted, shown
from ..inputs.files import parse_json, plain_file, read_json
from ..inputs.pictures import load_image

MARKER = "<__media__>"  # stands where llama.cpp puts a picture
REFUSED = 3  # exit code of a child that refuses its job; any other is a crash
INSTALL = (
    "CMAKE_ARGS=-DGGML_NATIVE=OFF {python} -m pip install llama-cpp-python==0.3.36\n"
    "It compiles llama.cpp, which takes a C++ compiler and 3 to 6 minutes."
)


@dataclass(frozen=True)
class Answer:
    """What llama.cpp made of one prompt."""

    tokens: list[int]  # new ones, without the end token
    prompt_tokens: int  # visual ones included
    prompt_seconds: float  # the picture through the ViT, and the prompt through the language model
    answer_seconds: float  # for len(tokens) more steps
    visual: list[np.ndarray]  # for each view its visual tokens (Q, D)
    logits: np.ndarray  # (V,) of the first new token


def prompt_text(question: str, processor, images: int = 1) -> str:
    """Write a question as the text that llama.cpp takes: the chat template, and MARKER in each picture's place.

    Args:
        question: text after the pictures.
        processor: its chat template is used.
        images: how many pictures, or frames of a clip, come before the question.

    Returns:
        The text. llama.cpp writes no `<image_id>`: it is the prompt of `use_image_id=False`.

    Raises:
        TypeError: `question` is no text.
        ValueError: a reserved token in the question; llama.cpp would take it for one. `images` is no integer of at
            least 0.

    Example:
        >>> from minicpmv_ref import Processor
        >>> prompt_text("What is this?", Processor.from_pretrained("nano"))[-75:]
        '<|im_start|>user\\n<__media__>\\nWhat is this?<|im_end|>\\n<|im_start|>assistant\\n'
    """
    from ..inputs.messages import reserved_in, reserved_tokens
    from ..prompt import render_chat  # here, because the child needs no torch

    check_type("question", question, str)
    check_int("images", images, least=0)
    if typed := reserved_in(question, (MARKER, *reserved_tokens(processor.tokenizer))):
        raise ValueError(f"{typed} is reserved for image layout and chat template, it cannot be in a question")
    tokenizer, content = processor.tokenizer, f"{MARKER}\n" * images + question
    messages = [{"role": "user", "content": content}]
    return render_chat(messages, processor.config.version, tokenizer.bos_token or "", tokenizer.eos_token or "")[0]


def missing() -> str | None:
    """What to install, or None if llama.cpp is there."""
    return INSTALL.format(python=quoted(sys.executable)) if importlib.util.find_spec("llama_cpp") is None else None


def run(
    llm: str | os.PathLike,
    mmproj: str | os.PathLike | None,
    prompts: list[tuple[str, Image.Image | list[Image.Image] | None]],
    max_new_tokens: int = 64,
    threads: int = 1,
) -> list[Answer]:
    """Answer prompts with llama.cpp, each by itself, greedily.

    Args:
        llm, mmproj: the two files that `gguf.export` writes; None for the second if no prompt has a picture.
        prompts: (text, image) pairs; the text has MARKER where an image belongs, see `prompt_text`. The image is a
            PIL image, read as `load_image` does, a list of several, or None.
        max_new_tokens: of each answer; it may end earlier.
        threads: of the CPU, at most 512.

    Returns:
        An Answer for each prompt.

    Raises:
        ImportError: llama.cpp is not installed; the message says how.
        TypeError: an argument or a part of a prompt of another type.
        ValueError: llama.cpp refuses a file, a text is empty or has a zero byte, a picture comes without `mmproj`, or a
            prompt is longer than the model's positions.
        OSError: a file is missing, or llama.cpp died; the message ends with its last words.
    """
    if missing():
        raise ImportError(f"this needs llama.cpp. Install it with\n{missing()}")
    job = {
        "max_new_tokens": check_int("max_new_tokens", max_new_tokens),
        "threads": check_int("threads", threads, 1, 512),
    }
    prompts = _check_prompts(prompts, with_images=mmproj is not None)
    for name, file in (("llm", llm), ("mmproj", mmproj)):
        if file is not None or name == "llm":
            file = os.fsdecode(plain_file(check_type(name, file, str, os.PathLike, what="a path")))
        job[name] = file
    with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as folder:
        job |= {"texts": [text for text, _ in prompts], "images": []}
        for number, (_, images) in enumerate(prompts):
            job["images"].append([f"{number}-{place}.png" for place in range(len(images))])
            for image, file in zip(images, job["images"][-1]):
                load_image(image).save(Path(folder, file))
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        search = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        child = subprocess.run(
            [sys.executable, "-P", "-m", __name__, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), "GGML_NO_BACKTRACE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        words = child.stdout.strip().splitlines()[-5:]
        if child.returncode == REFUSED:
            raise ValueError("; ".join(words))
        if child.returncode:
            raise OSError(f"llama.cpp died with exit code {child.returncode}: {'; '.join(words)}")
        with np.load(Path(folder, "answers.npz"), allow_pickle=False) as arrays:
            answers = parse_json(str(arrays["answers"]))
            return [
                Answer(**a, visual=[arrays[f"visual {n} {v}"] for v in range(views)], logits=arrays[f"logits {n}"])
                for n, (a, views) in enumerate(answers)
            ]


def _check_prompts(prompts, with_images: bool) -> list[tuple[str, list[Image.Image]]]:
    """The prompts, each with a list of images."""
    checked = []
    for number, prompt in enumerate(check_list("prompts", prompts, tuple, list, what="a (text, image) pair")):
        name = f"prompts[{number}]"
        if len(prompt) != 2:
            raise ValueError(f"{name} must be a (text, image) pair, got {len(prompt)} parts")
        text, image = check_type(f"{name}[0], the text,", prompt[0], str), prompt[1]
        if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):  # C ends a text at a zero byte
            raise ValueError(
                f"{name}[0], the text, must have letters, no zero byte and no half of a character, got {shown(text)}"
            )
        images = [] if image is None else image if isinstance(image, list) else [image]
        for each in images:
            check_type(f"{name}[1], the image,", each, Image.Image, what="a PIL image, a list of them or None")
        if text.count(MARKER) != len(images):
            raise ValueError(f"{name} must hold {MARKER} once for each of its {len(images)} images")
        if images and not with_images:
            raise ValueError(f"{name} has an image, but mmproj, the file with the ViT, is None")
        checked.append((text, images))
    return checked


# In the child --------------------------------------------------------------------------------------------------------


class _LlamaCpp:
    """A loaded model. Every object of llama.cpp's C interface is a pointer; it dies with the process."""

    def __init__(self, llm: str, mmproj: str | None, threads: int):
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self.c, self.m = llama_cpp, mtmd_cpp
        self.log = llama_cpp.llama_log_callback(self._say)  # kept: C holds only its address
        for log_set in (llama_cpp.llama_log_set, mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
            log_set(self.log, None)

        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers, settings.use_extra_bufts = 0, False
        self.model = llama_cpp.llama_model_load_from_file(llm.encode(), settings)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {llm}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = llama_cpp.llama_model_n_ctx_train(self.model)
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = settings.n_batch
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vision = None
        if mmproj:
            settings = mtmd_cpp.mtmd_context_params_default()
            settings.use_gpu = settings.print_timings = settings.warmup = False
            settings.flash_attn_type, settings.n_threads = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, threads
            self.vision = mtmd_cpp.mtmd_init_from_file(mmproj.encode(), self.model, settings)
            if not self.vision:
                raise ValueError(f"llama.cpp cannot load {mmproj}")

    @staticmethod
    def _say(level, text, _):
        if level == 4:  # errors only
            sys.stderr.write(text.decode("utf-8", "replace"))

    def answer(self, text: str, images: list[Image.Image], max_new_tokens: int) -> tuple[dict, list, np.ndarray]:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        start = time.perf_counter()
        length, visual = self._read_pictures(text, images) if images else (self._read_text(text), [])
        logits = self._logits()
        first, prompt_end = logits.copy(), time.perf_counter()
        tokens = []
        while len(tokens) < max_new_tokens:
            token = int(logits.argmax())
            if self.c.llama_vocab_is_eog(self.vocab, token):
                break
            tokens.append(token)
            if length + len(tokens) > self.batch:  # no position is left
                break
            self._decode([token])
            logits = self._logits()
        seconds = dict(prompt_seconds=prompt_end - start, answer_seconds=time.perf_counter() - prompt_end)
        return dict(tokens=tokens, prompt_tokens=length, **seconds), visual, first

    def _read_pictures(self, text: str, images: list[Image.Image]) -> tuple[int, list[np.ndarray]]:
        """Feed a prompt with pictures. llama.cpp cuts it into chunks: text, or one view of a picture."""
        m, bitmaps, raw = self.m, [], text.encode()
        for image in images:
            pixels = image.tobytes()
            bitmaps.append(m.mtmd_bitmap_init(*image.size, (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)))
        chunks = m.mtmd_input_chunks_init()
        prompt = m.mtmd_input_text(raw, len(raw), False, True)
        count = len(bitmaps)
        if m.mtmd_tokenize(self.vision, chunks, ctypes.byref(prompt), (ctypes.c_void_p * count)(*bitmaps), count):
            raise ValueError("llama.cpp cannot read the prompt")
        self._check_room(m.mtmd_helper_get_n_pos(chunks))
        count, past, visual = m.mtmd_input_chunks_size(chunks), self.c.llama_pos(0), []
        for number in range(count):
            chunk = m.mtmd_input_chunks_get(chunks, number)
            if m.mtmd_input_chunk_get_type(chunk) == m.MTMD_INPUT_CHUNK_TYPE_TEXT:
                rest = (past.value, 0, self.batch, number == count - 1, ctypes.byref(past))
                failed = m.mtmd_helper_eval_chunk_single(self.vision, self.context, chunk, *rest)
            else:
                failed = m.mtmd_encode_chunk(self.vision, chunk)
                seen = m.mtmd_get_output_embd(self.vision)
                shape = m.mtmd_input_chunk_get_n_tokens(chunk), self.c.llama_model_n_embd(self.model)
                visual.append(np.ctypeslib.as_array(seen, shape).copy())
                rest = (past.value, 0, self.batch, ctypes.byref(past), m.mtmd_helper_post_decode_callback(), None)
                failed = failed or m.mtmd_helper_decode_image_chunk(self.vision, self.context, chunk, seen, *rest)
            if failed:
                raise OSError(f"llama.cpp could not read part {number} of the prompt")
        m.mtmd_input_chunks_free(chunks)
        for bitmap in bitmaps:
            m.mtmd_bitmap_free(bitmap)
        return past.value, visual

    def _read_text(self, text: str) -> int:
        raw = text.encode()
        ids = (self.c.llama_token * len(raw))()
        count = self.c.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), False, True)
        self._check_room(count)
        self._decode(ids[:count])
        return count

    def _check_room(self, count: int) -> None:  # llama.cpp would abort
        if count > self.batch:
            raise ValueError(f"the prompt has {count} tokens, but the model takes {self.batch}")

    def _decode(self, tokens: list[int]) -> None:
        ids = (self.c.llama_token * len(tokens))(*tokens)  # a name for it: C holds only its address
        if self.c.llama_decode(self.context, self.c.llama_batch_get_one(ids, len(ids))):
            raise OSError("llama.cpp could not decode a token")

    def _logits(self) -> np.ndarray:
        size = self.c.llama_vocab_n_tokens(self.vocab)
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, -1), (size,))


def _child(folder: Path) -> None:
    job = read_json(folder / "job.json")
    model = _LlamaCpp(job["llm"], job["mmproj"], job["threads"])
    answers, arrays = [], {}
    for number, (text, names) in enumerate(zip(job["texts"], job["images"])):
        images = [load_image(folder / name) for name in names]
        answer, visual, logits = model.answer(text, images, job["max_new_tokens"])
        answers.append((answer, len(visual)))
        arrays |= {f"visual {number} {view}": tokens for view, tokens in enumerate(visual)}
        arrays[f"logits {number}"] = logits
    np.savez(folder / "answers.npz", answers=json.dumps(answers), **arrays)


if __name__ == "__main__":
    try:
        _child(Path(sys.argv[1]))
    except ValueError as refusal:
        sys.stdout.write(str(refusal))
        sys.exit(REFUSED)
