"""What tests/scale/test_finetune.py starts twice: the train command, where one process gets a SIGTERM at some sample.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/lib/two_commands.py SAMPLE train ...
"""

import signal
import sys

from minicpmv_ref.__main__ import main
from minicpmv_ref.scale import finetune, machine

at, real = int(sys.argv[1]), finetune.sample_at


def sample_at(index, n, seed):
    if index == at:
        signal.raise_signal(signal.SIGTERM)
    return real(index, n, seed)


finetune.sample_at = sample_at
machine.fast_bfloat16 = lambda device: False  # its rounding differs from batch to batch
sys.exit(main(sys.argv[2:]))
