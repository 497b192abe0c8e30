"""Opens and reads thousands of mutated stores, in a process of its own: `python fuzz_child.py FOLDER FORM SEED COUNT`.

Prints as JSON how many were opened and how many refused where; leaves with an error that names the mutation if one of
them brought anything else than a FeatxError, took too long or too much memory, or gave an array that is not in the
file. `python fuzz_child.py FOLDER FORM SEED COUNT ONLY` does that one mutation alone. Needs no torch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from forged import good_store
from mutations import mutation

from featx.errors import FeatxError
from featx.store import FeatureStore

HANG_SECONDS = 2.0  # of this process: others use this machine too
MEMORY_BYTES = 2**30  # of address space, beside what the process has


class Hang(BaseException):
    """A mutation took too long."""


def arrays_of(store: FeatureStore) -> Iterator[np.ndarray]:
    """All arrays that are mapped, not copied."""
    for node in store._contents.datasets().values():
        yield from [node] if isinstance(node, np.ndarray) else node.values()
    if not store.is_archive:
        yield from (store[name] for name in store.layers)


def read_everything(path: Path) -> None:
    store = FeatureStore(path)
    content = np.frombuffer(store._contents.mapped.content, np.uint8)
    start = content.__array_interface__["data"][0]
    for array in arrays_of(store):
        first = array.__array_interface__["data"][0]
        assert not array.size or start <= first <= first + array.nbytes <= start + len(content), "outside of the file"
        assert array.nbytes <= len(content)
        array.tobytes()
    n = len(store)
    assert store.X.shape == (n, 1) and store.ids.shape == (n,) and store.digests.shape == (n, 16)
    assert store.y is None or store.y.shape == (n,)
    assert all(values.shape == (n,) for values in store.columns.values()) and store.rows(store.X).tolist() == [
        *range(n)
    ]
    assert json.loads(store.recipe.to_json()) and store.recipe.differences(store.recipe) == [] and repr(store)
    for text in ("".join(store.ids), *map("".join, (*store.failures, *store.nonfinite)), store.recipe.to_json()):
        text.encode()
    assert all(len(group) > 1 for group in store.duplicates) and store.contradictions is not None
    errors = []
    uses: list[Any] = [store.verify]
    for name in store.layers:
        uses.append(lambda name=name: store.take([0, -1], name))
        uses.append(lambda name=name: store.take([0, -1], name, check=True))
        uses.append(lambda name=name: next(iter(store.blocks(name, budget_bytes=4096))))
    for use in uses:
        try:
            use()
        except FeatxError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def main(folder: str, form: str, seed: str, count: str, only: str | None = None) -> None:
    def late(*_: object) -> None:
        raise Hang

    faulthandler.enable()
    signal.signal(signal.SIGPROF, late)
    archived = form not in ("plain", "texts")
    good = good_store(compression=form if archived else None, padded=form != "texts")
    path, progress = (
        Path(folder, f"{form} {seed}.h5"),
        os.open(Path(folder, f"{form} {seed}.at"), os.O_CREAT | os.O_WRONLY),
    )
    path.write_bytes(good)
    read_everything(path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: Counter[str] = Counter()
    for i in range(int(count)) if only is None else [int(only)]:
        os.pwrite(progress, b"%9d" % i, 0)
        kind, content = mutation(random.Random(f"{seed} {i}"), good, archived)
        path.unlink()  # a file cut to nothing and written again goes to the disk at once
        path.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            read_everything(path)
            found[f"{kind}: opened"] += 1
            found[f"{kind}: opened, and another"] += content != good
        except FeatxError as error:
            assert "\n" not in str(error)
            said = str(error)
            where = "seal" if "seal" in said or "should have" in said or "is not a featx" in said else "further in"
            where = "identity" if "its metadata is damaged" in said else where
            found[f"{kind}: refused, {where}"] += 1
        except BaseException as error:
            error.add_note(f"mutation {i} ({kind}) of {form}, seed {seed}")
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    found["KiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_rest
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
