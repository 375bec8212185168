"""Generation: cached equals uncached, greedy equals transformers, samples follow softmax, text comes in whole."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from standins import byte_tokenizer
from tiny import VERSIONS, ask, picture, several, tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import (
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.decoding import next_token
from minicpmv_ref.model import decode_answer, decode_stream

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def nano_pair():
    return MiniCPMV.seeded(nano), Processor.from_pretrained("nano")


def recorded(model, batch, **options):
    """Generated tokens (S, n), and the logits of the last position at every step (S, n, V)."""
    seen = []
    hook = model.llm.register_forward_hook(lambda _, args, out: seen.append(out.logits[:, -1].float()))
    try:
        tokens = model.generate(batch, **options)
    finally:
        hook.remove()
    return tokens, torch.stack(seen, dim=1)


@torch.no_grad()
def slowly(model, batch, steps, choose=torch.argmax):
    """One prompt, no cache, no mask, no position ids: the whole text through the LLM again for every token."""
    x, tokens, logits = model.embed(batch), [], []
    for _ in range(steps):
        logits.append(model.llm(inputs_embeds=x, use_cache=False).logits[0, -1])
        tokens.append(int(choose(logits[-1])))
        if tokens[-1] in batch.stop_ids:
            break
        x = torch.cat([x, model.llm.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1)
    return tokens, torch.stack(logits)


# --- Caching and batching ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_cached_decoding_of_a_batch_equals_uncached_decoding_of_each(models, processors, version):
    """Prompts of different lengths with none, one and two pictures: padding, cache, mask and positions at once."""
    model, processor = models[version], processors[version]
    batch = replace(processor(several()), stop_ids=())
    tokens, logits = recorded(model, batch, max_new_tokens=12)
    assert tokens.shape == (4, 12)
    assert len({tuple(row.tolist()) for row in tokens}) == 4, "all answers are the same: this proves little"
    for row, messages in enumerate(several()):
        expected, by_step = slowly(model, replace(processor(messages), stop_ids=()), 12)
        torch.testing.assert_close(logits[row], by_step, rtol=1e-4, atol=1e-4)
        assert tokens[row].tolist() == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_equals_transformers_own_generate(models, processors, version):
    model, batch = models[version], processors[version](several())
    free, _ = recorded(model, replace(batch, stop_ids=()), max_new_tokens=10)
    stops = tuple({int(free[0, 3]), int(free[2, 6])})
    ours = model.generate(replace(batch, stop_ids=stops, pad_id=0), max_new_tokens=10)
    with torch.no_grad():
        theirs = model.llm.generate(
            inputs_embeds=model.embed(batch),
            attention_mask=batch.attention_mask,
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=list(stops),
            pad_token_id=0,
        )
    assert torch.equal(ours, theirs)


def test_precomputed_visual_tokens_give_the_same_answer(models, processors):
    model, batch = models["2.6"], processors["2.6"](several())
    with torch.no_grad():
        views = [model.encode_images(i, g) for i, g in zip(batch.images, batch.patch_grids) if i]
    a, b = (model.generate(batch, max_new_tokens=5, **kw) for kw in ({}, {"visual": torch.cat(views)}))
    assert torch.equal(a, b)


# --- Stopping ------------------------------------------------------------------------------------------------------


def test_each_sample_stops_for_itself_and_is_padded_behind(models, processors):
    model, batch = models["2.6"], replace(processors["2.6"](several()), stop_ids=(), pad_id=9)
    free = model.generate(batch, max_new_tokens=10).tolist()
    stops = (free[0][2], free[1][5], free[3][0])
    expected = []
    for row in free:
        end = next((i for i, token in enumerate(row) if token in stops), len(row)) + 1
        expected.append(row[:end] + [9] * (10 - len(row[:end])))
    longest = max(next((i for i, t in enumerate(row) if t in stops), 9) + 1 for row in free)
    stopped = model.generate(replace(batch, stop_ids=stops), max_new_tokens=10)
    assert stopped.tolist() == [row[:longest] for row in expected]
    assert (stopped == 9).any()


def test_generation_ends_when_all_have_stopped(models, processors):
    model, batch = models["2.6"], replace(processors["2.6"](several()[:2]), stop_ids=())
    free = model.generate(batch, max_new_tokens=8)
    stops = (int(free[0, 1]), int(free[1, 3]))
    steps = list(model.stream(replace(batch, stop_ids=stops), 8))
    assert len(steps) <= 4 and all(step.shape == (2,) and step.dtype == torch.int64 for step in steps)


def test_a_stop_token_counts_only_for_samples_that_still_run(models, processors):
    """The padding id may itself be a stop token (2.6: <|endoftext|>)."""
    model, batch = models["2.6"], replace(processors["2.6"](several()), stop_ids=())
    free = model.generate(batch, max_new_tokens=6)
    stop = int(free[0, 0])
    out = model.generate(replace(batch, stop_ids=(stop,), pad_id=stop), max_new_tokens=6)
    assert (out[0] == stop).all()
    running = [row for row in range(1, 4) if stop not in free[row]]
    assert running and all(torch.equal(out[row], free[row]) for row in running)


def test_padding_on_the_right_is_refused(models, processors):
    """The answer would continue the padding; transformers warns."""
    batch = processors["2.6"](several()[:2])
    turned = {name: getattr(batch, name).flip(1) for name in ("attention_mask", "position_ids")}
    with pytest.raises(ValueError, match=r"attention_mask ends with padding, .*: pad on the left"):
        models["2.6"].generate(replace(batch, **turned), 2)


# --- Room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_ends_where_the_positions_end(processors, version):
    batch = replace(processors[version](ask("Hello")), stop_ids=())
    length = batch.input_ids.shape[1]
    model = tiny_model(version, positions=length + 3)
    highest = []
    model.llm.register_forward_pre_hook(
        lambda _, args, kw: highest.append(int(kw["position_ids"].max())), with_kwargs=True
    )
    assert model.generate(batch, max_new_tokens=10).shape == (1, 3)
    assert max(highest) == length + 1, "position ids 0 .. length + 2 exist; the last token is never fed back"
    full = tiny_model(version, positions=length)
    with pytest.raises(ValueError, match=f"all {length} positions"):
        full.generate(batch)
    with pytest.raises(ValueError, match=f"all {length} positions"):
        full.generate(replace(processors[version](ask("Hello, how are you today?")), stop_ids=()))


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": math.nan},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(models, processors, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        models["2.6"].generate(processors["2.6"](ask("Hello")), **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_new_tokens": "3"}, TypeError),
        ({"max_new_tokens": 3.0}, TypeError),
        ({"max_new_tokens": True}, TypeError),
        ({"max_new_tokens": None}, TypeError),
        ({"max_new_tokens": -(10**5000)}, ValueError),
        ({"temperature": "hot"}, TypeError),
        ({"temperature": None}, TypeError),
        ({"temperature": 1e-40}, ValueError),
        ({"temperature": 1e-320}, ValueError),
        ({"temperature": 9e-5}, ValueError),
        ({"temperature": math.inf}, ValueError),
        ({"temperature": 10**400}, ValueError),
        ({"top_k": 1.5}, TypeError),
        ({"top_k": "1"}, TypeError),
        ({"top_p": "1"}, TypeError),
        ({"top_p": -math.inf}, ValueError),
        ({"repetition_penalty": [1]}, TypeError),
        ({"repetition_penalty": math.inf}, ValueError),
        ({"repetition_penalty": 1e300}, ValueError),
        ({"repetition_penalty": 1e-40}, ValueError),
        ({"seed": 2**64}, ValueError),
        ({"seed": -(2**63) - 1}, ValueError),
        ({"seed": 10**30}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"seed": None}, TypeError),
        ({"visual": 3}, TypeError),
        ({"visual": [torch.zeros(4, 64)]}, TypeError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
def test_settings_of_a_wrong_type_or_far_too_large(models, processors, options, error):
    with pytest.raises(error, match=next(iter(options))):
        models["2.6"].generate(processors["2.6"](ask("Hello")), **options)


def test_settings_at_the_edge_of_what_is_allowed(models, processors):
    model, batch = models["2.6"], processors["2.6"](ask("Hello"))
    batch = replace(batch, stop_ids=())
    greedy = model.generate(batch, max_new_tokens=4)
    room = model.config.llm.max_position_embeddings - batch.input_ids.shape[1]
    assert len(list(zip(range(3), model.stream(batch, 10**30)))) == 3 and room > 3
    for options in (
        {"temperature": 1e-4, "seed": 2**64 - 1},
        {"temperature": 5.0, "seed": -(2**63), "top_p": 1e-320},
        {"temperature": 5.0, "top_p": 5e-324, "top_k": 10**400},
        {"temperature": 5.0, "top_k": 1, "top_p": 1},
        {"temperature": np.float32(5), "top_k": np.int64(1), "seed": np.int64(7)},
        {"temperature": 0},
    ):
        assert torch.equal(model.generate(batch, max_new_tokens=4, **options), greedy), options
    for penalty in (1000, 1 / 1000):
        assert model.generate(batch, 4, temperature=1e-4, repetition_penalty=penalty).shape == (1, 4)


def test_large_logits_can_be_sampled(processors):
    """Divided by the temperature, they are beyond what float32 holds."""
    model = tiny_model("2.6")
    for logits, allowed in (([3e38, -3e38, 1.0], {0}), ([3e38, 2e38, -1.0], {0, 1}), ([1e36, -2e38, 1e33], {0})):
        model.llm = KnownLogits(torch.tensor(logits))
        batch = replace(processors["2.6"](ask("Hello")), stop_ids=())
        drawn = model.generate(batch, max_new_tokens=4, temperature=1e-4)
        assert set(drawn.flatten().tolist()) <= allowed
        assert model.generate(batch, max_new_tokens=4, temperature=1.0, repetition_penalty=1e-3).shape == (1, 4)


# --- Not a number --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.8, "top_k": 100}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llm.model.layers.1.mlp.down_proj.weight", math.inf),
        ("llm.model.norm.weight", math.nan),
        ("llm.lm_head.weight", math.nan),
        ("resampler.proj", math.nan),
        ("vpm.post_layernorm.bias", -math.inf),
    ],
)
def test_a_model_with_a_weight_that_is_no_number_does_not_answer(processors, version, name, value, options):
    model, processor = tiny_model(version), processors[version]
    model.get_parameter(name).data.view(-1)[3] = value
    batch = processor(ask(picture(130, 90), "What is this?"))
    with pytest.raises(ValueError, match="token 1 of the answer: the logits of sample 0 are not finite"):
        model.generate(batch, max_new_tokens=3, **options)
    with pytest.raises(ValueError, match="forward: the logits of sample 0 are not finite"):
        model(batch)
    with pytest.raises(ValueError, match="logits of sample 0 are not finite"):
        model.chat(ask(picture(130, 90), "What is this?"), processor, **options)


class LogitsByStep(torch.nn.Module):
    """An LLM whose logits (S, V) are given for each step."""

    def __init__(self, *steps):
        super().__init__()
        self.steps, self.table = iter(steps), torch.nn.Embedding(1024, 64)

    def get_input_embeddings(self):
        return self.table

    def forward(self, **_):
        return SimpleNamespace(logits=torch.tensor(next(self.steps))[:, None], past_key_values=None)


def test_the_sample_and_the_token_are_named_and_those_that_have_stopped_do_not_matter(processors):
    batch = replace(processors["2.6"]([ask("Hello"), ask("Hi")]), stop_ids=(2,), pad_id=2)
    right, stop, bad = [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, math.nan, 1.0]
    model = tiny_model("2.6")
    model.llm = LogitsByStep([stop, right], [bad, right], [[math.inf] * 3, stop])
    assert model.generate(batch).tolist() == [[2, 2, 2], [1, 1, 2]]
    for wrong in (bad, [math.inf, 0.0, 0.0], [-math.inf] * 3):
        model.llm = LogitsByStep([right, right], [right, wrong])
        with pytest.raises(ValueError, match="token 2 of the answer: the logits of sample 1 are not finite"):
            model.generate(batch)
    model.llm = LogitsByStep([[-math.inf, 1.0, -math.inf], stop], [stop, bad])
    assert model.generate(batch).tolist() == [[1, 2], [2, 2]], "a token may be impossible"


# --- Sampling ------------------------------------------------------------------------------------------------------


def test_sampling_is_reproducible_by_seed(models, processors):
    model, batch = models["2.6"], replace(processors["2.6"](several()), stop_ids=())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (model.generate(batch, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}], ids=str)
def test_narrow_sampling_equals_greedy(models, processors, options):
    model, batch = models["2.6"], processors["2.6"](several())
    greedy = model.generate(batch, max_new_tokens=8)
    assert torch.equal(model.generate(batch, max_new_tokens=8, **({"temperature": 2.0} | options)), greedy)


@pytest.mark.parametrize("options", [{"top_k": 50}, {"top_p": 0.8}, {"top_k": 100, "top_p": 0.8, "temperature": 0}])
def test_who_asks_for_sampling_without_a_temperature_is_told(models, processors, options):
    model, batch = models["2.6"], processors["2.6"](several()[:1])
    with pytest.warns(UserWarning, match="temperature is 0, so the likeliest token is taken") as caught:
        answer = model.generate(batch, 4, **options)
    assert torch.equal(answer, model.generate(batch, 4)) and caught[0].filename == __file__


class KnownLogits(torch.nn.Module):
    """An LLM whose next-token distribution is given."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.table = logits, torch.nn.Embedding(1024, 64)

    def get_input_embeddings(self):
        return self.table

    def forward(self, attention_mask, **_):
        logits = torch.full((len(attention_mask), 1, 1024), -torch.inf)
        logits[:, 0, : len(self.logits)] = self.logits
        return SimpleNamespace(logits=logits, past_key_values=None)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.8}],
    ids=str,
)
def test_samples_follow_the_distribution(processors, options):
    """Frequencies of 5,000 draws against softmax, cut as transformers cuts it: five standard deviations."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, 0.5, -3.0, 1.4])
    options = {"temperature": 1.0} | options
    scores = logits[None] / options["temperature"]
    if "top_k" in options:
        scores = TopKLogitsWarper(options["top_k"])(None, scores)
    if "top_p" in options:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)
    expected = scores[0].softmax(-1)

    model = tiny_model("2.6")
    model.llm = KnownLogits(logits)
    one = processors["2.6"](ask("Hello"))
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    many = replace(one, **{n: getattr(one, n).repeat(5000, 1) for n in names})
    many = replace(many, images=[[]] * 5000, patch_grids=[[]] * 5000, plans=[[]] * 5000)
    many = replace(many, image_bounds=[torch.empty(0, 2, dtype=torch.long)] * 5000)
    drawn = model.generate(many, max_new_tokens=1, seed=4, **options)[:, 0]
    frequency = drawn.bincount(minlength=8) / 5000
    assert frequency.numel() == 8
    assert (frequency[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / 5000).sqrt()
    assert ((frequency - expected).abs() <= 5 * deviation).all(), (frequency, expected)


def test_tokens_that_reach_top_p_exactly_are_enough():
    """Of four tokens of a quarter each, two make a half: as in transformers, no third is sampled."""
    logits = torch.zeros(200, 4)
    kept = TopPLogitsWarper(0.5)(None, logits.clone()).isfinite().sum(dim=1)
    generator = torch.Generator().manual_seed(0)
    drawn = next_token(logits, None, 1.0, None, 0.5, 1, generator)
    assert drawn.unique().numel() == 2 == kept[0]


@pytest.mark.parametrize("penalty", [1.3, 0.7, 20.0])
def test_repetition_penalty_is_that_of_transformers_over_generated_tokens(models, processors, penalty):
    model, processor = models["2.6"], processors["2.6"]
    batch = replace(processor(several()), stop_ids=())
    tokens = model.generate(batch, max_new_tokens=12, repetition_penalty=penalty)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    for row, messages in enumerate(several()):
        answer = []

        def choose(logits, answer=answer):
            if answer:
                logits = theirs(torch.tensor([answer]), logits[None].clone())[0]
            answer.append(int(logits.argmax()))
            return answer[-1]

        slowly(model, replace(processor(messages), stop_ids=()), 12, choose)
        assert tokens[row].tolist() == answer
    if penalty == 20.0:
        assert all(row.unique().numel() == 12 for row in tokens)
    if penalty == 0.7:
        assert any(row.unique().numel() < 12 for row in tokens)


def test_repetition_penalty_lowers_negative_logits_too(processors):
    """Dividing -1 by 1.2 would raise it: -1 * 1.2 = -1.2 falls behind -1.1."""
    model = tiny_model("2.6")
    model.llm = KnownLogits(torch.tensor([-1.0, -1.1, -3.0]))
    batch = replace(processors["2.6"](ask("Hello")), stop_ids=())
    assert model.generate(batch, max_new_tokens=4).tolist() == [[0, 0, 0, 0]]
    assert model.generate(batch, max_new_tokens=4, repetition_penalty=1.2).tolist() == [[0, 1, 0, 0]]


# --- Streaming and words -------------------------------------------------------------------------------------------


def test_stream_yields_what_generate_returns_without_gradients(models, processors):
    model, batch = models["2.6"], processors["2.6"](several())
    whole = model.generate(batch, max_new_tokens=6)
    for step, token in enumerate(model.stream(batch, 6)):
        assert torch.equal(token, whole[:, step])
        assert torch.is_grad_enabled(), "between two tokens the caller's own work must not lose its gradients"
    assert not whole.requires_grad


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "seed": 5}, {"max_slice_nums": 1}, {"use_image_id": False}]
)
def test_chat_returns_the_joined_stream(nano_pair, options):
    model, processor = nano_pair
    messages = ask(picture(130, 90), "What is this?")
    whole = model.chat(messages, processor, max_new_tokens=24, **options)
    pieces = model.chat(messages, processor, stream=True, max_new_tokens=24, **options)
    assert not isinstance(pieces, str)
    pieces = list(pieces)
    assert "".join(pieces) == whole and len(pieces) > 1
    split = {name: options[name] for name in ("max_slice_nums", "use_image_id") if name in options}
    sampling = {name: value for name, value in options.items() if name not in split}
    ids = model.generate(processor(messages, **split), 24, **sampling)[0]
    assert whole == at_once(ids.tolist(), processor.tokenizer)


MARKS = [f"<{slash}{kind}>" for kind in ("ref", "box", "quad", "point") for slash in ("", "/")]


def at_once(ids, tokenizer) -> str:
    """All tokens in one go: special ones only if they mark a place."""
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tokenizer.decode([i for i in ids if special.get(i, MARKS[0]) in MARKS])


def test_chat_takes_images_for_placeholders(nano_pair):
    model, processor = nano_pair
    image = picture(130, 90)
    a = model.chat(
        [{"role": "user", "content": "(<image>./</image>)\nWhat?"}], processor, images=[image], max_new_tokens=5
    )
    assert a == model.chat(ask(image, "What?"), processor, max_new_tokens=5)


def test_chat_takes_one_conversation(nano_pair):
    model, processor = nano_pair
    with pytest.raises(ValueError, match="one conversation, got 2"):
        model.chat([ask("a"), ask("b")], processor)
    assert isinstance(model.chat([ask("a")], processor, max_new_tokens=2), str)


TEXTS = ["plain words", "naïve cœur", "图像中有三个红色的圆。", "👩‍👩‍👧 𝔐 ok", "\n\n  a  \n", "�", "a�b"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_of_several_tokens_is_never_split(nano_pair, text):
    tokenizer = nano_pair[1].tokenizer
    ids = tokenizer(text)["input_ids"]
    pieces = list(decode_stream(iter(ids), tokenizer))
    assert "".join(pieces) == text
    if "�" not in text:
        assert all("�" not in piece for piece in pieces)
        if not text.isascii():
            assert len(pieces) < len(ids), "no character of this text has several tokens: this proves nothing"


def test_a_character_that_is_never_finished_is_shown_at_the_end(nano_pair):
    tokenizer = nano_pair[1].tokenizer
    ids = tokenizer("ok 𝔐")["input_ids"][:-1]
    pieces = list(decode_stream(iter(ids), tokenizer))
    assert "".join(pieces) == tokenizer.decode(ids) and "".join(pieces[:-1]).strip() == "ok"


def test_random_ids_decode_piece_by_piece_as_at_once(nano_pair):
    tokenizer = nano_pair[1].tokenizer
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        ids = torch.randint(0, 300, (20,), generator=generator).tolist()  # mostly single bytes
        assert "".join(decode_stream(iter(ids), tokenizer)) == at_once(ids, tokenizer)


def spaces_first_tokenizer():
    """As 2.0's: spaces are part of the words, the first is dropped, and unknown characters are bytes."""
    words = ["▁the", "▁", "cat", "▁cat", "s", "<unk>", *MARKS, *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", *MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    "text",
    [
        "<ref>book</ref><box>12 34 56 78</box>",  # as the released 2.6 answers
        "<quad>1 2 3 4 5 6 7 8</quad>, dann <point>9 9</point>",
        "<ref>图像中的 naïve 𝔐</ref><box>0 0 999 999</box><box>1 1 2 2</box>",
        "".join(MARKS),
    ],
)
def test_marks_of_places_are_part_of_an_answer(nano_pair, text):
    bytes_only = byte_tokenizer("2.6")
    bytes_only.add_special_tokens({"additional_special_tokens": MARKS})
    for tokenizer in (nano_pair[1].tokenizer, bytes_only):
        ids = tokenizer(text)["input_ids"]
        assert all(tokenizer.convert_tokens_to_ids(mark) in ids for mark in MARKS if mark in text)
        end, begin = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
        ids = [begin, *ids, *tokenizer("<unk><image><|endoftext|></slice>")["input_ids"], end, *ids]
        assert decode_answer(ids, tokenizer, (end,)) == text == "".join(decode_stream(iter(ids), tokenizer, {end}))
        assert decode_answer(torch.tensor(ids), tokenizer, [end]) == text


@pytest.mark.parametrize("stream", [False, True])
def test_chat_shows_marks_of_places(nano_pair, monkeypatch, stream):
    model, processor = nano_pair
    ids = processor.tokenizer("<ref>a cat</ref><point>5 6</point><|im_end|>")["input_ids"]
    monkeypatch.setattr(model, "stream", lambda batch, **options: iter(torch.tensor(ids)[:, None]))
    answer = model.chat(ask("Where?"), processor, stream=stream)
    assert "".join(answer) == "<ref>a cat</ref><point>5 6</point>"


def test_a_first_space_is_dropped_once(nano_pair):
    tokenizer, generator = spaces_first_tokenizer(), torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(0, 14, (12,), generator=generator).tolist()
        pieces = list(decode_stream(ids, tokenizer))
        assert "".join(pieces) == at_once(ids, tokenizer)
    cat = [*"图".encode()]
    ids = [3, *(14 + byte for byte in cat), 0, 6, 3, 7]
    assert list(decode_stream(ids, tokenizer)) == ["cat", "图", " the", "<ref>", " cat", "</ref>"]


def test_a_long_answer_is_not_decoded_again_and_again(nano_pair, monkeypatch):
    tokenizer, decoded = nano_pair[1].tokenizer, []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    ids = tokenizer("图像 naïve words <box>1 2</box> " * 100)["input_ids"]
    assert "".join(decode_stream(ids, tokenizer)) == decode(ids)
    assert sum(decoded) < 12 * len(ids)


@pytest.mark.parametrize(
    ("tokens", "stop_ids", "error", "words"),
    [
        (["a"], (), TypeError, "tokens"),
        ("words", (), TypeError, "tokens"),
        ([1.0], (), TypeError, "tokens"),
        ([[1, 2]], (), TypeError, "tokens"),
        (torch.ones(2, 2, dtype=torch.long), (), TypeError, "tokens"),
        (3, (), TypeError, "tokens"),
        (torch.tensor(3), (), TypeError, "tokens"),
        (None, (), TypeError, "tokens"),
        ([-1], (), ValueError, "tokens"),
        ([2**32], (), ValueError, "tokens"),
        ([1], 2, TypeError, "stop_ids"),
        ([1], [None], TypeError, "stop_ids"),
        ([1], [-1], ValueError, "stop_ids"),
    ],
)
def test_what_is_not_decoded(nano_pair, tokens, stop_ids, error, words):
    with pytest.raises(error, match=words):
        list(decode_stream(tokens, nano_pair[1].tokenizer, stop_ids))
    with pytest.raises(TypeError, match="tokenizer"):
        decode_answer([1], "nano")


def test_nothing_behind_a_stop_token_is_shown(nano_pair):
    tokenizer = nano_pair[1].tokenizer
    ids = tokenizer("one two")["input_ids"]
    consumed = iter([*ids, 2, *ids])
    assert "".join(decode_stream(consumed, tokenizer, stop_ids=(2,))) == "one two"
    assert list(consumed) == ids, "the rest was generated for nothing"
    assert list(decode_stream(iter([]), tokenizer)) == []
