"""The alignment from end to end on a random model: it runs, repeats itself, goes on where it was cut, and ships."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from tiny import lively, tiny_config, tiny_processor

from experiments import _alignment_run, _alignment_steps
from experiments import alignment as module
from experiments._alignment_run import REPORT, align, apply_changes
from experiments._alignment_steps import (
    Alignment,
    choose_pairs,
    collect,
    describe,
    fingerprint,
    make_careless,
    measure_model,
    pictures,
    train_labeler,
)
from experiments._frame import write_json
from experiments.alignment import RUNS, SETTINGS, SUMMARY, experiment, outcome
from minicpmv_ref import MiniCPMV, nano
from minicpmv_ref.__main__ import main
from minicpmv_ref.inputs.files import only_one
from minicpmv_ref.inputs.jsonl import append_jsonl, read_jsonl
from minicpmv_ref.learn.rlaif import ask_claim, ask_yes_no, hallucination, is_true
from minicpmv_ref.learn.statistics import wilson
from minicpmv_ref.toy.data import TOPICS, caption, draw
from minicpmv_ref.toy.words import LANGUAGES

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Alignment(
    pictures=20,
    answers=4,
    max_new_tokens=8,
    steps=3,
    batch=4,
    lr=1e-3,
    test_pictures=3,
    questions=1,
    watched=2,
    careless_steps=1,
    labeler_steps=1,
    labeler="truth",
)


def small() -> MiniCPMV:
    return MiniCPMV.seeded(tiny_config("2.6"))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("2.6")


@pytest.fixture
def model():
    return small()


@pytest.fixture(scope="module")
def finished(processor, tmp_path_factory):
    """A run that was not disturbed: (figures, folder, the aligned model)."""
    folder, model, lines = tmp_path_factory.mktemp("run"), small(), []
    figures = align(model, processor, TINY, folder=folder, report=lines.append, answers=folder)
    assert [line.split(":")[0] for line in lines] == ["before", "labeler", "pairs", "training", "after"]
    return figures, folder, model


def test_every_step_of_the_pipeline_leaves_its_figures(finished):
    figures, folder, model = finished
    assert figures["config"]["pictures"] == 20 and figures["base"] != fingerprint(model)
    (found,) = figures["rounds"]
    assert found["pairs"]["built"] >= found["pairs"]["kept"] > 0
    assert len(found["training"]) == 3
    assert found["training"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found["training"][-1]["loss"] < found["training"][0]["loss"]
    assert [point["step"] for point in found["curve"]] == [0, 1, 2, 3]
    assert set(found["curve"][0]) == {"step", "response", "mention", "recall", "words"}
    assert found["labeler"]["accuracy"].value == 1.0  # the truth agrees with itself
    (path,) = folder.glob("*.jsonl")
    assert path.name == f"{fingerprint(small())}-truth-0-20.jsonl"
    records = read_jsonl(path)
    assert len(records) == 21 and all(len(record["answers"]) == 4 for record in records[1:])
    assert json.loads((folder / REPORT).read_text()) == json.loads(json.dumps(figures))


def test_only_the_language_model_changes_and_only_changes_are_written(finished, model):
    _, folder, aligned = finished
    assert not list(folder.glob(".*"))  # no drafts
    from safetensors.torch import load_file

    written = load_file(folder / "model.safetensors")
    assert written and all(name.startswith("llm.") for name in written)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}  # and so the aligned model is measured
    for name, tensor in model.own_tensors().items():
        assert torch.equal(aligned.own_tensors()[name], tensor) == (name not in written)
    apply_changes(model, folder)
    assert fingerprint(model) == fingerprint(aligned)
    assert torch.equal(model.llm.lm_head.weight, aligned.llm.lm_head.weight)  # tied
    with pytest.raises(ValueError, match="changes the model"):
        apply_changes(model, folder)  # it is not the base any more


def test_a_run_repeats_itself_and_goes_on_where_it_was_cut(finished, processor, model, tmp_path):
    figures, folder, aligned = finished
    (kept,) = folder.glob("*.jsonl")
    whole = kept.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (
        0,
        len(lines[0]) // 2,
        len(lines[0]),
        len(b"".join(lines[:6])) + 9,
        len(b"".join(lines[:17])),
        len(whole),
    ):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        records = collect(model, processor, pictures(TINY, "train", model), TINY, path=path)
        assert path.read_bytes() == whole
        assert records == read_jsonl(path)[1:]
    (tmp_path / kept.name).write_bytes(whole[:700])
    again = align(model, processor, TINY, folder=tmp_path, answers=tmp_path)
    assert again == figures and fingerprint(model) == fingerprint(aligned)


def test_answers_of_another_run_are_refused(finished, processor, model, tmp_path):
    _, folder, aligned = finished
    samples = pictures(TINY, "train", model)
    (kept,) = folder.glob("*.jsonl")
    for changed, config in (
        (aligned, TINY),
        (model, replace(TINY, temperature=0.5)),
        (model, replace(TINY, seed=1)),
        (model, replace(TINY, language="fr")),
        (model, replace(TINY, labeler="self")),
    ):
        with pytest.raises(ValueError, match="another run"):
            collect(changed, processor, samples, config, path=kept)
    records, path = read_jsonl(kept), tmp_path / "a.jsonl"
    append_jsonl(path, [records[0], records[2]])
    with pytest.raises(ValueError, match="line 2: not the answers to picture 0"):
        collect(model, processor, samples, TINY, path=path)
    del records[1]["truths"]
    append_jsonl(tmp_path / "b.jsonl", records[:2])
    with pytest.raises(ValueError, match="line 2: not the answers to picture 0"):
        collect(model, processor, samples, TINY, path=tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="line 12: not the answers to picture 10"):
        collect(model, processor, samples[:10], TINY, path=kept)


def test_pictures_are_those_of_the_split(model):
    train, test = (pictures(replace(TINY, pictures=50, test_pictures=40), split, model) for split in ("train", "test"))
    assert (len(train), len(test)) == (50, 40)
    assert not any(sample.held_out for sample in train) and all(sample.held_out for sample in test)
    assert [s.key for s in pictures(replace(TINY, seed=1), "train", model)] != [s.key for s in train[:20]]
    small = replace(TINY, pictures=10)
    rounds = [[sample.key for sample in pictures(small, "train", model, number)] for number in (0, 1)]
    assert rounds[0] + rounds[1] == [sample.key for sample in train[:20]]
    assert pictures(replace(TINY, language="zh", kind="long"), "test", model)[0].language == "zh"


def test_measuring_uses_greedy_and_sampled_answers_and_questions(processor, model, monkeypatch):
    samples, seen = pictures(replace(TINY, test_pictures=40), "test", model), []

    def answer(model, processor, prompts, n, *, seed, **sampling):
        seen.append((len(prompts), n, seed, sampling))
        return [
            [caption(sample.facts, LANGUAGES["en"])] for sample in samples if any(sample.prompt == p for p in prompts)
        ]

    monkeypatch.setattr(_alignment_steps, "sample_answers", answer)
    asked = []
    monkeypatch.setattr(
        _alignment_steps, "answer_all", lambda m, p, prompts, **how: asked.append(prompts) or ["yes"] * len(prompts)
    )
    figures = measure_model(model, processor, samples, replace(TINY, questions=10))
    assert {way: figures[way]["recall"].value for way in ("greedy", "sampled")} == dict(greedy=1, sampled=1)
    assert figures["said"]["greedy"] == figures["said"]["sampled"] == [sample.answer for sample in samples]
    greedy, sampled = dict(temperature=0.0, max_new_tokens=8), dict(temperature=1, top_p=1, top_k=100, max_new_tokens=8)
    assert seen == [(32, 1, 0, greedy), (8, 1, 32, greedy), (32, 1, 0, sampled), (8, 1, 32, sampled)]
    (prompts,) = asked
    wanted = [draw(f"align-0/{i}", "question", "test", topic=topic, view=56) for topic in TOPICS for i in range(10)]
    assert [prompt[0]["content"][1] for prompt in prompts] == [sample.prompt[0]["content"][1] for sample in wanted]
    assert figures["questions"] == wilson(sum(sample.answer == "yes" for sample in wanted), 70)
    said, graded = describe(model, processor, samples, TINY)
    assert said == figures["said"]["greedy"] and graded == figures["greedy"]


def test_every_chunk_is_sampled_with_a_seed_of_its_own(processor, model, monkeypatch):
    seen = []

    def answer(model, processor, prompts, n, *, seed, **sampling):
        seen.append((len(prompts), n, seed))
        return [[""] * n for _ in prompts]

    monkeypatch.setattr(_alignment_steps, "sample_answers", answer)
    config = replace(TINY, seed=7)
    collect(model, processor, pictures(config, "train", model), config)
    assert seen == [(16, 4, 7), (4, 4, 23)]


def test_pairs_prefer_what_is_true(model):
    samples = [draw(i) for i in range(3)]
    record = dict(
        answers=["purple star top left, red star top left.", "", "circle.", "purple star top left."],
        claims=["purple star top left", "red star top left", "circle"],
        verdicts=[True, False, False],
    )
    same = dict(answers=["a", "b"], claims=["a", "b"], verdicts=[False, False])
    none = dict(answers=["", "."], claims=[], verdicts=[])
    pairs, counts = choose_pairs([record, same, none], samples, TINY)
    # rho: 4 of 8 words are missing.
    assert counts == dict(built=2, kept=2, rho=0.5, no_claims=3, pictures_without=2)
    assert {pair.chosen for pair in pairs} == {"purple star top left."}
    assert {pair.rejected for pair in pairs} == {record["answers"][0], "circle."}
    assert all(pair.prompt is pairs[0].prompt and pair.prompt == samples[0].prompt for pair in pairs)
    with pytest.raises(ValueError, match="zip"):
        choose_pairs([record], samples, TINY)


def test_controls_choose_other_pairs(model):
    sample = draw(1)
    short, long = "red star.", "red star, blue star, green star, red circle, blue circle."
    claims = ["red star", "blue star", "green star", "red circle", "blue circle"]
    record = dict(answers=[short, long, short], claims=claims, verdicts=[False, True, True, True, False])

    def chosen(**change):
        pairs, counts = choose_pairs([record], [sample], replace(TINY, **change))
        return {pair.chosen for pair in pairs}, counts

    assert chosen(balance=False) == ({short}, dict(built=2, kept=2, rho=None, no_claims=0, pictures_without=0))
    assert chosen()[1]["rho"] == pytest.approx(0.8)  # the chosen one has 2 words and the other 10
    assert chosen(score="share")[0] == {long}
    found = [chosen(score="random", seed=seed, balance=False) for seed in range(20)]
    assert {short, long} == set().union(*(texts for texts, _ in found))
    assert {counts["built"] for _, counts in found} == {2} and {counts["kept"] for _, counts in found} == {1, 2}


@pytest.mark.parametrize("labeler", ["self", "trained"])
def test_other_labelers(processor, model, labeler):
    judge = (lively(small()), processor)
    config = replace(TINY, labeler=labeler)
    records = collect(model, processor, pictures(TINY, "train", model), config, judge)
    assert all(len(r["claims"]) == len(r["verdicts"]) == len(r["truths"]) for r in records)


def test_a_labeler_learns_on_a_copy(processor, model):
    before = fingerprint(model)
    judge, grades = train_labeler(model, processor, TINY)
    assert fingerprint(model) == before != fingerprint(judge)
    assert set(grades) == {"before", "after"} and all(
        grade.low <= grade.value <= grade.high for grade in grades.values()
    )
    assert fingerprint(train_labeler(model, processor, TINY)[0]) == fingerprint(judge)


def test_a_model_becomes_careless_in_its_language_model_only(processor, model):
    before = fingerprint(model)
    config = replace(TINY, careless_steps=2)
    policy, figures = make_careless(model, processor, config)
    assert fingerprint(model) == before and set(figures) == {"before"}
    assert figures["before"]["greedy"] == describe(model, processor, pictures(config, "test", model), config)[1]
    own, changed = model.own_tensors(), policy.own_tensors()
    assert {name.split(".")[0] for name in own if not torch.equal(own[name], changed[name])} == {"llm"}
    assert [p.requires_grad for p in policy.parameters()] == [p.requires_grad for p in model.parameters()]
    assert fingerprint(make_careless(model, processor, config)[0]) == fingerprint(policy)
    assert fingerprint(make_careless(model, processor, replace(config, seed=1))[0]) != fingerprint(policy)


def test_careless_training_sees_careless_captions_and_true_answers(processor, model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        _alignment_steps, "train_steps", lambda model, processor, stage, seed: seen.append((stage, seed)) or []
    )
    make_careless(model, processor, replace(TINY, careless_steps=7, seed=5))
    [(stage, seed)] = seen
    assert seed == 5 and stage.steps == 7 and set(stage.learning_rates) == {"llm"}
    assert stage.data_mix["careless"] > 0 and stage.data_mix["question"] > 0 and len(stage.data_mix) == 2


def test_changes_are_counted_from_the_root(processor, model, tmp_path):
    root = small()
    with torch.no_grad():
        model.vpm.post_layernorm.bias.add_(0.1)  # the policy differs from its root, in what DPO does not change
        start = fingerprint(model)
    figures = align(model, processor, TINY, folder=tmp_path, root=(root, "nano"))
    assert (figures["base"], figures["policy"]) == (fingerprint(root), start)
    apply_changes(root, tmp_path)
    assert fingerprint(root) == fingerprint(model)


def test_rounds_ask_the_model_as_it_is_by_then(processor, model, tmp_path):
    config = replace(TINY, rounds=2, steps=4, pictures=40)
    figures = align(model, processor, config, answers=tmp_path)
    assert [len(found["training"]) for found in figures["rounds"]] == [2, 2]
    assert len({path.name.split("-")[0] for path in tmp_path.glob("*.jsonl")}) == 2  # two policies
    assert all(len(read_jsonl(path)) == 21 for path in tmp_path.glob("*.jsonl"))
    for found in figures["rounds"]:
        assert found["training"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # a new reference


def test_fewer_pictures_of_the_same_model_have_a_file_of_their_own(processor, model, tmp_path):
    align(small(), processor, replace(TINY, pictures=40), answers=tmp_path)
    align(model, processor, replace(TINY, rounds=2, steps=4, pictures=40), answers=tmp_path)
    assert sorted(len(read_jsonl(path)) for path in tmp_path.glob("*.jsonl")) == [21, 21, 41]


@pytest.mark.parametrize("change", [dict(vision=True), dict(sft=True), dict(beta=0.01)])
def test_controls_reach_the_training(processor, model, monkeypatch, change):
    seen = []
    monkeypatch.setattr(
        _alignment_run, "train_on_pairs", lambda *args: seen.append(args[2]) or [dict(loss=1, margin=0)]
    )
    align(model, processor, replace(TINY, **change))
    assert {name: getattr(seen[0], name) for name in change} == change


def test_impossible_runs(processor, model, tmp_path):
    with pytest.raises(ValueError, match="labeler must be"):
        replace(TINY, labeler="nobody")
    with pytest.raises(ValueError, match="score one of"):
        replace(TINY, score="none")
    with pytest.raises(ValueError, match="needs a judge"):
        align(model, processor, replace(TINY, labeler="trained"))
    with pytest.raises(ValueError, match="no pairs"):
        align(model, processor, replace(TINY, answers=1), folder=tmp_path)
    with pytest.raises(ValueError, match="no run 'everything'"):
        experiment(model, processor, TINY, tmp_path, only="everything")
    assert fingerprint(model) == fingerprint(small())


def test_damaged_changes_are_refused(finished, model, tmp_path):
    from safetensors.torch import save_file

    _, folder, _ = finished
    (tmp_path / REPORT).write_bytes((folder / REPORT).read_bytes())
    before = fingerprint(model)
    for tensors in ({"llm.surprise": torch.zeros(2)}, {"llm.model.norm.weight": torch.zeros(2)}):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="no tensor of this model"):
            apply_changes(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        apply_changes(model, tmp_path)
    assert fingerprint(model) == before
    with pytest.raises(OSError):
        apply_changes(model, tmp_path / "missing")


def test_the_digest_sees_every_weight(model):
    before = fingerprint(model)
    assert before == fingerprint(small()) and len(before) == 16
    with torch.no_grad():
        model.vpm.post_layernorm.bias[-1] += 1e-3
    assert fingerprint(model) != before
    assert fingerprint(model.bfloat16()) != before


# ---- the experiment


@pytest.fixture(scope="module")
def experimented(processor, tmp_path_factory):
    """Two runs with two seeds each: (summary, folder, lines)."""
    folder, model, lines = tmp_path_factory.mktemp("experiment"), small(), []
    judge = lively(small()), processor
    options = dict(seeds=(0, 1), judge=judge, base="nano", report=lines.append)
    experiment(model, processor, TINY, folder, only="main", **options)
    summary = experiment(model, processor, TINY, folder, only="beta 0.3", **options)
    return summary, folder, lines


def test_every_result_is_a_file_and_is_not_measured_again(experimented, processor, model):
    summary, folder, _ = experimented
    assert {path.stem for path in folder.glob("*.json")} == {
        *("before-0", "before-1", "main-0", "main-1", "beta-0.3-0", "beta-0.3-1", "summary")
    }
    config = {name: json.loads((folder / f"{name}.json").read_text())["config"] for name in ("main-1", "beta-0.3-1")}
    assert config["main-1"]["seed"] == config["beta-0.3-1"]["seed"] == 1
    assert {k for k in config["main-1"] if config["main-1"][k] != config["beta-0.3-1"][k]} == {"beta"}
    seen, judge = [], (lively(small()), processor)
    again = experiment(model, processor, TINY, folder, only="main", seeds=(0, 1), judge=judge, report=seen.append)
    assert not seen and json.dumps(again) == json.dumps(summary)
    assert json.loads((folder / SUMMARY).read_text()) == json.loads(json.dumps(summary))
    with pytest.raises(ValueError, match="another model or config"):
        experiment(model, processor, replace(TINY, lr=1e-4), folder, only="main", judge=judge)
    with pytest.raises(ValueError, match="another model or config"):
        experiment(judge[0], processor, TINY, folder, only="main", judge=judge)


def test_results_of_another_labeler_do_not_count(processor, model, tmp_path):
    config, judge = replace(TINY, labeler="trained"), (lively(small()), processor)
    start = {"config": asdict(replace(config, seed=0)), "base": fingerprint(model)}
    for name in ("careless/report.json", "main-0.json"):  # the figures do not matter
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(start | {"labeled_by": "another"}))
    (tmp_path / "careless" / REPORT).write_text(json.dumps(start))
    small().save_pretrained(tmp_path / "careless")
    with pytest.raises(ValueError, match=r"main-0\.json holds the result of another labeler"):
        experiment(model, processor, config, tmp_path, only="main", seeds=(0,), judge=judge)


def test_the_summary_pools_all_seeds(experimented, model):
    summary, folder, _ = experimented
    assert list(summary["runs"]) == ["main", "beta 0.3"]
    found = [json.loads((folder / f"main-{seed}.json").read_text()) for seed in (0, 1)]
    run = summary["runs"]["main"]
    scenes = [s.facts for seed in (0, 1) for s in pictures(replace(TINY, seed=seed), "test", model)]
    for when in ("before", "after"):
        for way in ("greedy", "sampled"):
            said = found[0][when]["said"][way] + found[1][when]["said"][way]
            figures = hallucination(said, scenes)
            assert {name: figure["all"] for name, figure in run[when][way].items()} == figures
            assert run[when][way]["words"]["each"] == [each[when][way]["words"][0] for each in found]
        hits = sum(each[when]["questions"][0] * 7 for each in found)
        assert run[when]["questions"]["all"] == wilson(round(hits), 14)
    assert run["pairs"] == [each["rounds"][0]["pairs"]["kept"] for each in found]
    assert run["curve"] == [found[0]["rounds"][0]["curve"]]
    assert [point["step"] for point in run["training"][0]] == [1, 2, 3]
    margins = [step["margin"] for step in found[0]["rounds"][0]["training"]]
    assert [point["margin"] for point in run["training"][0]] == pytest.approx(margins, abs=1e-4)
    table = outcome(summary).splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [
        *("careful", "before", "main", "beta 0.3"),
        "not run: " + ", ".join(name for name in RUNS if name not in ("main", "beta 0.3")),
    ]


def test_long_histories_become_means_of_neighbors():
    thin = module._thinned([{"loss": i} for i in range(7)], most=3)
    assert thin == [{"step": 3, "loss": 1.0}, {"step": 6, "loss": 4.0}, {"step": 7, "loss": 6.0}]


def test_examples_are_answers_with_what_the_judge_said(processor, model, monkeypatch):
    def answer(model, processor, prompts, n, **how):
        return [["red star.", "blue star top left.", "no idea."][:n] for _ in prompts]

    monkeypatch.setattr(_alignment_steps, "sample_answers", answer)
    monkeypatch.setattr(module, "EXAMPLES", 2)
    judge = lively(small()), processor
    config = replace(TINY, answers=3)
    for seed in range(5):  # until the judge likes one claim and not the other
        found = module.examples(model, processor, replace(config, seed=seed), judge, None)
        if found:
            break
    assert 1 <= len(found) <= 2
    for shown in found:
        sample = draw(shown["seed"], view=56)
        assert shown["answers"] == ["red star.", "blue star top left.", "no idea."]
        assert [claim for claim, *_ in shown["claims"]] == ["red star", "blue star top left", "no idea"]
        assert shown["claims"][2] == ["no idea", None, None, False]
        for claim, p_yes, p_no, true in shown["claims"][:2]:
            question = ask_claim(claim)
            (yes,), (no,) = (p.tolist() for p in ask_yes_no(*judge, sample.image, [question]))
            assert (p_yes, p_no) == pytest.approx((yes, no), rel=1e-3)
            assert true == is_true(claim, sample.facts)


def test_the_labeler_is_trained_once(processor, model, tmp_path, monkeypatch):
    config, trained = replace(TINY, labeler="trained"), []
    real = module.train_labeler
    monkeypatch.setattr(module, "train_labeler", lambda *args: trained.append(1) or real(*args))
    first, second = (module._kept(module.train_labeler, model, processor, config, tmp_path, print) for _ in range(2))
    assert trained == [1] and fingerprint(first) == fingerprint(second)
    with pytest.raises(ValueError, match="another model or config"):
        module._kept(module.train_labeler, model, processor, replace(config, labeler_steps=2), tmp_path, print)


def test_every_run_changes_something_that_exists():
    assert RUNS["main"] == {}
    for name, change in RUNS.items():
        changed = replace(Alignment(), **change)
        assert (changed == Alignment()) == (name == "main")


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a" / "x.json", {"a": math.nan})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SETTINGS, "fast", replace(TINY, labeler="trained"))
    monkeypatch.setattr(MiniCPMV, "from_pretrained", lambda path: MiniCPMV.seeded(nano))
    folder = tmp_path / "run"
    assert main(["dpo", "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "labeler: near misses judged right" in out and "before: greedy" in out and "alignment" in out
    assert str(folder / SUMMARY) in out and "questions" in out
    assert {"config.json", "model.safetensors", "report.json", "tokenizer.json"} <= {
        path.name for path in (folder / "nano-dpo").iterdir()
    }
    assert json.loads((folder / "nano-dpo" / "config.json").read_text())["base"] == "nano"
    assert main(["dpo", "--folder", str(folder), "--run", "nothing"]) == 1
    assert "no run 'nothing'" in capsys.readouterr().err
    with only_one(folder / ".dpo.lock", "elsewhere"):
        assert main(["dpo", "--folder", str(folder)]) == 1
    assert f"another alignment writes to {folder}" in capsys.readouterr().err


# ---- what is refused


@pytest.mark.parametrize(
    "change",
    [
        dict(pictures=0),
        dict(answers=2.0),
        dict(temperature=math.nan),
        dict(temperature=0.0),
        dict(top_p=1.5),
        dict(lr=math.inf),
        dict(beta="0.1"),
        dict(language="de"),
        dict(kind="photo"),
        dict(seed=-1),
        dict(vision="yes"),
        dict(rounds=21),
        dict(steps=10**12),
        dict(labeler=["truth"]),
        dict(score=None),
    ],
)
def test_an_alignment_that_cannot_be(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TINY, **change)


def test_arguments_of_other_types_are_named(processor, model, tmp_path):
    for call, name in (
        (lambda: align(None, processor, TINY), "model"),
        (lambda: align(model, None, TINY), "processor"),
        (lambda: align(model, processor, {}), "config"),
        (lambda: experiment(model, processor, None, tmp_path), "config"),
        (lambda: experiment(model, processor, TINY, 3), "folder"),
        (lambda: experiment(model, processor, TINY, tmp_path, only=3), "only"),
        (lambda: experiment(model, processor, TINY, tmp_path, seeds=["0"]), r"seeds\[0\]"),
        (lambda: choose_pairs(None, [], TINY), "records"),
        (lambda: choose_pairs([], [], None), "config"),
        (lambda: write_json(3, {}), "path"),
        (lambda: write_json(tmp_path / "a.json", []), "data"),
        (lambda: write_json(tmp_path / "a.json", {"a": object()}), "data"),
        (lambda: fingerprint(None), "model"),
        (lambda: apply_changes(model, None), "folder"),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be"):
            call()


def test_figures_say_what_they_were_measured_on(experimented):
    summary, _, lines = experimented
    text = "\n".join(lines)
    assert "(3 held-out pictures and 7 questions about others)" in text
    assert "claims of the answers to 20 pictures)" in text and "(the 4 pairs of the first and of the last step)" in text
    said = module.measured_on(summary)
    assert "seeds 0, 1 together" in said and "3 held-out pictures and 7 questions" in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found.pop("after"), "KeyError: 'after'"),
        (lambda found: found.update(rounds=[]), "IndexError"),
        (lambda found: found["before"].update(greedy=None), "TypeError"),
        (lambda found: found["config"].update(steps="3"), "steps must be an integer"),
        (lambda found: found["before"]["said"]["greedy"].pop(), "one answer is needed"),
        (lambda found: found["config"].update(surprise=1), "surprise"),
    ],
)
def test_a_damaged_result_is_named(experimented, processor, model, tmp_path, change, reason):
    _, folder, _ = experimented
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = json.loads((tmp_path / "main-1.json").read_text())
    change(found)
    (tmp_path / "main-1.json").write_text(json.dumps(found))
    for name in ("careless", "answers"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match=f"damaged: .*main-1.json.*{reason}"):
        module.summarize(tmp_path, model, small(), processor, TINY, (model, processor))


@pytest.mark.parametrize("name", ["main-0.json", "careless/report.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"config": 1, "config": 2}', "[]", '{"config": NaN}', "\ud800"])
def test_a_result_that_is_no_json_is_named(experimented, processor, model, tmp_path, name, text):
    _, folder, _ = experimented
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if name == "main-0.json":
        (tmp_path / "careless").symlink_to(folder / "careless")
    with pytest.raises(ValueError, match=name):
        experiment(model, processor, TINY, tmp_path, only="main", seeds=(0,), judge=(model, processor))


def test_lines_of_answers_of_other_types_are_refused(processor, model, tmp_path):
    config = replace(TINY, pictures=2)
    samples, path = pictures(config, "train", model), tmp_path / "answers.jsonl"
    collect(model, processor, samples, config, path=path)
    lines = read_jsonl(path)
    for name, value in (
        ("answers", "abcd"),
        ("answers", lines[1]["answers"][:-1]),
        ("answers", [None] * 4),
        ("claims", [3] * len(lines[1]["claims"])),
        ("verdicts", ["yes"] * len(lines[1]["claims"])),
        ("truths", [*lines[1]["truths"], True]),
        ("key", ["scene"]),
    ):
        path.unlink()
        append_jsonl(path, [lines[0], {**lines[1], name: value}])
        with pytest.raises(ValueError, match="line 2: not the answers to picture 0"):
            collect(model, processor, samples, config, path=path)


def test_changes_that_are_not_finite_are_refused(finished, model, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / REPORT).write_bytes((finished[1] / REPORT).read_bytes())
    before = fingerprint(model)
    norm = torch.full_like(model.llm.model.norm.weight, math.nan)
    save_file({"llm.model.norm.weight": norm}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"llm\.model\.norm\.weight has a weight that is not a finite number"):
        apply_changes(model, tmp_path)
    assert fingerprint(model) == before
