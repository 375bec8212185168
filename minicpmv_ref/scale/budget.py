"""What a step costs before you take it: bytes against what the card has, FLOPs against what it can do; and two savings.

    bytes   weights, their gradients, AdamW's two means of them, and what the forward pass keeps for the backward pass.
            The first three follow from the parameters. The last is measured: a few samples go forward, every tensor
            that autograd keeps is counted, and since no tensor grows with the square of anything, it is scaled.
    FLOPs   from counts.py.
    MFU     model FLOPs utilization = FLOPs of a step / (seconds of a step x peak of the card). What is computed a
            second time, because of checkpointing, is not counted.

`deploy/memory.py` answers "will it fit?" from the config alone, for a model in one dtype that trains as a whole. Here
parts are frozen, bfloat16 copies stand beside float32 weights, and any objective goes. Left out: sharding, and the
allocator's waste. The counts are tested on a CPU; no figure here was compared with a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ..counts import Workload, state_bytes
from ..inputs.checks import WrongType, check_int, check_list, check_number, check_type, printable, shown
from ..inputs.memory import system_memory
from ..learn.packing import PackedBatch
from ..model import MiniCPMV

# Dense bfloat16 FLOP/s by a part of the card's name, from the makers' data sheets. The first that fits counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


# ---- FLOPs


def workload_of(packed: PackedBatch, patch_size: int = 14) -> Workload:
    """Count what a packed batch asks of the model.

    Args:
        packed: from `pack_batch`. Empty pictures, of samples that are spelled in words, count nothing; neither does the
            padding of 2.5.
        patch_size: pixels.

    Returns:
        A Workload.

    Raises:
        TypeError: no PackedBatch.
        ValueError: a patch_size below 1.

    Example:
        >>> from minicpmv_ref import Processor
        >>> from minicpmv_ref.learn.packing import pack_batch
        >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> workload_of(pack_batch(Processor.from_pretrained("nano")([chat, chat]), [[0, 1]]))
        Workload(tokens=62, supervised=10, token_pairs=1922, views=0, patches=0, patch_pairs=0, padding=0)
    """
    check_type("packed", packed, PackedBatch)
    check_int("patch_size", patch_size)
    lengths = [end - start for borders in packed.borders for start, end in pairwise(borders)]
    views = [view for views in packed.images for view in views if view.ndim == 3]
    patches = [view.shape[1] * view.shape[2] // patch_size**2 for view in views]
    supervised = int((packed.labels != -100).sum())
    token_pairs, patch_pairs = sum(n * n for n in lengths), sum(n * n for n in patches)
    return Workload(sum(lengths), supervised, token_pairs, len(views), sum(patches), patch_pairs)


def peak_flops(card: str) -> float | None:
    """Look up a card's peak by its name, as torch.cuda.get_device_name() gives it.

    Returns:
        Dense bfloat16 FLOP/s; None if the card is not in `PEAKS`.

    Raises:
        TypeError: no text.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("GeForce")
        (989000000000000.0, None)
    """
    check_type("card", card, str)
    return next((peak for name, peak in PEAKS.items() if name in card), None)


def mfu(step_flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilization: the share of its peak that a card spends on the model.

    Args:
        step_flops: from `counts.flops`, of one step.
        seconds: of that step, its input included.
        peak: FLOP/s.

    Returns:
        A share, 0 to 1.

    Raises:
        TypeError, ValueError: other than numbers above 0 (step_flops may be 0).

    Example:
        >>> round(mfu(1e12, 0.01, 989e12), 3)
        0.101

    Source: Chowdhery et al., PaLM (2022), appendix B.
    """
    check_number("step_flops", step_flops, least=0)
    return step_flops / (check_number("seconds", seconds, above=0) * check_number("peak", peak, above=0))


# ---- bytes


@dataclass(frozen=True)
class Budget:
    """Bytes of one training step, by part."""

    weights: int
    gradients: int
    optimizer: int  # AdamW's two means
    copies: int  # of the weights in bfloat16, as long as a forward and backward pass lasts
    vision: int  # kept by the ViT and the resampler for the backward pass
    llm: int  # kept by the rest
    accumulates: bool = False  # gradients of an earlier micro-batch are there already

    @property
    def total(self) -> int:
        """Bytes in the fullest of three moments: the end of the forward pass, the backward pass after the LLM, AdamW.

        In the backward pass gradients come while the kept tensors go. AdamW, which works on all tensors at once, holds
        a root of every mean square.
        """
        always, kept = self.weights + self.optimizer, self.copies + self.vision + self.llm
        forward = kept + self.accumulates * self.gradients
        backward = self.copies + self.vision + self.gradients
        return always + max(forward, backward, self.gradients + self.optimizer // 2)

    def sharded(self, processes: int) -> Budget:
        """What each process needs if all tensors are sharded. The layers that it gathers for a moment come on top."""
        check_int("processes", processes)
        shared = {name: getattr(self, name) // processes for name in ("weights", "gradients", "optimizer", "copies")}
        return replace(self, **shared)

    def line(self, device: torch.device | str) -> str:
        """What the step needs and what the device has, in one line."""
        free, has = device_memory(device)
        parts = dict(weights=self.weights, gradients=self.gradients, AdamW=self.optimizer)
        parts |= {"bfloat16 copies": self.copies, "kept for backward": self.vision + self.llm}
        words = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
        verdict = "" if self.total < 0.9 * free else "; that is too much: more micro-batches, or checkpointing"
        need = f"memory: about {self.total / 1e9:.2f} GB ({words})"
        return f"{need} of {free / 1e9:.1f} free, {has / 1e9:.1f} in all{verdict}"


def budget(
    model: MiniCPMV,
    objective,
    samples: Sequence,
    size: int,
    micro_batches: int = 1,
    half_precision: bool = False,
    checkpointing: bool = False,
) -> Budget:
    """Estimate the memory of a training step.

    Args:
        model: frozen as it will be (`stages.freeze`), its layers not yet checkpointed.
        objective: from `objective_for`.
        samples: a few, which go forward once. The more, the better the estimate.
        size: samples of one step of this process.
        micro_batches: parts that a step's samples are split into; they go forward and backward one after the other.
        half_precision: as for `parallel.backward`.
        checkpointing: the step runs inside `checkpointed`: each layer keeps its input, one layer at a time the rest.

    Returns:
        A Budget, of a step whose samples are like these. Single steps need more or less: pictures differ in slices.

    Raises:
        TypeError: no MiniCPMV, an objective that cannot be called, no list of samples, counts that are no integers.
        ValueError: no samples, a size or micro_batches below 1.

    Example:
        >>> from minicpmv_ref import Processor
        >>> from minicpmv_ref.toy.data import draw
        >>> from minicpmv_ref.learn.stages import freeze, stage_named, start
        >>> from minicpmv_ref.learn.objectives import objective_for
        >>> model, stage = start(), stage_named("sft-1")
        >>> learning = freeze(model, stage)
        >>> need = budget(model, objective_for(model, Processor.from_pretrained("nano"), stage), [draw(0)], size=1)
        >>> need.optimizer == 2 * need.gradients == 8 * sum(p.numel() for p in learning)
        True

    Source: this project.
    """
    check_type("model", model, MiniCPMV)
    if not callable(objective):
        raise WrongType(f"objective must be one of objective_for, got {type(objective).__name__}: {shown(objective)}")
    samples = check_list("samples", samples, empty=False)
    check_int("size", size)
    check_int("micro_batches", micro_batches)
    modules = [model, objective] if isinstance(objective, nn.Module) else [model]
    parameters = list(dict.fromkeys(p for module in modules for p in module.parameters()))
    kept, copies, inputs = _kept(model, objective, parameters, samples, half_precision)
    scale = size / (micro_batches * len(samples))
    vision, llm = (kept[part] * scale for part in ("vision", "llm"))
    if checkpointing:
        vision = vision / model.config.vision.layers + inputs["vision"] * scale
        llm = llm / model.config.llm.num_hidden_layers + inputs["llm"] * scale
    state = state_bytes(parameters)
    return Budget(**state, copies=copies, vision=round(vision), llm=round(llm), accumulates=micro_batches > 1)


def _kept(model, objective, parameters, samples, half_precision) -> tuple[dict, int, dict]:
    """Bytes that autograd keeps, by part; those of weights in bfloat16; those of the inputs of all layers."""
    kept, inputs, copies = {"vision": 0, "llm": 0}, {"vision": 0, "llm": 0}, 0
    seen = {p.untyped_storage().data_ptr() for p in parameters}
    shapes = {tuple(sorted(p.shape)) for p in parameters}
    where = ["llm"]

    def keep(tensor):
        nonlocal copies
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            if half_precision and tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes:
                copies += storage.nbytes()
            else:
                kept[where[-1]] += storage.nbytes()
        return tensor

    def count(part, module, args):
        inputs[part] += args[0].nbytes

    hooks = []
    for part in (model.vpm, model.resampler):
        hooks.append(part.register_forward_pre_hook(lambda *_: where.append("vision")))
        hooks.append(part.register_forward_hook(lambda *_: where.pop() and None))
    for part, layers in zip(("vision", "llm"), _layers(model)):
        hooks += [layer.register_forward_pre_hook(partial(count, part)) for layer in layers]
    try:
        device = parameters[0].device.type
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast(device, torch.bfloat16, half_precision):
            objective(list(samples), 1)
    finally:
        for hook in hooks:
            hook.remove()
    return kept, copies, inputs


def device_memory(device: torch.device | str) -> tuple[int, int]:
    """Ask a device for its memory.

    Args:
        device: a GPU, or the CPU.

    Returns:
        (free, in all), in bytes. For the CPU those of the machine, or of the container or job if it may have less.

    Raises:
        TypeError: neither a torch.device nor a text.
        ValueError: a device that torch does not know or that is not there.

    Example:
        >>> free, has = device_memory("cpu")
        >>> 0 < free <= has
        True
    """
    check_type("device", device, torch.device, str)
    try:
        if torch.device(device).type == "cuda":
            return torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError) as error:
        reason = printable(str(error).partition("\n")[0])[:200]
        raise ValueError(f"device must be the CPU or a GPU that is there, got {shown(device)}: {reason}") from None
    return system_memory()


# ---- two savings


def _layers(model: MiniCPMV) -> tuple[list[nn.Module], list[nn.Module]]:
    return list(model.vpm.encoder["layers"]), list(model.llm.model.layers)


@contextmanager
def checkpointed(model: MiniCPMV) -> Iterator[MiniCPMV]:
    """Keep only the input of each layer of ViT and LLM, and compute the layer again in the backward pass.

    That saves most of what is kept and costs one more forward pass, a third of the time. The gradient is the same.

    Args:
        model: changed for as long as the `with` lasts.

    Source: Chen et al., Training deep nets with sublinear memory cost (2016); torch.utils.checkpoint.
    """
    layers = [layer for layers in _layers(model) for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield model
    finally:
        for layer in layers:
            del layer.forward  # the one of its class is left


def compile_layers(model: MiniCPMV, backend: str = "inductor") -> None:
    """Let torch.compile fuse what stands between the matrix products: MLPs and norms of ViT and LLM, in place.

    Attention is left as it is: its calls follow the lengths of the samples, and every new list of lengths would be
    compiled anew. MLPs and norms see one long row of tokens, whose length may change freely.

    Args:
        model: changed in place; parameters and their names stay.
        backend: of torch.compile.
    """
    vit, llm = _layers(model)
    for layer in vit:
        for module in (layer.layer_norm1, layer.layer_norm2, layer.mlp):
            module.compile(dynamic=True, backend=backend)
    for layer in llm:
        for module in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
            module.compile(dynamic=True, backend=backend)
