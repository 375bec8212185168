"""Ctrl-C, SIGTERM and a closed terminal: a training that is asked to stop ends its step first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Stopped(KeyboardInterrupt):
    """A training was asked to stop, and has written a training checkpoint.

    Args:
        number: of the signal: SIGINT (Ctrl-C), SIGTERM or SIGHUP.
        step: steps that are done.
        path: of the training checkpoint.
    """

    def __init__(self, number: int, step: int, path: Path):
        super().__init__(f"stopped after step {step}; everything is saved in {path}")
        self.code = 128 + number  # the exit code that shells expect: 130, 143 or 129


@contextmanager
def wait_for_step() -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and SIGHUP instead of stopping, so that a step can end first.

    A second one stops at once. But SIGHUP, of a terminal that closes or a connection that ends, may come twice by
    itself. Where it is ignored (nohup), it stays so.

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

    hangup = getattr(signal, "SIGHUP", None)  # Windows has none

    def catch(number, frame):
        caught.append(number)
        if number != hangup:
            signal.signal(number, before[number])

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        before[hangup] = signal.getsignal(hangup) or signal.SIG_DFL
    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
