"""How much memory the process may use."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory of the machine, or the smallest limit of the process and its control groups (containers, jobs)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    limits += [limit for limit in own if limit != resource.RLIM_INFINITY]
    for path in _limits(root):
        with suppress(OSError, ValueError):  # no such file, or its content is "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _limits(root: Path) -> Iterator[Path]:
    """Paths of the memory limits of the process's groups and their parents, for both versions of cgroups."""
    with suppress(OSError):  # not Linux
        for line in os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                mount, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            inner = PurePosixPath(group).relative_to("/")
            for folder in (inner, *inner.parents):  # a container may see its own group only, as the root
                yield mount / folder / name
