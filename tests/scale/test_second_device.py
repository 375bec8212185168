"""Training and inference on a device that is not the CPU, with the CPU's results. A stand-in serves: no GPU is needed.

`lib/second_device.py` says what it can find and what only a real GPU would show.
"""

import json
import subprocess
import sys

import pytest
from places import LIB, ROOT

PATHS = (
    "forward",
    "generation",
    "objectives",
    "bfloat16",
    "workers",
    "checkpointing",
    "lora",
    "preferences",
    "alignment",
    "grades",
    "deployment",
    "own_records",
)
# Of a number, relative to the largest of its tensor. Both devices use the CPU's kernels, but not always the same ones:
# the CPU's own fast linear sums in another order, and Adam's first steps enlarge a difference in small gradients. Mixed
# precision computes in float32 on the stand-in.
TOLERANCE = {"bfloat16": 1e-2}
OTHERWISE = 2e-4


@pytest.fixture(scope="module")
def found():
    env = {"PYTHONPATH": f"{LIB}:{ROOT}", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, LIB / "second_device_paths.py"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_path_is_tried(found):
    assert tuple(found) == PATHS


@pytest.mark.parametrize("path", PATHS)
def test_a_second_device_gives_the_results_of_the_cpu(found, path):
    assert "error" not in found[path], found[path]["error"]
    assert found[path]["equal_texts"]
    assert found[path]["difference"] <= TOLERANCE.get(path, OTHERWISE)


def test_a_step_of_training_waits_for_a_gpu_four_times(found):
    """Twice before the GPU has anything to do in this step, and twice after the backward pass; never in between."""
    waits = {name: count for name, count in found["workers"]["waits"].items() if " in " in name}  # of this package
    # Samples are copied before the GPU has anything to do. No copy after that waits.
    copies = {name for name in waits if name.startswith("copy_ in packing.py")}
    assert copies and {name: count / 3 for name, count in waits.items() if name not in copies} == {  # three steps
        "tolist in batches.py check_batch": 1,  # are the ids the model's own?
        "nonzero in packing.py packed_loss": 1,  # which tokens need the LM head?
        "_local_scalar_dense in parallel.py backward": 1,  # the loss, and
        "_local_scalar_dense in train.py update": 1,  # the norm of its gradient: a step that is not finite is not taken
    }
