"""Generation: cached equals uncached, greedy equals transformers, samples follow softmax, text comes in whole."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import VERSIONS, ask, picture, several, tiny_model
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.model import decode_stream

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
    assert whole == processor.tokenizer.decode(ids, skip_special_tokens=True)


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
        assert "".join(decode_stream(iter(ids), tokenizer)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_nothing_behind_a_stop_token_is_shown(nano_pair):
    tokenizer = nano_pair[1].tokenizer
    ids = tokenizer("one two")["input_ids"]
    consumed = iter([*ids, 2, *ids])
    assert "".join(decode_stream(consumed, tokenizer, stop_ids=(2,))) == "one two"
    assert list(consumed) == ids, "the rest was generated for nothing"
    assert list(decode_stream(iter([]), tokenizer)) == []
