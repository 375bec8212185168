"""The controls of the alignment experiment, and the grades of its labeler."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from tiny import ask, picture, tiny_model, tiny_processor

from experiments._controls import agreement, score_share, train_on_pairs
from minicpmv_ref.learn.dpo import Pair, prepare, train_dpo
from minicpmv_ref.learn.rlaif import build_pairs, score_response

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Setting:
    """What `train_on_pairs` reads of an Alignment."""

    steps: int = 4
    batch: int = 5
    lr: float = 1e-3
    beta: float = 0.1
    seed: int = 0
    vision: bool = False
    sft: bool = False


@pytest.fixture
def learner():
    model, asked = tiny_model("2.6"), [ask(picture(130, 60, seed), "What is this?") for seed in range(4)]
    answers = [("a red circle", "a star"), ("yes", "no"), ("two blue stars", "three"), ("one star", "nothing at all")]
    pairs = [*map(Pair, asked, *zip(*answers)), Pair(ask("Hi"), "Hello", "What do you want?")]
    return model, prepare(model, tiny_processor("2.6"), pairs)


def test_without_a_control_it_is_train_dpo(learner):
    model, prepared = learner
    twin, seen = copy.deepcopy(model), []
    expected = train_dpo(twin, prepared, steps=3, batch_size=2, lr=1e-3, beta=0.3, seed=7)
    assert train_on_pairs(model, prepared, Setting(3, 2, 1e-3, 0.3, 7), seen.append) == expected
    assert seen == [0, 1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_vision_learns_too(learner):
    model, prepared = learner
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin, seen = copy.deepcopy(model), []
    history = train_on_pairs(model, prepared, Setting(vision=True), seen.append)
    changed = {name.split(".")[0] for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"vpm", "resampler", "llm"} and seen == [0, 1, 2, 3, 4]
    frozen = train_on_pairs(twin, prepared, Setting())
    assert history[0]["chosen"] == pytest.approx(frozen[0]["chosen"], rel=1e-4)  # the same visual tokens, made anew
    assert history[-1]["loss"] < history[0]["loss"] and history[-1] != frozen[-1]


def test_vision_needs_the_pictures(learner):
    model, prepared = learner
    with pytest.raises(ValueError, match="vision=True needs the pictures"):
        train_on_pairs(model, [replace(pair, views=()) for pair in prepared], Setting(vision=True))


def test_sft_raises_the_chosen_answers(learner):
    model, prepared = learner
    vision = {name: t.clone() for name, t in model.state_dict().items() if not name.startswith("llm.")}
    history = train_on_pairs(model, prepared, Setting(steps=8, sft=True))
    assert history[-1]["chosen"] > history[0]["chosen"]
    assert history[0]["loss"] > 1  # per token, and not the 0.69 with which DPO begins
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in vision.items())


def test_controls_see_the_pairs_in_the_order_of_train_dpo(learner, monkeypatch):
    model, prepared = learner
    orders = []
    for module in ("experiments._controls", "minicpmv_ref.learn.dpo"):
        seen: list = []

        def step(model, optimizer, batch, reference, beta, sft=False, seen=seen):
            seen.append((optimizer.param_groups[0]["lr"], batch.labels[0].tolist(), reference.tolist()))
            return {}

        monkeypatch.setattr(f"{module}.dpo_step", step)
        train_on_pairs(model, prepared, Setting(6, 2, sft=module.startswith("exp")))
        orders.append(seen)
    assert orders[0] == orders[1] and len({rate for rate, *_ in orders[0]}) > 3


def test_a_share_forgives_long_answers():
    short, long = [True, False], [True] * 8 + [False] * 2
    assert score_response(short) > score_response(long) and score_share(short) < score_share(long)
    assert score_share([True] * 3) == 0 and score_share([False] * 3) == -1
    assert build_pairs([score_share(short), score_share(long)], 0.01) == [(1, 0)]
    with pytest.raises(ValueError, match=r"^verdicts must hold at least one"):
        score_share([])
    with pytest.raises(TypeError, match=r"^verdicts must be"):
        score_share("yes")


def test_agreement_looks_at_true_and_false_claims_apart():
    def values(*args):
        return {name: estimate.value for name, estimate in agreement(*args).items()}

    verdicts, truths = [[True] * 8, [True, False]], [[True] * 8, [False, False]]
    assert values(verdicts, truths) == dict(accuracy=0.9, on_true=1.0, on_false=0.5)
    assert values([[]], [[]]) == dict(accuracy=None, on_true=None, on_false=None)
    assert values([[False, False]], [[True, False]]) == dict(accuracy=0.5, on_true=0, on_false=1)
    with pytest.raises(ValueError, match="same claims"):
        agreement([[True]], [[True, False]])
    for wrong, name in (((None, None), "verdicts"), (([[True]], [["yes"]]), r"truths\[0\]\[0\]")):
        with pytest.raises(TypeError, match=f"^{name} must be"):
            agreement(*wrong)
