"""DPO: the loss against published code, TRL and its limits; pairs in one row against answers scored one by one."""

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from places import ROOT
from tiny import VERSIONS, ask, picture, tiny_model, tiny_processor

from minicpmv_ref.learn import dpo
from minicpmv_ref.learn.dpo import (
    Pair,
    dpo_loss,
    dpo_step,
    pair_batch,
    pair_logps,
    prepare,
    reference_logps,
    sequence_logps,
    token_logps,
    train_dpo,
)

GOLDEN = json.loads((ROOT / "tests/golden/dpo.json").read_text())
pytestmark = pytest.mark.usefixtures("one_thread")


def golden(name: str) -> torch.Tensor:
    kind = torch.long if name == "labels" else torch.float64
    return torch.tensor(GOLDEN[name], dtype=kind)


def conversations() -> list[Pair]:
    """A sliced picture, two pairs of one picture, no picture, two turns; all of different lengths."""
    sliced, small = ask(picture(130, 90, 1), "What is this?"), ask(picture(56, 42, 2), "Describe it.")
    turns = [*ask(picture(50, 60, 3), "red or blue?"), {"role": "assistant", "content": "red"}, *ask("and the star?")]
    return [
        Pair(sliced, "a red circle", "a blue square and a star, a green square"),
        Pair(small, "red circle top left, blue star bottom right.", "no"),
        Pair(ask("Hello"), "yes", "no"),
        Pair(small, "red circle top left.", "red circle top left, red circle top left."),
        Pair(turns, "there is one star", "there are two, maybe three"),
    ]


def alone(model, processor, pairs: list[Pair]) -> list[list[torch.Tensor]]:
    """Log-probabilities of each token of each chosen and each rejected answer, from ordinary conversations."""
    found = []
    for side in ("chosen", "rejected"):
        found.append([])
        for pair in pairs:
            before = processor(pair.prompt)
            whole = processor([*pair.prompt, {"role": "assistant", "content": getattr(pair, side)}])
            labels = whole.labels.clone()
            labels[:, : before.input_ids.shape[1]] = -100  # earlier answers
            logps = model(whole).logits[0, :-1].log_softmax(dim=-1)
            wanted = labels[0, 1:] != -100
            found[-1].append(logps[wanted].gather(1, labels[0, 1:][wanted, None])[:, 0])
    return found


# --- The loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["policy", "ref"])
def test_log_probabilities_are_those_of_the_published_code(who):
    logits, labels = golden(f"{who}_logits"), golden("labels")
    sums = sequence_logps(logits, labels)
    torch.testing.assert_close(sums, golden(f"{who}_logp_sum"), atol=1e-12, rtol=1e-12)
    supervised = (labels[:, 1:] != -100).sum(dim=1)
    torch.testing.assert_close(sums / supervised, golden(f"{who}_logp_avg"), atol=1e-12, rtol=1e-12)


def test_every_token_is_scored_by_the_logits_before_it():
    logits, labels = golden("policy_logits"), golden("labels")
    found = token_logps(logits, labels)
    assert found.shape == (4, 6)
    for row in range(4):
        for t in range(6):
            label = labels[row, t + 1]
            expected = 0.0 if label == -100 else logits[row, t].log_softmax(dim=0)[label]
            assert abs(found[row, t] - expected) < 1e-12
    weights = golden("token_weight")
    torch.testing.assert_close((found * weights).sum(dim=1), golden("weighted_logp_sum"), atol=1e-12, rtol=1e-12)


def test_the_loss_is_that_of_the_published_code():
    policy, reference = golden("policy_logp_sum"), golden("ref_logp_sum")
    loss, chosen, rejected = dpo_loss(policy[:2], policy[2:], reference[:2], reference[2:], GOLDEN["beta"])
    assert abs(loss.item() - GOLDEN["loss_mean"]) < 1e-12
    torch.testing.assert_close(chosen, golden("chosen_rewards"), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(rejected, golden("rejected_rewards"), atol=1e-12, rtol=1e-12)
    for i in range(2):
        each = dpo_loss(policy[i : i + 1], policy[i + 2 : i + 3], reference[i : i + 1], reference[i + 2 : i + 3])[0]
        assert abs(each.item() - GOLDEN["losses"][i]) < 1e-12  # beta is 0.1 by default


def logps(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_limits_of_beta():
    args = logps(-5, -7), logps(-6, -3), logps(-5.5, -9), logps(-4, -4)
    margin = (args[0] - args[2]) - (args[1] - args[3])
    small = 1e-6
    assert abs(dpo_loss(*args, small)[0] - math.log(2)) < 1e-5
    slope = (dpo_loss(*args, small)[0] - math.log(2)) / small
    assert abs(slope + margin.mean() / 2) < 1e-4
    large = 1e6  # -log sigmoid(x) is max(0, -x) far from 0
    assert abs(dpo_loss(*args, large)[0] / large - F.relu(-margin).mean()) < 1e-5


@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_policies_that_agree_give_log_2_and_gradients_of_known_size(beta):
    reference = logps(-5, -7, -100), logps(-6, -3, -1)
    policy = [x.clone().requires_grad_() for x in reference]
    loss, chosen, rejected = dpo_loss(*policy, *reference, beta)
    assert abs(loss.item() - math.log(2)) < 1e-15
    assert not chosen.any() and not rejected.any()
    assert not chosen.requires_grad and not rejected.requires_grad
    loss.backward()
    torch.testing.assert_close(policy[0].grad, logps(*[-beta / 6] * 3))  # more chosen, less loss
    torch.testing.assert_close(policy[1].grad, logps(*[beta / 6] * 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(beta=0.0), "beta must be a finite number above 0, got 0.0"),
        (dict(beta=-0.1), "beta"),
        (dict(beta=math.nan), "beta"),
        (dict(policy_chosen=torch.zeros(3)), "one shape"),
        (
            dict(policy_chosen=torch.full((2,), -math.inf), reference_chosen=torch.full((2,), -math.inf)),
            "the loss is nan",
        ),
        (dict(reference_rejected=torch.tensor([0.0, math.nan])), "the loss is nan"),
        (
            {n: torch.zeros(0) for n in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")},
            "B is 0",
        ),
        (
            {
                n: torch.zeros(())
                for n in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
            },
            "shape",
        ),
    ],
)
def test_the_loss_refuses(change, message):
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    with pytest.raises(ValueError, match=message):
        dpo_loss(**{**{name: torch.zeros(2) for name in names}, **change})


@pytest.mark.parametrize("size", [3e301, 1e39, 7e4])
def test_dtypes_may_differ_and_nothing_overflows_in_silence(size):
    """A wide number beside narrow ones: the loss of a rejected answer that became far likelier is beta * size."""
    wide, narrow = torch.tensor([size], dtype=torch.float64), torch.zeros(1, dtype=torch.float16)
    for dtype in (torch.float16, torch.float32, torch.float64):
        loss, chosen, rejected = dpo_loss(narrow, wide, torch.zeros(1, dtype=dtype), narrow)
        assert loss.item() == pytest.approx(0.1 * size) and rejected.item() == pytest.approx(0.1 * size)
        assert loss.dtype == chosen.dtype == rejected.dtype == torch.float64
    low, high = torch.tensor([-60000.0]).half(), torch.tensor([60000.0]).half()
    assert dpo_loss(high, low, low, high)[1].item() == pytest.approx(12000, rel=1e-3), "float16 would end at 65504"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reward_that_is_not_finite_is_an_error_even_if_the_loss_is(dtype):
    zero, large = torch.zeros(1, dtype=dtype), torch.full((1,), torch.finfo(dtype).max, dtype=dtype)
    with pytest.raises(ValueError, match="too large"):
        dpo_loss(large, zero, -large, zero)  # the loss is 0, the reward infinite
    with pytest.raises(ValueError, match="infinite"):
        dpo_loss(zero, torch.full((1,), -math.inf, dtype=dtype), zero, zero)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(policy_chosen=[0.0, 0.0]), "policy_chosen must be Tensor, got list"),
        (dict(reference_rejected=torch.zeros(2, dtype=torch.long)), "reference_rejected must be a tensor of floats"),
        (dict(policy_rejected=torch.zeros(2, dtype=torch.complex64)), "policy_rejected must be a tensor of floats"),
        (dict(beta="0.1"), "beta must be a number"),
        (dict(beta=None), "beta must be a number"),
        (dict(beta=True), "beta must be a number"),
    ],
)
def test_the_loss_names_an_argument_of_a_wrong_type(change, message):
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    with pytest.raises(TypeError, match=message):
        dpo_loss(**{**{name: torch.zeros(2) for name in names}, **change})


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0]], torch.zeros(1, 1, dtype=torch.long), "logits must be Tensor"),
        (
            torch.zeros(1, 2, 4, dtype=torch.long),
            torch.zeros(1, 2, dtype=torch.long),
            "logits must be a tensor of floats",
        ),
        (torch.zeros(1, 2, 4), torch.zeros(1, 2), "labels must be integers"),
        (torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.bool), "labels must be integers"),
        (torch.zeros(1, 2, 4), None, "labels must be Tensor"),
        (torch.zeros(1, 2, 4), torch.tensor([[0, 4]]), "labels must be -100 or a token from 0 to 3, got 4"),
        (torch.zeros(1, 2, 4), torch.tensor([[0, -1]]), "got -1"),
    ],
)
def test_scores_need_floats_and_tokens(logits, labels, message):
    for function in (token_logps, sequence_logps):
        with pytest.raises(ValueError, match=message) as refusal:
            function(logits, labels)
        assert isinstance(refusal.value, TypeError) == ("token" not in message and "got -1" not in message)


def test_labels_of_any_integers_count():
    logits, labels = golden("policy_logits"), golden("labels")
    torch.testing.assert_close(token_logps(logits, labels.int()), token_logps(logits, labels))


def test_an_answer_without_tokens_is_refused_not_averaged():
    labels = torch.full((3, 4), -100)
    labels[0, 2] = labels[2, 0] = 1  # nothing predicts the first token of a row
    with pytest.raises(ValueError, match=r"rows \[1, 2\] have no supervised token"):
        sequence_logps(torch.zeros(3, 4, 5), labels)
    for shape in ((3, 5, 5), (2, 4, 5), (3, 4), (3, 4, 5, 1)):
        with pytest.raises(ValueError, match="logits must be"):
            sequence_logps(torch.zeros(shape), labels)


def test_half_precision_logits_are_scored_in_float32():
    logits, labels = golden("policy_logits").bfloat16(), golden("labels")
    assert token_logps(logits, labels).dtype == torch.float32
    torch.testing.assert_close(token_logps(logits, labels), token_logps(logits.float(), labels))


# --- Pairs in one row ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "packed"), [*((version, False) for version in VERSIONS), ("2.6", True)])
def test_a_pair_in_one_row_is_scored_as_two_conversations(models, processors, version, packed):
    model, processor = copy.deepcopy(models[version]).double(), processors[version]
    pairs = conversations()
    expected = alone(model, processor, pairs)
    if packed:
        import minicpmv_ref.learn.packing  # noqa: F401 (registers the attention of packed training)

        model.llm.set_attn_implementation("packed")
    batch = pair_batch(prepare(model, processor, pairs))
    found = pair_logps(model, batch)
    for side in range(2):
        for row in range(len(pairs)):
            own = batch.labels[side, row] != -100
            torch.testing.assert_close(found[side, row][own], expected[side][row], atol=1e-9, rtol=0)
            assert not found[side, row][~own].any()
    # What the test can see: a rejected answer that looks at the chosen one, or that stands behind it.
    leaky = copy.copy(batch)
    leaky.attention_mask = torch.ones_like(batch.attention_mask).tril()
    assert (pair_logps(model, leaky) - found).abs().max() > 1e-2
    late = copy.copy(batch)
    late.position_ids = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    assert (pair_logps(model, late) - found).abs().max() > 1e-3


def test_gradients_are_those_of_two_conversations(models, processors):
    model, processor = copy.deepcopy(models["2.6"]).double(), processors["2.6"]
    pairs = conversations()
    parameters = list(model.llm.parameters())

    def gradient(sums):
        loss = dpo_loss(*sums, *(sums.detach() + torch.arange(10).view(2, 5)), beta=0.3)[0]
        return torch.autograd.grad(loss, parameters)

    own = gradient(pair_logps(model, pair_batch(prepare(model, processor, pairs))).sum(dim=2))
    with torch.no_grad():
        visual = {id(pair.prompt): model._encode(processor(pair.prompt)) for pair in pairs}
    rows = []
    for side in ("chosen", "rejected"):
        for pair in pairs:
            whole = processor([*pair.prompt, {"role": "assistant", "content": getattr(pair, side)}])
            whole.labels[:, : processor(pair.prompt).input_ids.shape[1]] = -100
            embeds = model.embed(whole, visual[id(pair.prompt)])
            rows.append(sequence_logps(model.llm(inputs_embeds=embeds, use_cache=False).logits, whole.labels))
    for a, b in zip(own, gradient(torch.cat(rows).view(2, 5)), strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()  # transformers takes norms in float32


def test_a_pair_does_not_notice_the_others(models, processors):
    model, processor = models["2.6"], processors["2.6"]
    prepared = prepare(model, processor, conversations())
    together = pair_logps(model, pair_batch(prepared))
    for i, pair in enumerate(prepared):
        single = pair_logps(model, pair_batch([pair], pad_id=7))[:, 0]
        torch.testing.assert_close(together[:, i, : single.shape[1]], single, atol=1e-4, rtol=1e-4)


def test_a_batch_moves_with_all_its_tensors(models, processors):
    batch = pair_batch(prepare(models["2.6"], processors["2.6"], conversations()))
    moved = batch.to("meta", torch.float64)
    assert moved.visual.dtype == torch.float64
    assert all(x.is_meta for x in vars(moved).values() if isinstance(x, torch.Tensor))
    assert sum(isinstance(x, torch.Tensor) for x in vars(moved).values()) == 6
    assert not batch.visual.is_meta and batch.visual.dtype == torch.float32


def test_a_picture_is_encoded_once(models, processors, monkeypatch):
    model, processor = models["2.6"], processors["2.6"]
    calls = []
    encode = type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda *args: calls.append(1) or encode(*args))
    pairs = conversations()
    prepared = prepare(model, processor, pairs)
    assert len(calls) == 4  # five pairs, two of them of one picture
    assert prepared[1].visual is prepared[3].visual
    train_dpo(copy.deepcopy(model), prepared, steps=3, batch_size=4)
    assert len(calls) == 5  # in all of training one, to see that it is this model's
    assert not any(pair.visual.requires_grad for pair in prepared)


def in_one_color(color: str) -> list[dict]:
    return ask(Image.new("RGB", (112, 112), color), "What color?")


def refilled():
    """One prompt list, filled again for each pair: its identity says nothing about its picture."""
    prompt = []
    for color in ("red", "blue", "red"):
        prompt[:] = in_one_color(color)
        yield Pair(prompt, "yes", "no")


def passing():
    """Prompts that nobody keeps: the next one may get the address of the last."""
    for color in ("red", "blue", "red"):
        yield Pair(in_one_color(color), "yes", "no")


def repainted():
    """The same picture object with other pixels."""
    picture = Image.new("RGB", (112, 112))
    for color in ("red", "blue", "red"):
        picture.paste(color, (0, 0, 112, 112))
        yield Pair(ask(picture, "What color?"), "yes", "no")


@pytest.mark.parametrize("pairs", [refilled, passing, repainted])
def test_each_pair_has_the_tokens_of_its_own_picture(models, processors, pairs):
    model, processor = models["2.6"], processors["2.6"]
    prepared = prepare(model, processor, pairs())
    for pair, color in zip(prepared, ("red", "blue", "red"), strict=True):
        batch = processor(in_one_color(color))
        assert torch.equal(pair.visual, model.encode_images(batch.images[0], batch.patch_grids[0]))
    assert prepared[0].visual is prepared[2].visual, "equal pictures are encoded once, whatever holds them"


def test_equal_pixels_in_another_shape_are_another_picture(models, processors):
    model, processor = models["2.6"], processors["2.6"]
    questions = [ask(Image.new("RGB", size, "red"), "What color?") for size in ((28, 112), (112, 28))]
    for question, pair in zip(questions, prepare(model, processor, [Pair(one, "yes", "no") for one in questions])):
        batch = processor(question)
        assert torch.equal(pair.visual, model.encode_images(batch.images[0], batch.patch_grids[0]))


def test_only_the_last_answer_counts(processors, models):
    [prepared] = prepare(models["2.6"], processors["2.6"], conversations()[-1:])
    decode = processors["2.6"].tokenizer.decode
    assert decode(prepared.chosen) == "there is one star<|im_end|>"
    assert decode(prepared.rejected) == "there are two, maybe three<|im_end|>"
    assert decode(prepared.prompt).endswith(
        "red<|im_end|>\n<|im_start|>user\nand the star?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("yes", "yes", "pair 0: both answers are 'yes'"),
        ("", "yes", "pair 0: the chosen answer is empty"),
        ("yes", " ", "pair 0: the rejected answer is empty or not stripped: ' '"),
        ("\nyes", "no", "not stripped"),
        ("<image>", "no", "reserved"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(models, processors, chosen, rejected, message):
    with pytest.raises(ValueError, match=message):
        prepare(models["2.6"], processors["2.6"], [Pair(ask("Hi"), chosen, rejected)])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (None, "pair 0 must be Pair, got NoneType"),
        (("prompt", "yes", "no"), "pair 0 must be Pair, got tuple"),
        (Pair("Hi", "yes", "no"), "pair 0: prompt must be a list"),
        (Pair(["Hi"], "yes", "no"), r"pair 0: prompt\[0\] must be a message"),
        (Pair(ask("Hi"), None, "no"), "pair 0: chosen must be str"),
        (Pair(ask("Hi"), "yes", 3), "pair 0: rejected must be str"),
        (Pair([], "yes", "no"), "pair 0: the prompt must end with the user"),
        (Pair([{"role": "assistant", "content": "Hi"}], "yes", "no"), "pair 0: the prompt must end with the user"),
        (Pair(ask("Hi"), "yes", "<|im_end|>"), r"pair 0, conversation 1: message 1: <\|im_end\|> is reserved"),
    ],
)
def test_what_is_no_pair_is_refused_by_its_number(models, processors, pair, message):
    with pytest.raises(ValueError, match=message):
        prepare(models["2.6"], processors["2.6"], iter([pair]))


def test_a_file_that_cannot_be_read_is_refused_by_the_number_of_its_pair(models, processors, monkeypatch):
    def gone(*arguments):
        raise FileNotFoundError("gone.png is not there")

    monkeypatch.setattr(type(processors["2.6"]), "_write", gone)
    with pytest.raises(OSError, match=r"^pair 0, conversation 0: gone\.png is not there"):
        prepare(models["2.6"], processors["2.6"], [Pair(ask("Hi"), "yes", "no")])


def test_what_is_no_model_and_no_list_is_refused(models, processors):
    for arguments, message in (
        ((None, processors["2.6"], []), "model must be MiniCPMV"),
        ((models["2.6"], models["2.6"], []), "processor must be Processor"),
        ((models["2.6"], processors["2.6"], 3), "pairs must be Iterable"),
    ):
        with pytest.raises(TypeError, match=message):
            prepare(*arguments)


def test_a_pair_without_a_prompt_would_be_predicted_by_its_neighbor():
    none = torch.zeros(0, 2, dtype=torch.long), [], torch.zeros(0, 16, 256)
    one, empty = torch.tensor([1]), torch.zeros(0, dtype=torch.long)
    for name, fields in dict(prompt=(empty, one, one), chosen=(one, empty, one), rejected=(one, one, empty)).items():
        with pytest.raises(ValueError, match=rf"pairs\[1\].{name} must be \(tokens,\), at least one"):
            pair_batch([dpo.Prepared(one, one, one, *none), dpo.Prepared(*fields, *none)])
    with pytest.raises(ValueError, match=r"pairs\[1\].visual must be \(views, Q, D\)"):
        other = dpo.Prepared(one, one, one, none[0], [], torch.zeros(0, 4, 256))
        pair_batch([dpo.Prepared(one, one, one, *none), other])
    with pytest.raises(TypeError, match=r"pairs\[0\] must be Prepared"):
        pair_batch([Pair(ask("Hi"), "yes", "no")])


def test_no_pairs_are_refused(models):
    for call in (pair_batch, lambda pairs: reference_logps(models["2.6"], pairs)):
        with pytest.raises(ValueError, match="pair"):
            call([])


# --- Training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def learner():
    model = tiny_model("2.6")
    return model, prepare(model, tiny_processor("2.6"), conversations())


def test_training_prefers_the_chosen_answers_and_leaves_vision_alone(learner):
    model, prepared = learner
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    margins = (lambda sums: sums[0] - sums[1], reference_logps(model, prepared))
    history = train_dpo(model, prepared, steps=12, batch_size=5, lr=1e-3)
    assert abs(history[0]["loss"] - math.log(2)) < 1e-4 and abs(history[0]["margin"]) < 1e-4
    assert history[-1]["loss"] < 0.5 and history[-1]["accuracy"] == 1.0
    after = reference_logps(model, prepared)
    assert (margins[0](after) > margins[0](margins[1])).all()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("llm.") for name in changed)
    last = history[-1]
    assert last["chosen"] - last["rejected"] == pytest.approx((after[0] - after[1]).mean().item(), rel=0.3)
    moved = last["chosen"] - last["rejected"] - margins[0](margins[1]).mean().item()
    assert last["margin"] == pytest.approx(0.1 * moved, rel=1e-3)


def test_the_reference_is_the_model_before_training(learner):
    model, prepared = learner
    reference = reference_logps(model, prepared, batch_size=2)
    torch.testing.assert_close(reference, pair_logps(model, pair_batch(prepared)).sum(dim=2), atol=1e-3, rtol=1e-4)
    twin = copy.deepcopy(model)
    options = dict(steps=6, batch_size=3, lr=1e-3, seed=3)
    first = train_dpo(model, prepared, **options)
    second = train_dpo(twin, prepared, **options, reference=reference)
    for a, b in zip(first, second):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_training_repeats_itself(learner):
    model, prepared = learner
    twin = copy.deepcopy(model)
    assert train_dpo(model, prepared, steps=4, batch_size=2) == train_dpo(twin, prepared, steps=4, batch_size=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_rates_batches_and_references_belong_together(learner, monkeypatch):
    model, prepared = learner
    reference = torch.arange(10.0).view(2, 5)
    seen = []

    def step(model, optimizer, batch, reference, beta):
        places = [
            next(i for i, p in enumerate(prepared) if torch.equal(p.chosen, row[row != -100]))
            for row in batch.labels[0]
        ]
        assert reference.tolist() == [[float(i) for i in places], [i + 5.0 for i in places]]
        assert beta == 0.7
        seen.append((optimizer.param_groups[0]["lr"], places))
        return {}

    monkeypatch.setattr(dpo, "dpo_step", step)
    train_dpo(model, prepared, steps=40, batch_size=2, lr=1.0, beta=0.7, reference=reference)
    rates = [rate for rate, _ in seen]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] < 0.01
    assert rates[21] == pytest.approx(0.5) and all(a >= b for a, b in pairwise(rates[1:]))
    order = [place for _, places in seen for place in places]
    assert all(sorted(order[i : i + 5]) == list(range(5)) for i in range(0, 80, 5))  # every epoch has every pair
    assert len({tuple(order[i : i + 5]) for i in range(0, 80, 5)}) > 5  # in another order


def test_somebody_may_watch(learner, monkeypatch):
    model, prepared = learner
    seen = []
    monkeypatch.setattr(dpo, "dpo_step", lambda *args: seen.append("step") or {})
    train_dpo(model, prepared, steps=2, batch_size=2, watch=seen.append)
    assert seen == [0, "step", 1, "step", 2]


def test_control_sft_raises_the_chosen_answers_by_the_usual_loss(learner):
    model, prepared = learner
    batch = pair_batch(prepared)
    batch_logps = pair_logps(model, batch)
    tokens = (batch.labels[0] != -100).sum()
    model.zero_grad()
    (-batch_logps[0].sum() / tokens).backward()
    wanted = torch.cat([p.grad.flatten() for p in model.llm.parameters()])
    still = torch.optim.SGD(model.llm.parameters(), lr=0.0)
    figures = dpo_step(model, still, batch, reference_logps(model, prepared), sft=True)
    assert figures["loss"] == pytest.approx(-batch_logps[0].sum().item() / tokens.item(), rel=1e-5)
    found = torch.cat([p.grad.flatten() for p in model.llm.parameters()])
    torch.testing.assert_close(found, wanted / wanted.norm(), atol=1e-5, rtol=1e-4)


def test_a_batch_is_never_larger_than_the_pairs(learner):
    model, prepared = learner
    assert len(train_dpo(model, prepared[:2], steps=2, batch_size=50)) == 2


@pytest.mark.parametrize(
    "change",
    [
        dict(steps=0),
        dict(batch_size=0),
        dict(lr=0.0),
        dict(lr=math.nan),
        dict(beta=0.0),
        dict(reference=torch.zeros(2, 3)),
        dict(reference=[0.0] * 10),
        dict(steps=2.0),
        dict(batch_size=None),
        dict(lr="1"),
        dict(seed=[]),
        dict(lr=math.inf),
    ],
)
def test_training_refuses(learner, change):
    model, prepared = learner
    with pytest.raises(ValueError, match=next(iter(change))):
        train_dpo(model, prepared, **{"steps": 2, **change})


def test_pairs_of_another_model_and_frozen_models_do_not_train(learner):
    model, prepared = learner
    other = copy.deepcopy(model)
    other.llm.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would learn: all parameters are frozen"):
        train_dpo(other, prepared, steps=1)
    train_dpo(model.bfloat16().float(), prepared, steps=1)  # another dtype is no other model
    torch.nn.init.normal_(other.requires_grad_(True).resampler.query)
    with pytest.raises(ValueError, match="the visual tokens of the pairs are not those of this model"):
        train_dpo(other, [prepared[2], *prepared], steps=1)  # the first pair has no picture
    train_dpo(other, prepared[2:3], steps=1)


def test_a_gradient_that_is_not_finite_changes_nothing(learner, monkeypatch):
    model, prepared = learner
    weight = model.llm.model.layers[0].mlp.down_proj.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.inf))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="the gradient of this step is"):
        train_dpo(model, prepared, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_step_that_fails_changes_nothing(learner):
    model, prepared = learner
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.llm.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="not a number"):
        dpo_step(model, optimizer, pair_batch(prepared), torch.full((2, 5), math.nan))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_gradients_of_one_step_do_not_reach_the_next(learner):
    model, prepared = learner
    still = torch.optim.SGD(model.llm.parameters(), lr=0.0)
    first, second = ([prepared[i] for i in indices] for indices in ((0, 1), (2, 3)))

    def gradients_after(*batches):
        model.zero_grad()
        for pairs in batches:
            dpo_step(model, still, pair_batch(pairs), reference_logps(model, pairs))
        return torch.cat([p.grad.flatten() for p in model.llm.parameters()])

    alone = gradients_after(second)
    assert alone.norm() == pytest.approx(1, abs=1e-4)  # clipped
    torch.testing.assert_close(gradients_after(first, second), alone)


# --- TRL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_trl_agrees_on_every_token_and_on_the_loss(models, processors, tmp_path, dtype, tolerance):
    pytest.importorskip("trl", reason="TRL is an optional peer: pip install trl")
    import pyarrow
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, processor = copy.deepcopy(models["2.5"]).to(dtype), processors["2.5"]
    pairs = [
        Pair(pair.prompt if i == 2 else ask("Describe it" + "!" * i), pair.chosen, pair.rejected)
        for i, pair in enumerate(conversations())
    ]
    prepared = prepare(model, processor, pairs)
    batch = pair_batch(prepared)
    llm, frozen = copy.deepcopy(model.llm), copy.deepcopy(model.llm)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for p in frozen.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator, dtype=dtype))
        other = copy.deepcopy(model)
        other.llm.load_state_dict(frozen.state_dict())
    options = dict(gradient_checkpointing=False, bf16=False, max_length=None, use_cpu=True, report_to="none")
    config = DPOConfig(str(tmp_path), beta=0.1, **options)
    text = Dataset(pyarrow.Table.from_pylist([dict(prompt="a", chosen="b", rejected="c")]), fingerprint="text")
    trainer = DPOTrainer(llm, frozen, config, train_dataset=text, processing_class=processor.tokenizer)
    names = ("prompt", "chosen", "rejected")
    inputs = trainer.data_collator([{f"{n}_ids": getattr(pair, n).tolist() for n in names} for pair in prepared])
    supervised = inputs["completion_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~supervised, -100)
    with torch.no_grad():
        out = llm(inputs["input_ids"], inputs["attention_mask"], labels=labels, fused_lm_head=True, use_cache=False)
        own = pair_logps(model, batch)
    theirs = out.log_probs[supervised[:, 1:]].to(dtype)  # TRL's head answers in float32, whatever the model computes in
    torch.testing.assert_close(own[batch.labels != -100], theirs, atol=tolerance, rtol=tolerance)

    theirs = trainer.compute_loss(llm, inputs)
    loss, chosen, rejected = dpo_loss(*pair_logps(model, batch).sum(dim=2), *reference_logps(other, prepared), 0.1)
    assert abs(loss.item() - math.log(2)) > 1e-2  # the reference does differ
    assert loss.item() == pytest.approx(theirs.item(), abs=tolerance, rel=tolerance)
    logged = trainer._metrics["train"] or trainer._metrics["eval"]
    assert logged["rewards/margins"][-1] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
    loss.backward()
    theirs.backward()
    gradients = [torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (model.llm, llm)]
    assert (gradients[0] - gradients[1]).norm() < 10 * tolerance * gradients[1].norm()
