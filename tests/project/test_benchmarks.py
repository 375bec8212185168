"""The benchmarks' pages say what their JSON files say, and what a benchmark measures reaches its file."""

import argparse
import ast
import json
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from places import ROOT

sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import _report  # noqa: E402
import figures  # noqa: E402
from _report import NOT_YET, TABLES, arguments, cell, measured, published, report, table  # noqa: E402

from experiments import _fair  # noqa: E402

SCRIPTS = sorted((ROOT / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize(("path", "filled"), [(figures.PAGE, figures.page), (figures.README, figures.readme)])
def test_pages_are_up_to_date(path, filled):
    text = path.read_text(encoding="utf-8")
    assert filled(text) == text


def test_every_script_has_a_result_and_a_table():
    names = [path.stem for path in SCRIPTS]
    results = {path.stem for path in _report.RESULTS.glob("*.json")}
    assert names == sorted(TABLES) and set(names) - set(NOT_YET) <= results == set(measured())
    for name in measured():
        found = published(name)
        assert found["benchmark"] == name and found["machine"] and found["options"]["threads"] and found["unit"]
        assert all("dtype" in row for row in found["rows"]) or "dtype" in found or name == "native"  # F16 to Q4_K_M
        assert len({row.count(" | ") for row in table(name, found["rows"]).splitlines()}) == 1


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_reports_under_its_own_name_and_has_no_second_parser(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.func): call for call in calls}
    assert named["report"].args[0].value == path.stem and "arguments" in named
    assert "argparse.ArgumentParser" not in named


def test_a_changed_figure_changes_the_pages(tmp_path, monkeypatch):
    for name in measured():
        (tmp_path / f"{name}.json").write_text(json.dumps(published(name)))
    monkeypatch.setattr(_report, "RESULTS", tmp_path)
    page, readme = (path.read_text(encoding="utf-8") for path in (figures.PAGE, figures.README))
    assert figures.page(page) == page and figures.readme(readme) == readme
    found = published("dpo")
    old, cpu = found["rows"][2]["wall"], found["rows"][2]["CPU"]
    least, _, most = figures.ratios("dpo", "wall").split()
    found["rows"][2]["wall"] = 9.99
    (tmp_path / "dpo.json").write_text(json.dumps(found))
    assert figures.page(page) == page.replace(f"{old:.2f} ({cpu:.2f})", f"9.99 ({cpu:.2f})") != page
    assert figures.readme(readme) == readme.replace(f"DPO {least} to {most}", f"DPO {least} to 10.0") != readme


def test_the_words_about_a_whole_training_are_those_of_its_result():
    result, page = published("train"), " ".join(figures.PAGE.read_text(encoding="utf-8").split())
    tried = result["tried"]
    padded, flat = (
        tried[f"Trainer, our ViT, {kind}, 1 x 32"] / tried["ours, 1 x 32"] for kind in ("padded", "padding-free")
    )
    assert f"takes {padded:.1f} times our time with padded batches and {flat:.1f} times with one row" in page
    others = [row["wall"] for row in result["rows"] if not row["training"].startswith("ours")]
    assert 1.1 < max(others) < 1.15 and "gets within 15 %" in page


def test_a_page_without_its_markers_is_refused():
    with pytest.raises(ValueError):
        figures.between_markers("no markers", "vision", "")
    assert figures.between_markers("a<!-- x -->old<!-- /x -->b", "x", "new") == "a<!-- x -->\nnew\n<!-- /x -->b"


def test_cells():
    row = {"a": 2.5, "b": 1.25, "low to high": [1, 2.0], "words": "not measured", "count": 1234567}
    assert cell(row, "a", ".2f") == "2.50" and cell(row, ("a", "b"), ".1f") == "2.5 (1.2)"
    assert cell(row, ("a", "c"), ".2f") == "2.50" and cell(row, "c", ".2f") == ""
    assert cell(row, "low to high", ".1f") == "1.0 to 2.0" and cell(row, "words", ".2f") == "not measured"
    assert cell(row, "count", ",d") == "1,234,567"


def test_what_was_measured_is_printed_and_written(tmp_path, capsys):
    path = tmp_path / "new" / "vision.json"
    parser = arguments("words", threads=3)
    parser.add_argument("--folder", default=str(tmp_path))
    args = parser.parse_args(["--json", str(path), "--rounds", "1"])
    rows = [{"dtype": "float32", "views": "one", "packed": 2.0, "padded": 3.0, "ours": 1.0, "more": 7}]
    report("vision", args, rows, unit="milliseconds")
    assert "| ours |\n| --- | --- | --- | --- | --- |\n| float32 | one | 2 | 3 | 1 |\n" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["rows"] == rows and found["unit"] == "milliseconds" and found["torch"] == torch.__version__
    assert found["options"] == {"threads": 3, "rounds": 1} and "cores" in found["machine"]
    assert str(tmp_path) not in path.read_text()  # folders are nobody's business
    report("vision", argparse.Namespace(threads=1, json=None), rows)  # and nothing is written


def test_slopes_are_those_of_what_was_measured():
    import curves

    assert curves.slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    rows = published("curves")["rows"]
    for row in rows:
        for slope, values in (("predicted", "operations"), ("measured", "milliseconds")):
            assert row[slope] == pytest.approx(curves.slope(row["sizes"], row[values]), abs=2e-6)
    assert [row["what"] for row in rows] == list(curves.cases(curves.MiniCPMV.without_memory(curves.CONFIG)))
    assert 0 < (ROOT / "benchmarks/curves.png").stat().st_size < 150_000


def test_runs_of_the_decoder_are_joined():
    import decode

    kind = {"LLM": "nano", "dtype": "float32"}
    new = [kind | {"64": [2.0, 2.0], "128": [3.0, 3.0], "512": [1.0, 1.0], "of memory rate": [0.1, 0.1]}]
    old = [kind | {"64": [2.1, 2.4], "128": [2.0, 4.0], "512": [0.5, 0.9], "of memory rate": [0.2, 0.3]}]
    wide = {"64": [2.0, 2.4], "128": [2.0, 4.0], "512": [0.5, 1.0], "of memory rate": [0.1, 0.3]}
    assert decode.widened(new, old) == [kind | wide]
    with pytest.raises(AssertionError, match="another file"):
        decode.widened(new, [old[0] | {"dtype": "bfloat16"}])


# ---- the script for a GPU, on a CPU


def gpu_rows(folder, monkeypatch, *options):
    import gpu

    path = folder / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--rounds", "1", "--json", str(path), *options])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(gpu, "gc", SimpleNamespace(collect=lambda: None))  # half a second among all these tests
    gpu.main()
    return json.loads(path.read_text())["rows"]


def test_the_script_for_a_gpu_runs(tmp_path, monkeypatch, capsys):
    """And an attempt that fails, here for want of two kernels, says so and does not lose the others."""
    import gpu

    monkeypatch.setattr(gpu, "MODELS", {"gpu profile": None})  # both are the same small one here
    monkeypatch.setattr(gpu, "READY", 1)
    monkeypatch.setattr(gpu.decode, "NEW", 8)
    rows = gpu_rows(tmp_path, monkeypatch, "--tiny")
    failed = {(row["part"], row["what"]) for row in rows if "error" in row}
    assert all(part == "packing" and what.endswith(("varlen_attn", "flash_attn")) for part, what in failed), rows
    found = {(row["part"], row["unit"]) for row in rows if "error" not in row}
    training = {("training", unit) for unit in ("tokens/s", "pictures/s", "TFLOP/s")}
    others = {"kquant": "MB/s", "packing": "million tokens/s", "decode": "tokens/s"}.items()
    assert found == training | set(others) | {
        ("answer", "s"),
        ("answer", "tokens/s"),
        ("nccl", "GB/s"),
        ("nccl", "steps/s"),
    }
    assert all(row["measured"] > 0 for row in rows if "error" not in row)
    assert "| decode |" in capsys.readouterr().out


def test_a_card_adds_its_memory_its_peak_and_its_waits(tmp_path, monkeypatch):
    import gpu

    def with_waits(*given, real=gpu.run_steps):
        if modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return real(*given)

    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    answers = {"synchronize": None, "reset_peak_memory_stats": None, "empty_cache": None}
    answers |= {"max_memory_allocated": 5 * 10**8, "get_device_name": "NVIDIA H100 80GB HBM3"}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *given, answer=answer: answer)
    monkeypatch.setattr(gpu.Card, "cuda", True)
    monkeypatch.setattr(gpu, "run_steps", with_waits)
    monkeypatch.setattr(gpu, "MODELS", {"gpu profile": None})
    monkeypatch.setattr(gpu, "READY", 1)
    monkeypatch.setattr(gpu, "compile_layers", lambda *given: None)
    found = {row["unit"]: row for row in gpu_rows(tmp_path, monkeypatch, "--tiny", "--parts", "training", "answer")}
    assert found["MFU"]["measured"] == pytest.approx(found["TFLOP/s"]["measured"] / 989, rel=0.02)
    assert found["peak GB"]["measured"] == 0.5 and 0 < found["peak GB"]["peer's"] < 0.5
    assert found["waits in a step"]["measured"] == 1 and modes[-1] == "default"


def test_what_no_longer_fits_into_the_minutes_says_so(tmp_path, monkeypatch):
    rows = gpu_rows(tmp_path, monkeypatch, "--minutes", "0")
    assert {row["error"] for row in rows} == {"TimeoutError: no time left of 0 minutes"}
    assert {row["part"] for row in rows} == {"training", "answer", "kquant", "packing", "decode", "nccl"}


def test_other_bytes_of_a_gpu_are_not_timed(tmp_path, monkeypatch):
    import gpu

    quantize = gpu.quantize
    monkeypatch.setattr(gpu, "quantize", lambda *given: quantize(*given[:3]) ^ (len(given) > 3))
    rows = gpu_rows(tmp_path, monkeypatch, "--tiny", "--parts", "kquant")
    assert {row["error"] for row in rows} == {"AssertionError: 256 of 256 rows have other bytes"}


# ---- results that differ are not timed


def test_other_losses_gradients_and_outputs_are_found():
    gradient = torch.ones(4)
    _fair.assert_same_training({"a": (1.0, gradient), "b": (1.0 + 9e-6, gradient + 9e-5)})
    with pytest.raises(AssertionError, match=r"b: loss 1.1, a 1.0"):
        _fair.assert_same_training({"a": (1.0, gradient), "b": (1.1, gradient)})
    with pytest.raises(AssertionError, match=r"b: gradient differs by 0\.5"):
        _fair.assert_same_training({"a": (1.0, gradient), "b": (1.0, 1.5 * gradient)})
    _fair.assert_same_output({"a": gradient, "b": gradient + 0.01}, 0.02)
    with pytest.raises(AssertionError, match=r"b: differs by 0\.5"):
        _fair.assert_same_output({"a": gradient, "b": gradient + 0.5}, 0.02)


def test_the_equality_check_and_the_lengths_stand_in_one_file():
    for folder in ("benchmarks", "experiments"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert ("gradient differs by" in text) == ("lognormvariate(3.5" in text) == (path.name == "_fair.py"), path
