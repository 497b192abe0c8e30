"""How much memory the process may use: what control groups and limits of the process leave of the machine's."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from featx.memory import memory_bytes

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED_V1 = "9223372036854771712\n"  # what version 1 says of a group without a limit


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "4096\n"}, 4096),  # a container that sees itself as the root
        ("0::/\n", {"memory.max": "max\n"}, PHYSICAL),
        ("0::/\n", {}, PHYSICAL),  # the machine's own root has no limit
        ("0::/a/b\n", {"a/b/memory.max": "8192\n", "a/memory.max": "4096\n", "memory.max": "max\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "4096\n", "a/memory.max": "8192\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "max\n"}, PHYSICAL),
        ("0::/a\n", {"a/memory.max": "4096\n", "b/memory.max": "1024\n"}, 4096),  # of others
        ("0::/docker/f00\n", {"memory.max": "4096\n"}, 4096),  # a container told its name outside
        ("0::/a:b c\n", {"a:b c/memory.max": "4096\n"}, 4096),
        ("0::/a (deleted)\n", {"memory.max": "4096\n"}, 4096),
        (
            "4:memory:/a/b\n1:cpu:/\n",
            {"memory/a/b/memory.limit_in_bytes": UNLIMITED_V1, "memory/a/memory.limit_in_bytes": "4096\n"},
            4096,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED_V1}, PHYSICAL),
        ("4:hugetlb,memory:/a\n", {"memory/a/memory.limit_in_bytes": "4096\n"}, 4096),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "4096\n"}, 4096),
        # both at once: the controller is of version 1
        ("4:memory:/a\n0::/b\n", {"memory/a/memory.limit_in_bytes": "4096\n", "unified/b/cgroup.procs": "1\n"}, 4096),
    ],
)
def test_memory_is_the_tightest_limit_of_the_process_s_groups(groups, limits, expected, tmp_path):
    root = files(tmp_path, {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": text for n, text in limits.items()}})
    assert memory_bytes(root) == expected


def test_without_control_groups_memory_is_the_machine_s(tmp_path):
    assert memory_bytes(tmp_path) == PHYSICAL


def test_a_group_may_have_a_name_that_is_no_text(tmp_path):
    root = files(tmp_path, {"proc/self/cgroup": "", "sys/fs/cgroup/memory.max": "4096\n"})
    (root / "proc/self/cgroup").write_bytes(b"0::/\xff\n")
    assert memory_bytes(root) == 4096


def test_a_limit_on_the_data_of_the_process_counts(tmp_path, monkeypatch):
    limits = {resource.RLIMIT_DATA: (8192, resource.RLIM_INFINITY), resource.RLIMIT_AS: (resource.RLIM_INFINITY,) * 2}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    assert memory_bytes(tmp_path) == 8192
