"""Ctrl-C and SIGTERM: a training that is asked to stop ends its step first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Stopped(KeyboardInterrupt):
    """A training was asked to stop, and has written a training checkpoint.

    Args:
        number: of the signal: SIGINT (Ctrl-C) or SIGTERM.
        step: steps that are done.
        path: of the training checkpoint.
    """

    def __init__(self, number: int, step: int, path: Path):
        super().__init__(f"stopped after step {step}; everything is saved in {path}")
        self.code = 128 + number  # the exit code that shells expect: 130 or 143


@contextmanager
def wait_for_step() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of stopping, so that a step can end first. A second one stops at once.

    Yields:
        A list that the numbers of caught signals are put into. Look at it between two steps.

    Example:
        >>> with wait_for_step() as caught:
        ...     signal.raise_signal(signal.SIGINT)
        ...     caught
        [2]
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield caught
        return

    def catch(number, frame):
        caught.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
