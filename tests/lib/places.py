"""Where things stand: the repository, and the scripts that tests start."""

from pathlib import Path

LIB = Path(__file__).resolve().parent
ROOT = LIB.parent.parent
