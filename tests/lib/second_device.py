"""A second device for tests on a machine without a GPU: it computes on the CPU, and refuses what CUDA would refuse.

    python -m tests.lib.second_device     what it can do, in a few lines

Importing this file changes PyTorch for the whole process (a new device "twin", another `torch.tensor`), so tests import
it in a process of its own. It finds a tensor that was made without `device=`, a mask or an index left on the CPU,
`.numpy()` without `.cpu()`, and results that differ from the CPU's. `WAITS` counts what makes a CPU wait for a GPU.
Left out: kernels, dtypes, memory and streams of a real GPU; a generator of its own; inference_mode.
"""

import traceback
from collections import Counter
from functools import wraps
from pathlib import Path

import torch
import torch.utils.backend_registration as registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "twin"
# "operation in file.py function" of this package -> how often a CPU would have to wait: for a result, or ("copy_")
# until a GPU is done and takes a tensor. With non_blocking=True it is not waited for.
WAITS = Counter()

_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES = {"aten::copy_": (0, 1), "aten::_copy_from": (1, 0)}  # positions of target and source
_WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class _Backend(registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def synchronize(self, *args):
        pass

    def set_device(self, index):
        pass


registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)


class Twin(torch.Tensor):
    """A tensor on the second device; `cpu_values` holds its numbers."""

    @staticmethod
    def __new__(cls, values, requires_grad=False):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, device=DEVICE, requires_grad=requires_grad, **layout
        )
        made.cpu_values = values
        return made

    def tolist(self):
        _count("tolist")
        return self.cpu_values.tolist()

    def untyped_storage(self):
        return self.cpu_values.untyped_storage()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of another device to numpy; use .cpu() first")

    def __repr__(self):
        return f"Twin({self.cpu_values})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # a list becomes an index on the CPU
            where = args[1]
            where = tuple(map(_index, where)) if isinstance(where, tuple) else _index(where)
            args = (args[0], where, *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _index(where):
    return torch.tensor(where) if isinstance(where, list) else where


def _values(x):
    return x.cpu_values if isinstance(x, Twin) else x


def _twin(x):
    return Twin(x) if isinstance(x, torch.Tensor) and not isinstance(x, Twin) else x


def _run(func, args, kwargs):
    """Check the devices, run the operation on the CPU, and put the result where it belongs."""
    name = func._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = any(isinstance(x, Twin) for x in tensors)
    _check_devices(name, args, tensors, here)
    if here:
        _count_waits(name, args, kwargs)
    if name in _COPIES:
        target, source = (args[i] for i in _COPIES[name])
        _values(target).copy_(_values(source))
        return target
    if name == "aten::_to_copy" or kwargs.get("device") is not None:
        goal = torch.device(kwargs["device"]) if kwargs.get("device") is not None else DEVICE
        rest = {k: _values(v) for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
        made = func(*tree_map(_values, args), **rest, device="cpu")
        return _twin(made) if goal.type == NAME else made
    made = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    if func._schema.is_mutable and not isinstance(made, tuple | list):  # in place: what it was given comes back
        for given, meaning in [*zip(args, func._schema.arguments), *_named(func, kwargs)]:
            if meaning.alias_info is not None and meaning.alias_info.is_write and isinstance(given, Twin):
                return given
    return tree_map(_twin, made) if here else made


def _named(func, kwargs):
    meanings = {meaning.name: meaning for meaning in func._schema.arguments}
    return [(value, meanings[name]) for name, value in kwargs.items() if name in meanings]


def _check_devices(name, args, tensors, here):
    """CUDA mixes with CPU tensors only in copies, in indices, and where they hold one number."""
    if name in _INDEXING:
        if not isinstance(args[0], Twin) and any(isinstance(i, Twin) for i in args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if len(args) > 2 and args[2].dim() > 0 and isinstance(args[0], Twin) != isinstance(args[2], Twin):
            raise RuntimeError(f"{name}: values and the indexed tensor are on different devices")
    elif here and name not in _COPIES and name != "aten::_to_copy":
        strangers = [tuple(x.shape) for x in tensors if not isinstance(x, Twin) and x.dim() > 0]
        if strangers:
            raise RuntimeError(f"{name}: expected all tensors on one device, but those of shape {strangers} are on cpu")


def _count_waits(name, args, kwargs):
    to_cpu = name == "aten::_to_copy" and kwargs.get("device") is not None and kwargs["device"].type == "cpu"
    by_mask = name in _INDEXING and any(getattr(i, "dtype", None) in (torch.bool, torch.uint8) for i in args[1])
    to_here = name == "aten::copy_" and isinstance(args[0], Twin) and not isinstance(args[1], Twin)
    if name in _WAITING or to_cpu or by_mask or (to_here and not (args[2:] or [kwargs.get("non_blocking")])[0]):
        _count(name.removeprefix("aten::"))


def _count(operation):
    frames = [f for f in traceback.extract_stack() if "minicpmv_ref" in f.filename]
    where = f" in {Path(frames[-1].filename).name} {frames[-1].name}" if frames else ""
    WAITS[operation + where] += 1


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")

_autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_autocast.fallback(torch.library.fallthrough_kernel)  # mixed precision computes in float32 here

_plain_generator = torch.Generator


def _made_on_cpu(make, copied):
    """A constructor in C++ that knows no backend written in Python: make the tensor on the CPU and move it.

    `copied`: a GPU would not make it itself, and have to be waited for.
    """

    @wraps(make)
    def made(*args, device=None, **kwargs):
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device, non_blocking=not copied)

    return made


class _Generator(_plain_generator):
    """Random numbers come from a generator on the CPU, so a run on either device draws the same."""

    def __new__(cls, device="cpu"):
        return _plain_generator("cpu" if torch.device(device).type == NAME else device)


torch.tensor, torch.arange = _made_on_cpu(torch.tensor, True), _made_on_cpu(torch.arange, False)
torch.Generator = _Generator
torch.inference_mode = torch.no_grad  # wrapped tensors cannot be inference tensors

if __name__ == "__main__":
    x = torch.arange(3.0).to(DEVICE)
    print(x + x, x.device)
    try:
        x + torch.arange(3.0)
    except RuntimeError as error:
        print(error)
    print(x.sum().item(), dict(WAITS))
