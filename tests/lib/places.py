"""Where things stand: the repository, the outputs of the released code, and the scripts that tests start."""

from pathlib import Path

LIB = Path(__file__).resolve().parent
GOLDEN = LIB.parent / "golden"
ROOT = LIB.parent.parent
