"""How fast is a DPO step? Beside TRL's DPOTrainer, at the same reference policy.

    PYTHONPATH=folder python benchmarks/dpo.py --threads 2     after pip install --target folder trl datasets accelerate

A Llama of width 256, 4 layers, vocabulary 4096, random weights; 4 pairs, answers of 48 to 96 tokens, all supervised.
Prompt 64 is a question, prompt 704 an image of ten views (640 visual tokens) and a question. TRL takes text only here,
so both get text. A step is loss, backward, clipping and AdamW, without TRL's loop around it, in float32.
online: a frozen copy scores the pairs in every step. precomputed: once before training, not timed.
TRL also computes what it logs (entropy, mean logits, accuracy), and that cannot be turned off.
Log-probabilities, loss and gradient are asserted equal first. Gradient checkpointing, TRL's default, is off.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import sys
import tempfile
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import gemm_rate, measure, speedup

from experiments._fair import assert_same_training
from minicpmv_ref.config import nano
from minicpmv_ref.counts import Workload, flops
from minicpmv_ref.learn.dpo import Prepared, dpo_loss, pair_batch, pair_logps
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor

PAIRS, VOCAB, BETA = 4, 4096, 0.1
LLM = replace(nano.llm, vocab_size=VOCAB, intermediate_size=704, num_key_value_heads=4, tie_word_embeddings=False)


def draw_pairs(prompt: int, rng: random.Random) -> list[dict]:
    def tokens(n):
        return [rng.randrange(VOCAB) for _ in range(n)]

    answers = (tokens(rng.randint(48, 96)) for _ in range(2 * PAIRS))
    return [dict(prompt_ids=tokens(prompt), chosen_ids=next(answers), rejected_ids=next(answers)) for _ in range(PAIRS)]


def trl_trainer(llm, reference, pairs: list[dict], folder: str):
    import pyarrow
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        folder,
        per_device_train_batch_size=PAIRS,
        beta=BETA,
        gradient_checkpointing=False,
        bf16=False,
        max_length=None,
        use_cpu=True,
        report_to="none",
    )
    # It insists on text. The pairs that are timed are made of tokens, and go straight to its collator.
    text = pyarrow.Table.from_pylist([dict(prompt="Which?", chosen="This.", rejected="That.")])
    tokenizer = Processor.from_pretrained("nano").tokenizer
    trainer = DPOTrainer(
        llm, reference, config, train_dataset=Dataset(text, fingerprint="text"), processing_class=tokenizer
    )
    return trainer, trainer.data_collator(pairs)


def candidates(model: MiniCPMV, pairs: list[dict], folder: str) -> dict:
    """name -> (function that computes the loss, the language model that learns)"""
    empty = torch.zeros(0, 2, dtype=torch.long), [], torch.zeros(0, nano.resampler.num_queries, LLM.hidden_size)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = pair_batch([Prepared(*(torch.tensor(pair[name]) for name in names), *empty) for pair in pairs])
    frozen = copy.deepcopy(model)  # a reference that differs from the policy, or every loss would be log 2
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in frozen.llm.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
        known = pair_logps(frozen, batch).sum(dim=2)

    def ours_online():
        with torch.no_grad():
            reference = pair_logps(frozen, batch).sum(dim=2)
        return dpo_loss(*pair_logps(model, batch).sum(dim=2), *reference, BETA)[0]

    def ours_precomputed():
        return dpo_loss(*pair_logps(model, batch).sum(dim=2), *known, BETA)[0]

    llm = copy.deepcopy(model.llm)
    trainer, inputs = trl_trainer(llm, copy.deepcopy(frozen.llm), pairs, folder)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, inputs)
    with_reference = inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    check_tokens(model, llm, batch, inputs)

    def trl_online():
        trainer.precompute_ref_logps = False
        return trainer.compute_loss(llm, inputs)

    def trl_precomputed():
        trainer.precompute_ref_logps = True
        return trainer.compute_loss(llm, with_reference)

    return {
        "TRL, online": (trl_online, llm),
        "ours, online": (ours_online, model.llm),
        "TRL, precomputed": (trl_precomputed, llm),
        "ours, precomputed": (ours_precomputed, model.llm),
    }


def check_tokens(model, llm, batch, inputs) -> None:
    """Every token's log-probability, because sums hide errors."""
    judged = inputs["completion_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~judged, -100)
    with torch.no_grad():
        out = llm(inputs["input_ids"], inputs["attention_mask"], labels=labels, fused_lm_head=True, use_cache=False)
        theirs = out.log_probs[judged[:, 1:]]
        ours = pair_logps(model, batch)[batch.labels != -100]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def check(calls: dict) -> None:
    found = {}
    for name, (loss_of, llm) in calls.items():
        llm.zero_grad()
        loss = loss_of()
        loss.backward()
        found[name] = loss.item(), torch.cat([p.grad.flatten() for p in llm.parameters()])
    assert_same_training(found, loss_limit=2e-5)


def step_flops(model: MiniCPMV, pairs: list[dict]) -> dict[str, int]:
    """FLOPs of our step: each pair is one row, and only answers have logits."""
    rows = [sum(map(len, pair.values())) for pair in pairs]
    answers = sum(rows) - sum(len(pair["prompt_ids"]) for pair in pairs)
    work = Workload(sum(rows), answers, sum(row**2 for row in rows))
    learning, frozen = flops(model.config, work, ["llm"]), flops(model.config, work, [])
    return {"online": learning + frozen, "precomputed": learning}


def step(loss_of, llm, optimizer) -> None:
    optimizer.zero_grad()
    loss_of().backward()
    torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
    optimizer.step()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    torch.set_num_threads(args.threads)
    rate = gemm_rate(torch.float32)
    for prompt in (64, 704):
        model, pairs = MiniCPMV.seeded(replace(nano, llm=LLM)).train(), draw_pairs(prompt, random.Random(args.seed))
        with tempfile.TemporaryDirectory() as folder:
            calls = candidates(model, pairs, folder)
            check(calls)
            # A learning rate of 0 does all the work of a step and changes nothing: every round is the same.
            steps = {
                name: partial(step, loss_of, llm, torch.optim.AdamW(llm.parameters(), lr=0.0))
                for name, (loss_of, llm) in calls.items()
            }
            found = {"online": {}, "precomputed": {}}
            for threads, suffix in ((args.threads, ""), (1, ", one thread")):
                torch.set_num_threads(threads)
                measure(steps, 1)  # warm up
                wall, cpu = measure(steps, args.rounds)
                for kind, row in found.items():
                    theirs, own = f"TRL, {kind}", f"ours, {kind}"
                    row |= {f"TRL{suffix}": median(wall[theirs]), f"ours{suffix}": median(wall[own])}
                    row |= {f"wall{suffix}": speedup(wall[theirs], wall[own])}
                    row |= {f"CPU{suffix}": speedup(cpu[theirs], cpu[own])}
        for kind, count in step_flops(model, pairs).items():
            found[kind]["roofline"] = count / found[kind]["ours"] / rate
        rows += [{"prompt": prompt, "reference": kind, **row} for kind, row in found.items()]
        print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
    report("dpo", args, rows, trl=version("trl"), dtype="float32", unit="milliseconds")


if __name__ == "__main__":
    main()
