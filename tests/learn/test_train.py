"""The training loop: what is frozen stays, what learns gets better, the same seed gives the same weights."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import short_answers

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.__main__ import main
from minicpmv_ref.learn import train as plain_loop
from minicpmv_ref.learn.contrast import Contrast
from minicpmv_ref.learn.dpo import optimizer_for_dpo
from minicpmv_ref.learn.evaluate import answers, evaluate, share_of_words
from minicpmv_ref.learn.objectives import draw_samples, held_out_loss, objective_for
from minicpmv_ref.learn.stages import LATER, PARTS, STAGES, Stage, stage_named, start
from minicpmv_ref.learn.train import lr_scale_at
from minicpmv_ref.scale import machine
from minicpmv_ref.scale import run as trainer
from minicpmv_ref.scale.lora import add_lora, lora_optimizer
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.metrics import plot
from minicpmv_ref.scale.parallel import Processes
from minicpmv_ref.scale.profiles import PROFILES, Profile
from minicpmv_ref.scale.run import run
from minicpmv_ref.scale.steps import train_steps as train
from minicpmv_ref.toy.data import EVERY_KIND, TOPICS, draw, spell
from minicpmv_ref.toy.spelled import spelled_tokens
from minicpmv_ref.toy.words import split_words

PROCESSOR = Processor.from_pretrained("nano")
FLOAT32 = Machine(half_precision=False)


def short(name, steps=2, batch=3, **changes):
    return replace(stage_named(name), steps=steps, batch=batch, **changes)


def digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_what_is_frozen_does_not_change_and_the_rest_does(name):
    model = start().eval()
    before = {part: digest(getattr(model, part)) for part in PARTS}
    assert all(model.training for _ in train(model, PROCESSOR, short(name), machine=FLOAT32)) and not model.training
    changed = {part for part in PARTS if digest(getattr(model, part)) != before[part]}
    assert changed == set(stage_named(name).learning_rates)


def test_the_same_seed_gives_the_same_weights():
    one, two, other = start(), start(), start()
    for model, seed in ((one, 1), (two, 1), (other, 2)):
        losses = [step.loss for step in train(model, PROCESSOR, short("stage-3"), seed, machine=FLOAT32)]
        assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert digest(one) == digest(two) != digest(other)


@pytest.mark.parametrize("name", ["start-text", "start-vit", "stage-2", "sft-2"])
def test_the_plain_loop_learns_what_the_engine_learns(name):
    """They differ in when they divide by the number of supervised tokens, so in rounding."""
    stage, models = short(name, steps=3), (start(), start())
    plain = list(plain_loop.train(models[0], PROCESSOR, stage, seed=5))
    engine = list(train(models[1], PROCESSOR, stage, seed=5, machine=FLOAT32))
    for one, other in zip(plain, engine, strict=True):
        assert one._replace(loss=0, seconds=0, flops=0) == other._replace(loss=0, seconds=0, flops=0)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    first, *ways = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (start(), *models))
    ways = [way - first for way in ways]
    assert torch.cosine_similarity(*ways, dim=0) > 0.999
    assert ways[0].norm().item() == pytest.approx(ways[1].norm().item(), rel=1e-3)


def test_the_plain_loop_says_what_is_wrong(monkeypatch):
    with pytest.raises(TypeError, match="stage must be Stage"):
        plain_loop.train(start(), PROCESSOR, "sft-2")
    model = start()
    model.resampler.query.data[0] = float("inf")
    before = digest(model)
    with pytest.raises(FloatingPointError, match=r"stage-1, step 1: the loss is (nan|inf)"):
        list(plain_loop.train(model, PROCESSOR, short("stage-1")))
    assert digest(model) == before


@pytest.mark.parametrize("name", ["start-chat", "stage-1", "sft-1"])
def test_the_loss_is_that_of_the_separate_samples(name):
    """A step's loss equals the mean over supervised tokens of one sample at a time, padded by nobody."""
    model, stage = start(), short(name, turns=2)
    samples = [draw_samples(stage, 5, "train", 112)(i) for i in range(4)]
    objective = objective_for(model, PROCESSOR, stage)
    with torch.no_grad():
        loss, tokens, views, judged = objective(samples, step=0)
        total = count = length = 0
        for sample in samples:
            batch = objective.processor([sample.messages])
            visual = spelled_tokens(model, PROCESSOR, [sample]) if name == "start-chat" else None
            logits = model.llm(inputs_embeds=model.embed(batch, visual)).logits
            labels = batch.labels[:, 1:]
            total += torch.nn.functional.cross_entropy(logits[0, :-1], labels[0], ignore_index=-100, reduction="sum")
            count += (labels != -100).sum()
            length += batch.input_ids.shape[1]
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-5)
    assert (tokens, judged) == (length, count)
    assert views == sum(len(PROCESSOR([s.messages]).images[0]) for s in samples)


def test_raw_text_is_one_line_for_a_question_and_its_answer():
    model, stage = start(), short("start-text", turns=2)
    objective = objective_for(model, PROCESSOR, stage)
    sample = draw(0, "question", turns=2)
    packed, _ = objective.prepare([sample], step=2)
    without, _ = objective.prepare([sample], step=3)
    assert "<image_id>" not in PROCESSOR.tokenizer.decode(without.input_ids[0])
    (one, yes), (two, no) = zip(
        [m["content"] for m in sample.messages[::2]], [m["content"] for m in sample.messages[1::2]]
    )
    slots = "<image_id>0</image_id><image>" + "<unk>" * 16 + "</image>"
    assert PROCESSOR.tokenizer.decode(packed.input_ids[0]) == f"{slots}\n{one[1]} {yes}\n{two} {no}\n"
    supervised = packed.labels[0][packed.labels[0] != -100]
    assert PROCESSOR.tokenizer.decode(supervised) == f" {yes} {no}"


def test_raw_samples_do_not_see_each_other():
    model, stage = start(), short("start-text", turns=2)
    objective = objective_for(model, PROCESSOR, stage)
    samples = [draw(0, "question", turns=2), draw(1, "talk"), draw(2, "read")]
    with torch.no_grad():
        loss, tokens, views, _ = objective(samples, step=1)
        alone = [objective([sample], step=1) for sample in samples]
        weights = [(objective.prepare([sample], 1)[0].labels != -100).sum().item() for sample in samples]
    mean = sum(w * one[0].item() for w, one in zip(weights, alone)) / sum(weights)
    assert loss.item() == pytest.approx(mean, rel=1e-5)
    assert (tokens, views) == (sum(one[1] for one in alone), sum(one[2] for one in alone))


def test_half_resolution_is_one_small_view():
    objective = objective_for(start(), PROCESSOR, stage_named("stage-1"))
    batch = objective.processor([draw(0, "caption", scale=2).messages])
    assert [tuple(view.shape) for view in batch.images[0]] == [(3, 56, 56)]


@pytest.mark.parametrize("name, marks", [("stage-2", [2, 0]), ("sft-3-words", [2, 2])])
def test_every_other_step_has_no_image_id_unless_the_stage_wants_ids(name, marks):
    objective = objective_for(start(), PROCESSOR, stage_named(name))
    marker = PROCESSOR.tokenizer.convert_tokens_to_ids("<image_id>")
    batches = [objective.prepare([draw(0), draw(1)], step)[0].input_ids for step in range(4)]
    assert [int((ids == marker).sum()) for ids in batches] == 2 * marks


def test_samples_are_as_the_stage_wants_them():
    stage = short("sft-1", data_mix={"question": 1, "read": 1}, turns=3, large=0.25, aligned=False)
    samples = [draw_samples(stage, 5, "train", 56)(number) for number in range(80)]
    large = [s.image.size == (112, 112) for s in samples if s.kind == "question"]
    assert 0.1 < sum(large) / len(large) < 0.4 and {len(s.topics) for s in samples if s.kind == "question"} == {3}
    for number in (0, 7):
        assert samples[number].messages != draw_samples(stage, 6, "train", 56)(number).messages
        tidy = draw_samples(replace(stage, aligned=True), 5, "train", 56)(number)
        assert (tidy.image.tobytes() == samples[number].image.tobytes()) == (tidy.kind == "question")
    assert {samples[number].kind for number in (0, 7)} == {"question", "read"}


def test_the_held_out_loss_is_that_of_samples_which_training_never_sees():
    stage, seen = short("sft-1"), []

    def objective(samples, step):
        seen.append((samples, step))
        return torch.tensor([1.5, 9.0])

    objective.view = 112
    assert held_out_loss(objective, stage, n=5) == 1.5
    [(samples, step)] = seen
    assert step == 0 and all(sample.held_out for sample in samples)
    sample = draw_samples(stage, 0, "test", 112)
    assert [s.messages[1:] for s in samples] == [sample(number).messages[1:] for number in range(5)]


def test_the_later_stages_can_draw_what_they_learn_from():
    for stage in LATER:
        objective, samples = objective_for(start(), PROCESSOR, stage), draw_samples(stage, 0, "train", 112)
        objective.prepare([samples(number) for number in range(40)], step=0)  # all of it can be spelled, too
        assert set(stage.data_mix) <= set(EVERY_KIND)


def test_resumed_steps_see_the_samples_and_rates_that_come_next():
    """Also without any state: samples and rates depend on the number of the step alone."""
    stage, shown = short("sft-1", steps=4, batch=2), []
    drawn = draw_samples(stage, 0, "train", 112)

    def sample(number):
        shown.append(number)
        return drawn(number)

    whole = list(train(start(), PROCESSOR, stage, machine=FLOAT32))
    rest = list(train(start(), PROCESSOR, stage, samples=sample, done=2, machine=FLOAT32))
    assert shown == [4, 5, 6, 7]
    assert [step[:1] + step[2:5] for step in rest] == [step[:1] + step[2:5] for step in whole[2:]]
    for done in (-1, 5):
        with pytest.raises(ValueError, match=f"done must be from 0 to 4, got {done}"):
            train(start(), PROCESSOR, stage, done=done)


def test_an_optimizer_of_your_own_says_what_learns():
    """Its rates are scaled by the schedule, whoever made it."""
    model, stage = start(), short("sft-1", steps=2)
    optimizer = torch.optim.AdamW([{"params": [model.resampler.query], "lr": 1e-2}], weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = [step.lr_scale for step in train(model, PROCESSOR, stage, optimizer=optimizer, machine=FLOAT32)]
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["resampler.query"] and optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * rates[-1])


def test_weights_of_16_bits_are_a_reason_to_warn():
    """In ten steps of DPO at its own rate, 7 % of nano's weights moved in bfloat16, in float32 all of them."""
    model = start().bfloat16()
    makers = [lambda: plain_loop.optimizer_for(model, short("sft-2")), lambda: optimizer_for_dpo(model.llm)]
    for make in [*makers, lambda: lora_optimizer(add_lora(model, rank=2), 1e-3)]:
        with pytest.warns(UserWarning, match=r"are torch\.bfloat16, in which most .* rounded away.* model\.float\(\)"):
            make()


def test_training_helps():
    """Thirty steps of the LLM on one kind of question: held-out loss falls by a lot."""
    model, stage = start(), short("start-text", steps=30, batch=4, data_mix={"caption": 1})
    objective = objective_for(model, PROCESSOR, stage)
    before = held_out_loss(objective, stage, n=16)
    list(train(model, PROCESSOR, stage, objective=objective))
    assert held_out_loss(objective, stage, n=16) < 0.5 * before


def test_a_loss_that_is_not_finite_stops_with_its_step():
    model = start()
    with torch.no_grad():
        model.resampler.query.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="stage-1, step 1: the loss is nan; its samples: 0, 1, 2"):
        list(train(model, PROCESSOR, short("stage-1")))


def test_a_step_is_clipped_and_follows_adamw_of_the_document():
    """By hand: AdamW's first step is the rate times the sign of the gradient, and a hundredth of the weight decays."""
    model, stage = start(), Stage("x", "answer", {"resampler": 1e-3, "llm": 1e-2}, {}, steps=100)
    optimizer = plain_loop.optimizer_for(model, stage)
    query, table = model.resampler.query, model.llm.get_input_embeddings().weight
    for p in (query, table):
        p.data.fill_(10)
        p.grad = torch.full_like(p, 7.0)
    scale = plain_loop.update(optimizer, stage, step=1, loss=1.0)
    assert torch.cat([query.grad.flatten(), table.grad.flatten()]).double().norm() == pytest.approx(1, rel=1e-3)
    for p, rate in ((query, 1e-3), (table, 1e-2)):
        first = rate * scale
        torch.testing.assert_close(p, torch.full_like(p, 10 - 10 * 0.01 * first - first), rtol=0, atol=1e-2 * first)


def test_the_rate_rises_and_falls():
    rates = [lr_scale_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 3, rel=0.01) and max(rates) == rates[2] and rates[-1] < 0.03
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert all(0 < lr_scale_at(0, steps) <= 1 for steps in (1, 2, 3))


# ---- pictures in words


def test_spelled_tokens_are_sums_of_embeddings():
    model, sample = start(), draw(3, "caption")
    tokens = spelled_tokens(model, PROCESSOR, [sample])
    table, ids = model.llm.get_input_embeddings().weight, PROCESSOR.tokenizer
    assert tokens.shape == (1, 16, nano.llm.hidden_size)
    for slot, words in enumerate(spell(sample)[0]):
        want = sum(table[ids(word, add_special_tokens=False).input_ids[0]] for word in words)
        assert torch.allclose(tokens[0, slot], want)


def test_gradients_reach_the_embeddings():
    model = start()
    spelled_tokens(model, PROCESSOR, [draw(3)]).sum().backward()
    assert model.llm.get_input_embeddings().weight.grad.abs().sum() > 0


def test_the_spelling_says_what_the_document_says():
    for seed in range(60):
        sample = draw(seed, ["read", "crop", "lookup"][seed % 3])
        said = "".join(word.strip() for view in spell(sample) for slot in view for word in slot if word != ".")
        assert said == "".join(line.text.replace(" ", "") for line in sample.facts.lines)
        assert len(spell(sample)) == len(PROCESSOR([sample.messages]).images[0])


def test_what_cannot_be_spelled():
    torn = next(s for s in (draw(i, "read", aligned=False) for i in range(50)) if _cut(s))
    with pytest.raises(ValueError, match="aligned"):
        spell(torn)
    with pytest.raises(ValueError, match="112 or 224 pixels wide"):
        spell(draw(0, scale=3))


def _cut(sample):
    try:
        spell(sample)
    except ValueError:
        return True
    return False


# ---- SigLIP


def test_the_contrast_is_a_yes_no_question_for_every_pair():
    torch.manual_seed(0)
    contrast = Contrast(start(), PROCESSOR.tokenizer)
    samples = [draw(i) for i in range(3)] + [draw(0)]  # the last one is the first again: it matches both
    with torch.no_grad():
        image, text = contrast.vectors(samples)
        loss = 0.0
        for i in range(4):
            for j in range(4):
                yes = torch.sigmoid(image[i] @ text[j] * 10 - 10)
                loss -= (yes if samples[i].key == samples[j].key else 1 - yes).log() / 4
        assert contrast(samples).item() == pytest.approx(loss.item(), rel=1e-4)
        for i, sample in enumerate(samples):  # whatever the length of the captions beside it
            torch.testing.assert_close(contrast.vectors([sample])[1][0], text[i], atol=1e-5, rtol=1e-4)
    assert image.norm(dim=1).tolist() == pytest.approx([1] * 4)
    best = [samples[j].key for j in (image @ text.T).argmax(dim=1)]
    assert contrast.recall(samples) == sum(a == b.key for a, b in zip(best, samples)) / 4 < 1


def test_pictures_and_captions_are_compared_at_full_and_at_half_resolution_in_turn():
    objective = objective_for(start(), PROCESSOR, stage_named("start-vit"))
    assert [objective.prepare([draw(0)], step)[0][0].shape for step in (2, 3)] == [(3, 112, 112), (3, 56, 56)]


# ---- grades


def test_share_of_words():
    assert share_of_words(["red star", "a b c"], ["red circle", "a b"]) == 3 / 4
    assert share_of_words([""], ["one two"]) == 0


def test_each_character_of_chinese_is_a_word():
    assert share_of_words(["红色圆形，左下。"], ["红色星形左上。"]) == 4 / 6
    assert share_of_words(["左上北12、south 34。东 5"], ["左下北 12，south 35。东5"]) == 6 / 8
    assert (
        share_of_words(["ひらがな、カタカナ"], ["ひらがな"]) == 1
        and share_of_words(["한국어 말"], ["한국어 글"]) == 1 / 2
    )
    for text in ("a b, c", "1,234 l'étoile  œil\n“x”—y", "naïve Ω≈3.5 Привет, мир", "한국어 말"):
        assert split_words(text) == text.split()


def test_grades_of_a_model_that_knows_everything(monkeypatch):
    """Everything but what it cannot know: a question without its picture, and a document in one view."""
    by_heart, keep = {}, []

    def key(content):  # picture and question; without a picture it is in no list
        return id(content[0]), str(content[-1])

    def know(model, processor, prompts, **options):
        return ["" if options else by_heart.get(key(prompt[0]["content"]), "") for prompt in prompts]

    original = draw

    def remember(seed, kind, *rest, **options):
        sample = original(seed, kind, *rest, **options)
        by_heart[key(sample.prompt[0]["content"])] = sample.answer
        keep.append((seed, kind, sample.language, options))
        assert sample.held_out
        return sample

    monkeypatch.setattr("minicpmv_ref.learn.evaluate.draw", remember)
    monkeypatch.setattr("minicpmv_ref.learn.evaluate.answers", know)
    half = replace(nano, slicing=replace(nano.slicing, scale_resolution=56))
    grades = evaluate(MiniCPMV.seeded(half), PROCESSOR, "s", n=3, language="fr")
    blind = {name for name, share in grades.items() if share == 0}
    assert blind == {"read one view", "question blind", "lookup blind"}
    assert all(grades[name] == 1 for name in grades.keys() - blind)
    kinds = [("caption", {}), ("long", {}), *(("question", {"topic": topic}) for topic in TOPICS)]
    kinds += [("read", {}), ("lookup", {}), ("crop", {}), ("read", {"aligned": False})]
    assert keep == [(f"s/{i}", kind, "fr", {"view": 56, **given}) for kind, given in kinds for i in range(3)]


def test_answers_are_those_of_chat(monkeypatch):
    """Also of a model that is just learning, which does not learn while it answers."""
    model, modes = start().train(), []
    samples = [draw(i, kind) for i, kind in enumerate(["question", "caption", "read"])]
    real = model.generate
    monkeypatch.setattr(model, "generate", lambda *args, **how: modes.append(model.training) or real(*args, **how))
    for sliced in ({}, {"max_slice_nums": 1}):
        together = answers(model, PROCESSOR, [s.prompt for s in samples], max_new_tokens=5, **sliced)
        assert modes.pop() is False and model.training
        model.eval()
        assert together == [model.chat(s.prompt, PROCESSOR, max_new_tokens=5, **sliced).strip() for s in samples]
        model.train()
    seen = []
    monkeypatch.setattr(model, "generate", lambda batch, *_, **__: seen.append(batch) or torch.zeros(1, 1, dtype=int))
    answers(model, PROCESSOR, [samples[2].prompt], max_slice_nums=1)
    assert len(seen[0].images[0]) == 1 < len(PROCESSOR(samples[2].prompt).images[0])


# ---- the whole run


@pytest.fixture(scope="module", autouse=True)
def few_held_out_samples():
    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer, "held_out_loss", partial(held_out_loss, n=2))
        yield


@pytest.fixture(scope="module", autouse=True)
def short_grades():
    """What stands in grades is tested above; a model of two steps would answer until the last token."""

    def graded(*args, **options):
        with short_answers():
            return evaluate(*args, **options)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer, "evaluate", graded)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    lines = []
    tiny = Profile(steps=1e-9, batch=1e-9, grades=1)
    model = run(folder, tiny, PROCESSOR, report=lines.append, progress=False)
    return folder, tiny, model, lines


def test_each_stage_leaves_a_checkpoint_metrics_and_grades(finished):
    folder, _, model, _ = finished
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for stage in STAGES:
        MiniCPMV.from_pretrained(folder / stage.name)
        steps = [row["step"] for row in rows if row["stage"] == stage.name and "loss" in row]
        assert steps == [1, 2]
        assert ("grades" in [row for row in rows if row["stage"] == stage.name][-1]) == (stage.objective == "answer")
    last = MiniCPMV.from_pretrained(folder / "sft-2")
    assert digest(last) == digest(model)
    assert plot(folder).stat().st_size > 1000


def test_a_finished_run_is_loaded_and_a_cut_one_goes_on(finished, tmp_path):
    folder, tiny, model, _ = finished
    (folder / "sft-2" / "model.safetensors").rename(tmp_path / "kept")
    lines = []
    again = run(folder, tiny, PROCESSOR, report=lines.append, progress=False)
    assert [line.split(":")[0] for line in lines if "done before" in line] == [s.name for s in STAGES[:-1]]
    assert digest(again) == digest(model)  # the same seed, and the stage before it from its file


def test_one_stage_alone_needs_the_one_before(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage-2 starts from start-text"):
        run(tmp_path, Profile(1e-9, 1e-9, grades=1), PROCESSOR, only="stage-2", report=lambda line: None)
    with pytest.raises(ValueError, match="no stage 'stage-9'"):
        run(tmp_path, Profile(1e-9, 1e-9, grades=1), PROCESSOR, only="stage-9")


@pytest.fixture
def asked_anew():
    machine.fast_bfloat16.cache_clear()
    yield torch.device("cpu")
    machine.fast_bfloat16.cache_clear()


def test_bfloat16_is_only_used_where_the_processor_has_it(monkeypatch, asked_anew):
    monkeypatch.setattr(machine, "is_quicker", lambda way, usual: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert machine.fast_bfloat16(asked_anew) is False
    machine.fast_bfloat16.cache_clear()
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert machine.fast_bfloat16(asked_anew) is False


@pytest.mark.parametrize("quicker", [True, False])
def test_and_only_where_it_is_quicker(monkeypatch, asked_anew, quicker):
    """A processor may have bfloat16 and multiply it slower than float32."""
    dtypes = []
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(machine, "is_quicker", lambda *calls: dtypes.extend(call().dtype for call in calls) or quicker)
    assert machine.fast_bfloat16(asked_anew) is quicker and Machine().in_bfloat16(asked_anew) is quicker
    assert dtypes == [torch.bfloat16, torch.float32]  # asked once
    assert Machine(half_precision=not quicker).in_bfloat16(asked_anew) is not quicker


def test_all_processes_compute_in_one_dtype(monkeypatch):
    """One slow machine among two: both take float32."""
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: True)
    two = Processes(0, 2)
    for others, together in ((0, False), (1, True)):
        monkeypatch.setattr(Processes, "all_reduce_sum", lambda self, own, others=others: [own + others])
        assert Machine(processes=two).in_bfloat16(torch.device("cpu")) is together


# ---- the command


def test_the_command_trains_and_draws_the_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "fast", Profile(steps=1e-9, batch=1e-9, grades=1))
    monkeypatch.setattr(trainer, "STAGES", (stage_named("stage-1"), stage_named("sft-2")))
    assert main(["train", "--out", str(tmp_path / "run"), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "profile fast, seed 0" in out and (tmp_path / "run" / "curves.png").is_file()
    assert "stage-1: resampler for 2 steps" in out and "sft-2: held-out loss" in out
    files = {path: path.read_bytes() for path in (tmp_path / "run" / "sft-2").iterdir()}
    again = ["train", "--out", str(tmp_path / "run"), "--stage", "sft-2", "--threads", "1"]
    assert main(again) == 0  # a finished one stays as it is
    out = capsys.readouterr().out
    assert out.count("done before") == 2 and "to train it anew, move that away or write somewhere else" in out
    assert main([*again, "--seed", "1"]) == main([*again, "--from", "nano"]) == 1
    assert capsys.readouterr().err.count("is not what this run would write") == 2
    assert files == {path: path.read_bytes() for path in (tmp_path / "run" / "sft-2").iterdir()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "my.json"], "--data needs --from CHECKPOINT, the model to start from"),
        (
            ["--data", "my.json", "--from", "nano", "--profile", "cpu", "--stage", "sft-1"],
            "--profile, --stage: these options belong to the toy world, not to --data",
        ),
        (["--from", "nano"], "--from: these options belong to --data, your own data"),
        (
            ["--held-out", "a.json", "--steps", "3", "--batch", "2", "--root", "x", "--strict", "--stage", "sft-1"],
            "--held-out, --steps, --batch, --root, --strict: these options belong to --data",
        ),
    ],
)
def test_options_that_do_not_fit_together(options, words, capsys):
    assert main(["train", *options]) == 1
    assert capsys.readouterr().err.startswith(f"error: {words}")


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["train", "--stage", "stage-9", "--out", str(tmp_path)]) == 1
    assert "error: no stage 'stage-9'; there are start-text" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["train", "--out", str(tmp_path / "file")]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"done": 1.5}, "done must be int"),
        ({"machine": 2}, "machine must be Machine"),
        ({"micro_batches": 1.5}, "micro_batches must be an integer"),
        ({"workers": "2"}, "workers must be int"),
        ({"processes": 2}, "processes must be Processes"),
        ({"shard": True}, "train_steps cannot shard"),
        ({"micro_batches": 4}, "micro_batches must be from 1 to the 3 samples of a process, got 4"),
    ],
)
def test_arguments_that_cannot_be(options, words):
    """Before anything is computed."""
    with pytest.raises((TypeError, ValueError), match=words):
        if options.keys() <= {"seed", "done", "machine"}:
            train(start(), PROCESSOR, short("stage-1"), **options)
        else:
            train(start(), PROCESSOR, short("stage-1"), machine=Machine(**options))


def test_runs_that_cannot_be(tmp_path):
    for options, words in (
        ({"seed": "0"}, "seed must be an integer"),
        ({"machine": "gpu"}, "machine must be Machine"),
        ({"only": 3}, "stage must be the name of a stage"),
        ({"profile": "fast"}, "profile must be Profile"),
    ):
        given = {"profile": Profile(1e-9, 1e-9), "processor": PROCESSOR} | options
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    for device, words in (("gpu", "got 'gpu'"), (3.5, "got 3.5")):
        with pytest.raises(ValueError, match=f"device must be one that this torch can use, {words}"):
            Machine(device=device)
    for step, steps in ((0.5, 3), (-1, 3), (0, 0), (0, "3")):
        with pytest.raises(ValueError, match=r"steps? must be an integer"):
            lr_scale_at(step, steps)
