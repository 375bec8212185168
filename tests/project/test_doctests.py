"""Docstrings: every example runs, and every public name is explained in the house order."""

import dataclasses
import doctest
import inspect
import pkgutil
import re
from importlib import import_module

import pytest

import minicpmv_ref

MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(minicpmv_ref.__path__, "minicpmv_ref.")
    if not found.name.endswith("__main__")
)
PUBLIC = {name: getattr(minicpmv_ref, name) for name in minicpmv_ref.__all__}
ORDER = ["Args", "Returns", "Raises", "Example", "Source"]
ALGORITHM = (
    "slicing",
    "positions",
    "vision",
    "resampler",
    "prompt",
)  # these rooms follow an official file or the paper


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    """Failures are printed by doctest itself; pytest shows them."""
    assert doctest.testmod(import_module(name)).failed == 0


def test_a_wrong_example_would_be_noticed():
    tests = [t for name in MODULES for t in doctest.DocTestFinder().find(import_module(name)) if t.examples]
    assert len(tests) >= 10
    broken = next(t for t in tests if t.name == "minicpmv_ref.slicing.best_grid")
    broken.examples[0].want = "((2, 4), (4, 2), None)\n"
    silent = doctest.DocTestRunner(verbose=False)
    assert silent.run(broken, out=lambda text: None).failed == 1


def sections(obj):
    """{section: text} of a docstring; the purpose has the name ""."""
    parts = re.split(r"^(\w+):", inspect.getdoc(obj) or "", flags=re.MULTILINE)
    names = ["", *parts[1::2]]
    assert len(names) == len(set(names)), f"{obj.__qualname__}: a section comes twice"
    return dict(zip(names, parts[0::2]))


def documented(module):
    """The public functions, classes and methods that a module defines."""
    for name, obj in vars(module).items():
        if name.startswith("_") or getattr(obj, "__module__", None) != module.__name__:
            continue
        if inspect.isroutine(obj) or inspect.isclass(obj):
            yield obj
        if inspect.isclass(obj):
            yield from (m for n, m in vars(obj).items() if inspect.isfunction(m) and not n.startswith("_"))


@pytest.mark.parametrize("name", MODULES)
def test_sections_come_in_the_house_order(name):
    module = import_module(name)
    assert module.__doc__, f"{name} does not say what it implements"
    for obj in documented(module):
        found = [section for section in sections(obj) if section in ORDER]
        assert found == sorted(found, key=ORDER.index), f"{obj.__qualname__}: {found}"


# The presets are values; config.py explains them in comments.
@pytest.mark.parametrize("name", [n for n, obj in PUBLIC.items() if not isinstance(obj, minicpmv_ref.MiniCPMVConfig)])
def test_public_names_are_explained(name):
    obj = PUBLIC[name]
    parts = sections(obj)
    assert parts[""].strip(), "no purpose"
    if dataclasses.is_dataclass(obj):
        return  # its fields carry comments, and the functions that make or take it have the examples
    home = minicpmv_ref._MODULE_OF[name]
    wanted = ["Example"]
    if inspect.isfunction(obj):
        wanted += ["Args", "Returns"]
    if home in ALGORITHM:
        wanted += ["Source"]
    assert not set(wanted) - set(parts)
    assert ">>> " in parts["Example"]
    assert parts.get("Source", "given").strip()


@pytest.mark.parametrize("name", [n for n, obj in PUBLIC.items() if inspect.isfunction(obj)])
def test_every_argument_is_described(name):
    function = PUBLIC[name]
    text = sections(function)["Args"]
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\w+, )*{argument}(, \w+)*:", text, re.MULTILINE), f"{argument} is missing"


@pytest.mark.parametrize("name", ["candidate_grids", "partition_score", "paper_grid", "best_grid", "plan_slices"])
def test_slicing_says_which_number_is_the_width(name):
    """Swapped width and height is the classic bug of every port."""
    function = PUBLIC[name]
    assert "size: (width, height)" in function.__doc__
    if "Grid" in str(inspect.signature(function)):
        assert "(cols, rows)" in function.__doc__
