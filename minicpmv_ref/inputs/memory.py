"""How much memory this process may have: that of the machine, or less in a container or a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Of a control group in Linux, by version: the most that it may have, what it has, and how much of that are read files.
GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
SYSTEM = Path("/")


def system_memory() -> tuple[int, int]:
    """(free, in all), in bytes; what the system would take back from files that it keeps for speed is free."""
    import psutil

    memory = psutil.virtual_memory()
    free, has = memory.available, memory.total
    for most, used in _group_limits():
        free, has = min(free, max(0, most - used)), min(has, most)
    return free, has


def _group_limits() -> Iterator[tuple[int, int]]:
    """(bytes that it may have, bytes it has) of each Linux control group around this process: a container, a job."""
    try:
        lines = (SYSTEM / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # another system
        return
    for line in lines:
        kinds, _, path = line.partition(":")[2].partition(":")
        version = 1 if "memory" in kinds.split(",") else 2
        base = SYSTEM / ("sys/fs/cgroup/memory" if version == 1 else "sys/fs/cgroup")
        # A container may see its own group as the base, under a path from outside.
        inner = base / path.lstrip("/")
        for group in (inner, *inner.parents):
            if limit := _group_limit(group, *GROUP_FILES[version]):
                yield limit


def _group_limit(group: Path, most: str, used: str, cache: str) -> tuple[int, int] | None:
    try:
        limit, now = (int((group / name).read_text()) for name in (most, used))
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit, now - int(rows.get(cache, 0))  # the system takes back what it holds of files for speed
    except (OSError, ValueError):  # no such group, or "max"
        return None
