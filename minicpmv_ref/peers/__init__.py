"""The systems that MiniCPM-V is compared with, and its own later versions: how each of them sees a picture.

    sizes     what a picture of any size becomes in each of them, by arithmetic alone
    llava     MLP, AnyRes tiles and their merge         video    pooled frames, scaled positions, several pictures
    internvl  tiles and pixel shuffle                   qllama   queries inside a language model, three losses
    vila      four patches in one token                 cogvlm   a second set of weights for image tokens
    cambrian  queries that read their own region        later    4.5's resampler of frames, 4.6's mergers
    canvas    4.7's positions of slices in the picture
    connectors, expert, nano: the peers' connectors, expert and cutting rules inside nano, to be trained and compared

Names load on first use, so `from minicpmv_ref.peers import plan` imports neither torch nor transformers.
"""

from importlib import import_module

_HOME = {"sizes": "SYSTEMS Plan plan", "nano": "load swap"}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 (computed, so that the table above is the only list)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
