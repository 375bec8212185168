"""Two and four processes against one: the same samples, curve and weights; and there really are so many."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from places import LIB, ROOT
from two_processes import SCENARIOS, STEPS, play, short

from minicpmv_ref.scale.loader import StepInputs
from minicpmv_ref.scale.parallel import (
    LossModule,
    Processes,
    all_gather_rows,
    backward,
    full_optimizer_state,
    join_processes,
    unshard,
    wrap_distributed,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = LIB / "two_processes.py"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# --multi_gpu is the option that starts torchrun; it takes CPUs, too.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
TOGETHER = ["first half", "micro-batches", "contrast", "text", "first half, shard", "second half, shard"]
IN_FOUR = {"first half": "first half", "four, shard": "first half, frozen"}  # and what one process plays
NUMBERS = {
    "gradient": 1e-5,
    "loss": 1e-5,
    "tokens": 0,
    "views": 0,
    "weights": 1e-6,
    "way": 1e-4,
}  # how equal


HELLO = """
import json, sys
from pathlib import Path
from minicpmv_ref.scale.parallel import join_processes
with join_processes() as processes:
    told = {"rank": [processes.rank, processes.size], "processes": processes.all_reduce_sum(1)}
Path(sys.argv[1], f"{processes.rank}.json").write_text(json.dumps(told))
"""


def launch(command: list[str], script: Path, folder: Path, *scenarios: str, processes: int = 2) -> list[dict]:
    """Start a script in several processes; what each of them wrote."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", *command, str(script), str(folder), *scenarios],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def one(folder):
    """What one process does, by scenario."""
    done = {}

    def alone(name: str) -> dict:
        if name not in done:
            done[name] = play(name, Processes(), folder)
        return done[name]

    return alone


@pytest.fixture(scope="module")
def two(folder, one):
    """What two processes do; their second half goes on from the first half of one process."""
    one("first half, frozen")
    shutil.copy(folder / "first half, frozen.pt", folder / "first half, shard.pt")
    return launch(
        TORCHRUN, SCRIPT, folder, "second half, shard", *(name for name in TOGETHER if name != "second half, shard")
    )


def same(told: dict, expected: dict, steps: slice = slice(None)):
    for name, close in NUMBERS.items():
        want = expected[name][steps] if isinstance(expected[name], list) else expected[name]
        assert told[name] == pytest.approx(want, rel=close), name


# ---- two processes


def test_there_really_are_two(two):
    assert [told["rank"] for told in two] == [[0, 2], [1, 2]]
    assert [told["processes"] for told in two] == [[2.0], [2.0]]


def test_they_listen_on_the_loopback_device_only(two):
    for told in two:
        assert set(told["listening"]) <= {"0100007F", "00000000000000000000000001000000"}
    if sys.platform == "linux":
        assert two[0]["listening"]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What four processes do that meet at a file."""
    command = ["torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        return launch(
            [*command, "--nproc-per-node", "4"], SCRIPT, tmp_path_factory.mktemp("four"), *IN_FOUR, processes=4
        )


def test_all_ports_are_on_the_loopback_device_if_they_meet_at_a_file(four):
    """Those of torchrun, too."""
    if sys.platform != "linux":
        pytest.skip("asks /proc who listens where")
    for told in four:
        assert told["processes"] == [4.0] and told["torchrun"] == []
        assert told["listening"] and set(told["listening"]) == {"0100007F"}


@pytest.mark.parametrize("name", IN_FOUR)
def test_four_processes_have_the_curve_of_one(four, one, name):
    assert sorted(number for told in four for number in told[name]["seen"]) == list(range(2 * 5))
    for told in four:
        same(told[name], one(IN_FOUR[name]))


@pytest.mark.parametrize("port", [None, "x", "0", "65536"])
def test_a_port_that_cannot_be(port, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_PORT", port) if port else monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="MASTER_PORT must be in the environment"), join_processes():
        pass


@pytest.mark.parametrize("name", TOGETHER)
def test_each_sample_is_seen_once(two, name):
    stage, options = short(SCENARIOS[name][0]), SCENARIOS[name][1]
    mine, yours = (told[name]["seen"] for told in two)
    first, last = options.get("done", 0) * stage.batch, options.get("until", STEPS) * stage.batch
    assert sorted(mine + yours) == list(range(first, last))
    assert 0 <= len(mine) - len(yours) <= STEPS


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("first half", "first half"),
        ("micro-batches", "first half"),
        ("contrast", "contrast"),
        ("text", "text"),
        ("first half, shard", "first half, frozen"),
    ],
)
def test_the_curve_is_that_of_one_process(two, one, name, alone):
    for told in two:
        same(told[name], one(alone))


def test_one_process_goes_on_after_two(two, one, folder):
    assert (folder / "first half.pt").is_file()
    first = two[0]["first half"]
    second, everything = one("second half"), one("all")
    assert first["loss"] + second["loss"] == pytest.approx(everything["loss"], rel=1e-5)
    assert second["seen"] == everything["seen"][-len(second["seen"]) :]
    assert [second[name] for name in ("weights", "way")] == pytest.approx([everything["weights"], everything["way"]])


def test_two_sharded_processes_go_on_after_one(two, one):
    told, everything = two[0]["second half, shard"], one("all, frozen")
    assert told["loss"] == pytest.approx(everything["loss"][2:], rel=1e-5)
    assert [told[name] for name in ("weights", "way")] == pytest.approx([everything["weights"], everything["way"]])


def test_one_process_goes_on_after_two_that_were_sharded(two, one, folder):
    one("first half, frozen")  # whose file is replaced
    shutil.copy(folder / "first half, shard.pt", folder / "first half, frozen.pt")
    second, everything = one("second half, frozen"), one("all, frozen")
    assert second["loss"] == pytest.approx(everything["loss"][2:], rel=1e-5)
    assert second["weights"] == pytest.approx(everything["weights"])


def test_accelerate_starts_two(tmp_path):
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    (tmp_path / "hello.py").write_text(HELLO)
    told = launch(ACCELERATE, tmp_path / "hello.py", tmp_path)
    assert told == [{"rank": [rank, 2], "processes": [2.0]} for rank in range(2)]


# ---- one process


def test_an_ordinary_process_is_the_only_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_processes() as processes:
        assert processes == Processes(0, 1) and not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process
    with join_processes() as processes:
        assert processes == Processes()
    assert Processes().all_reduce_sum(1, 2.5) == [1.0, 2.5]
    assert list(Processes().share([3, 1, 2])) == [3, 1, 2]


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
    ],
)
def test_an_environment_that_cannot_be(environment, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"four numbers: \{'RANK': None|rank 2 of 2"), join_processes():
        pass


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_the_batch(size):
    batch = list(range(100, 107))
    shares = [Processes(rank, size).share(batch) for rank in range(size)]
    assert sorted(number for share in shares for number in share) == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_samples():
    with pytest.raises(ValueError, match="a batch of 2 is too small for 3 processes"):
        Processes(0, 3).share([1, 2])


class Line(torch.nn.Module):
    """loss = mean of w * x over judged numbers; a sample is a list of them, and so prepared."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, samples):
        numbers = torch.tensor([x for sample in samples for x in sample])
        loss = (self.w * numbers).mean() if len(numbers) else None
        return loss, 10 * len(samples), len(samples), len(numbers)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_every_supervised_token_counts_the_same(micro_batches):
    """The mean of the micro-batches' means would be another number."""
    module, samples = Line(), [[1.0], [2.0, 3.0, 4.0], [10.0]]
    parts = [samples[first::micro_batches] for first in range(micro_batches)]
    assert backward(module, parts, Processes()) == (pytest.approx(8.0), 30, 3)
    assert module.w.grad.item() == pytest.approx(4.0)
    module.w.grad = None  # a micro-batch in which nothing is supervised adds nothing
    assert backward(module, [*parts, [[]]], Processes())[0] == pytest.approx(8.0)
    assert module.w.grad.item() == pytest.approx(4.0)
    with pytest.raises(ValueError, match="the samples of one process"):
        backward(module, [[[]], *parts], Processes(0, 2))


def test_micro_batches_that_cannot_be():
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"micro_batches must be from 1 to the 2 samples .*, got {count}"):
            StepInputs(None, None, 5, Processes(1, 2), count)  # two of five samples
    with pytest.raises(ValueError, match="there are no supervised tokens"):
        backward(Line(), [[[]]], Processes())


def test_one_process_wraps_and_gathers_nothing():
    module = LossModule(torch.nn.Linear(2, 2), SimpleNamespace(loss=lambda prepared: prepared * 2))
    assert wrap_distributed(module, Processes()) is module and module(3) == 6
    assert unshard(module) is module
    x, y, keys = all_gather_rows(*torch.ones(2, 3, 4), keys="abc")
    assert x.shape == y.shape == (3, 4) and keys == ["a", "b", "c"]
    optimizer = torch.optim.AdamW(module.parameters())
    assert full_optimizer_state(module, optimizer) == {} and not optimizer.state
    with pytest.raises(ValueError, match="sharding needs processes"):
        wrap_distributed(module, Processes(), shard=True)
