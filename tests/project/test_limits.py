"""Small is a feature: how long a function and a file may be, how many parameters, and how long the core may become.

A line of code is one that is neither blank nor a comment, and no part of a docstring; a file counts all its lines.
EXCEPTIONS may only shrink: one that is solved fails the test until it is removed.
"""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

LONGEST_FUNCTION, MOST_PARAMETERS = 60, 9
LONGEST_FILE, LONGEST_FILE_ELSEWHERE = 450, 550  # the first one in the core and in learn
CORE_AND_LEARN = 4_700  # lines of all files there, without __main__ and inputs
FOLDERS = ("minicpmv_ref", "experiments", "benchmarks", "tools")

# "file" (its lines), "file:function" (lines of code or parameters) or "core and learn" -> why it may stay, for now.
EXCEPTIONS: dict[str, str] = {}


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code; those of docstrings are left out."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, first.end_lineno + 1))
    return lines


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names of all parameters but self and cls."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return [each.arg for each in named if each.arg not in ("self", "cls")]


def in_core_or_learn(name: str) -> bool:
    parts = name.split("/")
    direct = len(parts) == 2 and parts[0] == "minicpmv_ref" and parts[1] != "__main__.py"
    return direct or parts[:2] == ["minicpmv_ref", "learn"]


@cache
def here() -> dict[str, str]:
    """The offenders of this repository."""
    return offenders(ROOT)


def offenders(root: Path) -> dict[str, str]:
    """What is too large: its key in EXCEPTIONS -> how large."""
    found, core = {}, 0
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        name, source = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        length, code = len(source.splitlines()), code_lines(source)
        core += length * in_core_or_learn(name)
        if length > (LONGEST_FILE if in_core_or_learn(name) else LONGEST_FILE_ELSEWHERE):
            found[name] = f"{length} lines"
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines, given = len(code & set(range(node.lineno, node.end_lineno + 1))), len(parameters(node))
            if lines > LONGEST_FUNCTION or given > MOST_PARAMETERS:
                found[f"{name}:{node.name}"] = f"{lines} lines of code, {given} parameters"
    if core > CORE_AND_LEARN:
        found["core and learn"] = f"{core} lines"
    return found


def test_nothing_is_too_large():
    assert {key: size for key, size in here().items() if key not in EXCEPTIONS} == {}


def test_no_exception_is_stale():
    assert EXCEPTIONS.keys() - here().keys() == set()


# ---- the rules can fail


def write(root: Path, name: str, source: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(source, encoding="utf-8")


def function(lines: int, name: str = "f", given: str = "") -> str:
    """A function of so many lines of code, and as many more that do not count."""
    body = ["    x = 1", "", "    # a comment"] * (lines - 1)
    return "\n".join([f"def {name}({given}):", '    """One.', "", '    Two."""', *body]) + "\n"


def test_a_long_function_is_found(tmp_path):
    write(tmp_path, "tools/a.py", function(60))
    assert offenders(tmp_path) == {}
    write(tmp_path, "tools/a.py", function(61))
    assert offenders(tmp_path) == {"tools/a.py:f": "61 lines of code, 0 parameters"}
    text = 'def f():\n    return """\n' + "text\n" * 60 + '"""\n'  # a long text is code
    write(tmp_path, "tools/a.py", text)
    assert list(offenders(tmp_path)) == ["tools/a.py:f"]


def test_many_parameters_are_found(tmp_path):
    nine = "a, /, b, c, *d, e, f, g, h, **i"
    write(tmp_path, "benchmarks/a.py", function(3, given=nine))
    write(tmp_path, "benchmarks/b.py", function(3, given="self, " + nine))
    assert offenders(tmp_path) == {}
    write(tmp_path, "benchmarks/a.py", function(3, given=nine.replace("h,", "h, j,")))
    assert offenders(tmp_path) == {"benchmarks/a.py:f": "3 lines of code, 10 parameters"}


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("minicpmv_ref/model.py", 450),
        ("minicpmv_ref/learn/dpo.py", 450),
        ("minicpmv_ref/__main__.py", 550),
        ("minicpmv_ref/scale/run.py", 550),
        ("minicpmv_ref/inputs/files.py", 550),
        ("experiments/a.py", 550),
    ],
)
def test_a_long_file_is_found(tmp_path, name, most):
    write(tmp_path, name, "x = 1\n" * most)
    assert offenders(tmp_path) == {}
    write(tmp_path, name, "x = 1\n" * (most + 1))
    assert offenders(tmp_path) == {name: f"{most + 1} lines"}


def test_a_large_core_is_found(tmp_path):
    for number in range(12):
        lines = CORE_AND_LEARN // 12 + (number < CORE_AND_LEARN % 12)
        write(tmp_path, f"minicpmv_ref/{'learn/' * (number % 2)}f{number}.py", "x = 1\n" * lines)
    write(tmp_path, "minicpmv_ref/__main__.py", "x = 1\n")
    write(tmp_path, "minicpmv_ref/inputs/files.py", "x = 1\n")
    assert offenders(tmp_path) == {}
    write(tmp_path, "minicpmv_ref/one.py", "x = 1\n")
    assert offenders(tmp_path) == {"core and learn": f"{CORE_AND_LEARN + 1} lines"}
