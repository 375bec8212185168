"""Which test functions take long: the list that `pytest --fast` leaves out."""

import os
from collections import Counter
from pathlib import Path

import pytest


def cpu_seconds() -> float:
    """Of this process and of those that it waited for. Unlike the clock's, they do not grow on a busy machine."""
    return sum(os.times()[:4])


class Recorder:
    """Measures the tests that run. Functions of other files keep their lines in the list."""

    def __init__(self, path: Path, limit: float):
        self.path, self.limit = path, limit
        self.tests, self.own, self.shared = {}, Counter(), Counter()  # items, seconds of a function, of a fixture
        self.inside = 0.0  # seconds in shared fixtures during this test

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        began = cpu_seconds()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                spent = cpu_seconds() - began
                self.shared[fixturedef.argname, fixturedef.baseid] += spent
                self.inside += spent

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        name, began, self.inside = f"{item.path.name}::{item.originalname}", cpu_seconds(), 0.0
        try:
            return (yield)
        finally:
            self.tests.setdefault(name, item)
            self.own[name] += cpu_seconds() - began - self.inside

    def is_slow(self, name: str) -> bool:
        """By itself, or because it would be the one that pays for a slow fixture."""
        item = self.tests[name]
        shared = {
            fixture
            for (fixture, base), seconds in self.shared.items()
            if seconds > self.limit and item.nodeid.startswith(base)
        }
        return self.own[name] > self.limit or bool(shared & {*item.fixturenames})

    def pytest_sessionfinish(self):
        ran = {name.split("::")[0] for name in self.tests}
        there = {path.name for path in self.path.parent.glob("*/test_*.py")}
        old = self.path.read_text(encoding="utf-8").split() if self.path.exists() else []
        kept = [line for line in old if line.split("::")[0] in there - ran]
        found = [name for name in self.tests if self.is_slow(name)]
        self.path.write_text("".join(f"{name}\n" for name in sorted({*kept, *found})), encoding="utf-8")
