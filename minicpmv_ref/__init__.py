"""MiniCPM-V as a readable reference: an image walks through the files of this package from left to right.

    slicing -> positions -> vision -> resampler -> prompt -> processor -> model

Where the sections of the paper (arXiv 2408.01800) are:
    3.2       image partition: slicing; slice encoding: positions, vision; token compression: resampler;
              spatial schema: prompt
    4.1, 4.2  pre-training and supervised fine-tuning: learn/stages, objectives, train; data packing: learn/packing
    4.3       RLAIF-V: learn/rlaif, dpo
    5         end-side deployment: deploy/kquant, gguf, llamacpp; memory, sequence; tune

Names load on first use, so `from minicpmv_ref import plan_slices` imports neither torch nor transformers.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "config": "SliceConfig VisionConfig ResamplerConfig LLMConfig MiniCPMVConfig v2_0 v2_5 v2_6 nano",
    "slicing": "SlicePlan candidate_grids partition_score paper_grid best_grid plan_slices slice_image",
    "positions": "bucket_position_ids interpolate_position_table sincos_2d",
    "vision": "VisionTransformer",
    "resampler": "Resampler",
    "deploy.fold": "fold",
    "prompt": "image_layout image_bounds",
    "inputs.pictures": "load_image",
    "inputs.clips": "load_clip",
    "inputs.boxes": "parse_boxes",
    "processor": "Batch Processor",
    "model": "MiniCPMV",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 (computed, so that the table above is the only list)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
