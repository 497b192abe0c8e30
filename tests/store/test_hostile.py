"""Hostile files are refused on opening, in one line and at little cost.

In tests of "sealed" files, identity and seal are valid, so that the objects themselves must be refused.
"""

from __future__ import annotations

import ast
import os
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from forged import (
    good_store,
    header_spans,
    refused,
    seal_of,
    sealed,
    tree_of,
    values_of,
    with_tree,
    with_values,
    written,
)
from helpers import assert_tells

import featx
from featx.errors import StoreError
from featx.store import FeatureStore, hdf5, layout

GOOD = good_store()


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """No test may block or loop."""

    def late(*_: object) -> None:
        raise TimeoutError("this takes too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_forging_without_a_change_gives_the_same_file(tmp_path):
    assert with_tree(GOOD, tree_of(GOOD)) == GOOD == with_values(GOOD, values_of(GOOD))
    seal = seal_of(GOOD)
    assert sealed(GOOD, seal.metadata, seal.structure) == GOOD
    assert len(FeatureStore(written(tmp_path / "a.h5", GOOD))) == 69


# --- files of the HDF5 library


def _virtual(file: h5py.File) -> None:
    virtual = h5py.VirtualLayout((100,), "f4")
    virtual[:] = h5py.VirtualSource("/etc/passwd", "x", (100,))
    file.create_virtual_dataset("virtual", virtual)


def _region(file: h5py.File) -> None:
    file["x"] = np.arange(9)
    file.create_dataset("region", data=file["x"].regionref[2:5], dtype=h5py.regionref_dtype)


def _reference(file: h5py.File) -> None:
    file["x"] = np.arange(9)
    file.create_dataset("reference", data=file["x"].ref, dtype=h5py.ref_dtype)


def _nested(file: h5py.File) -> None:
    group: h5py.Group = file
    for _ in range(1000):
        group = group.create_group("a")


def _loop(file: h5py.File) -> None:
    file.create_group("a")["b"] = file["/"]


def _external(file: h5py.File) -> None:
    file.create_dataset("external", (100,), "u1", external=[("/etc/passwd", 0, 100)])


OF_THE_LIBRARY: dict[str, Callable[[h5py.File], object]] = {
    "nothing": lambda file: None,
    "soft link": lambda file: file.__setitem__("recipe", h5py.SoftLink("/nowhere")),
    "external link": lambda file: file.__setitem__("recipe", h5py.ExternalLink("/etc/passwd", "/")),
    "external storage": _external,
    "virtual dataset": _virtual,
    "lzf": lambda file: file.create_dataset("layers/x", (100, 3), "f4", compression="lzf"),
    "checksummed by fletcher32": lambda file: file.create_dataset("layers/x", (100, 3), "f4", fletcher32=True),
    "strings of variable length": lambda file: file.create_dataset("recipe", data=["{}"], dtype=h5py.string_dtype()),
    "rows of variable length": lambda file: file.create_dataset("x", (3,), h5py.vlen_dtype(np.float32)),
    "object reference": _reference,
    "region reference": _region,
    "compound": lambda file: file.create_dataset("x", data=np.zeros(3, [("a", "i4"), ("b", "S3")])),
    "enumeration": lambda file: file.create_dataset("x", (3,), h5py.enum_dtype({"a": 1})),
    "huge chunked shape": lambda file: file.create_dataset("x", (2**40, 2**20), "f4", chunks=(1, 1024)),
    "no dimension has a size": lambda file: file.create_dataset("x", (0, 0, 0), "f4"),
    "unlimited": lambda file: file.create_dataset("x", (3,), "f4", maxshape=(None,)),
    "attribute of 60 kB": lambda file: file.attrs.__setitem__("x", np.zeros(60_000, np.uint8)),
    "attribute of 1 MB": lambda file: file.attrs.__setitem__("x", np.zeros(10**6, np.uint8)),
    "chunked recipe": lambda file: file.create_dataset("recipe", data=np.array([b"{}"]), chunks=(1,)),
    "1,000 groups in one another": _nested,
    "a group that holds itself": _loop,
}


def test_files_of_the_hdf5_library_are_refused(tmp_path, subtests):
    for name, seal in [
        *((name, "valid") for name in OF_THE_LIBRARY),
        *((name, seal) for name in ("nothing", "huge chunked shape") for seal in ("none", "of another file")),
    ]:
        with subtests.test(name):
            path = tmp_path / "a.h5"
            with h5py.File(path, "w", libver="latest", userblock_size=0 if seal == "none" else layout.PAGE) as file:
                file.attrs.update({"format": np.bytes_("featx-store"), "version": 1})
                OF_THE_LIBRARY[name](file)
            if seal == "none":
                refused(path, "not a featx store")
                continue
            content = path.read_bytes().ljust(3 * layout.PAGE, b"\0")
            root = layout.PAGE + struct.unpack_from("<Q", content, layout.PAGE + 36)[0]
            structure = max(root, layout.FIRST_LAYER + 128)
            valid = sealed(content, layout.FIRST_LAYER + 64, structure)
            refused(
                written(path, valid if seal == "valid" else GOOD[: layout.PAGE] + content[layout.PAGE :]), "not a whole"
            )


# --- objects, superblock and seal


def test_sealed_attributes_other_than_the_two_are_refused(tmp_path, subtests):
    for attributes in [
        {},
        {"format": b"featx-store"},
        {"version": 1, "format": b"featx-store"},
        {"format": b"featx-store", "version": 2},
        {"format": b"another-one", "version": 1},
        {"format": 1, "version": 1},
        {**layout.ATTRIBUTES, "x": 1},
        {**layout.ATTRIBUTES, "x": bytes(60_000)},
        {**layout.ATTRIBUTES, **{f"x{i}": b"y" * 60_000 for i in range(20)}},
    ]:
        with subtests.test(ascii(attributes)):
            refused(written(tmp_path / "a.h5", with_tree(GOOD, tree_of(GOOD), attributes)), "not a whole")


def test_a_changed_sealed_superblock_is_refused(tmp_path, subtests):
    for at, value in [
        *zip((8, 9, 10, 11), (b"\0", b"\1", b"\xff", b"\3"), strict=True),  # version, widths, flags
        *((at, struct.pack("<Q", value)) for at in (12, 20) for value in (48, 2**63)),
        *((28, struct.pack("<Q", value)) for value in (0, 2**40, 2**64 - 1)),
        *((36, struct.pack("<Q", value)) for value in (0, 48, 2**40, 2**63, 2**64 - 1)),  # the root's address
        (0, b"\x89HDG"),
        (44, bytes(4)),
        (48, b"x"),  # behind it
    ]:
        with subtests.test(ascii((at, value))):
            for right in (True, False):
                content, seal = bytearray(GOOD), seal_of(GOOD)
                content[layout.PAGE + at : layout.PAGE + at + len(value)] = value
                if right and at < 44:
                    head = bytes(content[layout.PAGE : layout.PAGE + 44])
                    content[layout.PAGE + 44 : layout.PAGE + 48] = struct.pack("<I", hdf5._lookup3(head))
                if content != GOOD:
                    refused(written(tmp_path / "a.h5", sealed(content, seal.metadata, seal.structure)), "not a whole")


def test_sealed_links_that_lead_elsewhere_are_refused(tmp_path, subtests):
    """Redirect each hard link of the file in turn, also into loops."""
    for target in ["itself", "root", "another", "nowhere", "before", "far"]:
        with subtests.test(ascii(target)):
            content, seal = bytearray(GOOD), seal_of(GOOD)
            spans = header_spans(content, seal.structure)
            addresses = [start - layout.PAGE for start, _ in spans]
            done = 0
            for start, stop in spans:
                for address in addresses:
                    at = content.find(struct.pack("<Q", address), start, stop)
                    if at < 0:
                        continue
                    there = {
                        "itself": start - layout.PAGE,
                        "root": addresses[-1],
                        "another": addresses[0] if address != addresses[0] else addresses[1],
                        "nowhere": 2**64 - 1,
                        "before": 0,
                        "far": 2**62,
                    }[target]
                    changed = bytearray(content)
                    changed[at : at + 8] = struct.pack("<Q", there)
                    changed[stop - 4 : stop] = struct.pack("<I", hdf5._lookup3(bytes(changed[start : stop - 4])))
                    refused(written(tmp_path / "a.h5", sealed(changed, seal.metadata, seal.structure)), "not a whole")
                    done += 1
            assert done == len(spans) - 1  # one link to everything but the root


@pytest.mark.parametrize("field", ["size", "metadata", "structure"])
def test_a_valid_seal_with_other_offsets_is_refused(tmp_path, field):
    for number in (0, 1, 8191, 8192, 2**31, 2**32, 2**62, 10**18 - 1):
        seal = replace(seal_of(GOOD), **{field: number})
        refused(written(tmp_path / "a.h5", seal.to_bytes() + GOOD[layout.PAGE :]), "not a whole")
    for other in (seal_of(GOOD).metadata, seal_of(GOOD).structure, len(GOOD) - 8):  # with the identity of those places
        places = {"metadata": seal_of(GOOD).metadata, "structure": seal_of(GOOD).structure, field: other}
        content = sealed(GOOD, places["metadata"], places["structure"])
        if content != GOOD:
            refused(written(tmp_path / "a.h5", content), "not a whole")


def test_a_seal_in_another_form_is_refused(tmp_path, subtests):
    for number, change in enumerate(
        [
            lambda page: page.replace(b"\n", b"\r\n")[: layout.PAGE],
            lambda page: page.replace(b"size ", b"size +", 1)[: layout.PAGE],
            lambda page: page.replace(b"size ", b"size 0", 1)[: layout.PAGE],
            lambda page: page.replace(b"size ", "size ٣".encode(), 1)[: layout.PAGE],
            lambda page: page.replace(b"size ", b"size " + b"9" * 4000, 1)[: layout.PAGE],
            lambda page: page[:-1] + b"\1",
            lambda page: page.rstrip(b"\0").ljust(layout.PAGE, b"\n"),
            lambda page: page[:40].ljust(layout.PAGE, b"\0"),
        ]
    ):
        with subtests.test(str(number)):
            page = change(GOOD[: layout.PAGE])
            assert len(page) == layout.PAGE
            refused(written(tmp_path / "a.h5", page + GOOD[layout.PAGE :]), "not a")


@pytest.mark.parametrize("version", [0, 999_999_999])
def test_another_version_is_refused_by_its_number(tmp_path, version):
    content = GOOD.replace(b"featx-store 1\n", b"featx-store %d\n" % version, 1)[: len(GOOD)]
    refused(written(tmp_path / "a.h5", content), f"version {version}")


# --- what is no local file


def test_a_file_too_short_for_a_store_is_refused(tmp_path, subtests):
    for size in [0, 1, 4095, 4096, 4097, 8191, 8192, 8193]:
        with subtests.test(ascii(size)):
            refused(written(tmp_path / "a.h5", GOOD[:size]), "not a")
            refused(written(tmp_path / "a.h5", bytes(size)), "not a featx store")


def test_paths_of_no_local_file_are_refused_at_once(monkeypatch, tmp_path, subtests):
    for path in [
        "http://localhost/a.h5",
        "file:///etc/passwd",
        "//localhost/share/a.h5",
        "",
        ".",
        "/",
        "a\0b.h5",
        "x" * 5000,
        "a/" * 3000,
        "\udcff.h5",
        "-",
        "~/a.h5",
        "/dev/null",
        "/dev/zero",
        "/dev/tty",
        "/proc/self/mem",
        "/proc/self/fd",
    ]:
        with subtests.test(ascii(path)):
            monkeypatch.chdir(tmp_path)
            with pytest.raises(StoreError) as caught:
                FeatureStore(path)
            assert_tells(caught.value)
            assert str(caught.value).count("cannot open") <= 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "loop of links", "socket", "forbidden"])
def test_paths_that_are_not_readable_files_are_refused_at_once(tmp_path, kind):
    path = tmp_path / "a.h5"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif kind == "loop of links":
        path.symlink_to("a.h5")
    elif kind == "socket":
        os.mknod(path, 0o600 | __import__("stat").S_IFSOCK)
    else:
        written(path, GOOD).chmod(0)
    user = os.geteuid()
    if kind == "forbidden" and user == 0:
        os.seteuid(65534)  # the superuser may read everything
    try:
        refused(path, "cannot open")
    finally:
        os.seteuid(user)


def test_nothing_in_the_store_can_execute_what_a_file_holds():
    folder = Path(featx.store.__file__).parent
    found = []
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Call):
                called = node.func
                names = [called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")]
                names += [f"{word.arg}=" for word in node.keywords]
            else:
                continue
            found += [f"{file.name}: {name}" for name in names if {*name.split(".")} & FORBIDDEN]
    assert found == [] and len(list(folder.rglob("*.py"))) > 10


FORBIDDEN = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "skops", "ctypes"}
FORBIDDEN |= {"eval", "exec", "__import__", "import_module", "importlib", "allow_pickle=", "loadtxt", "genfromtxt"}
FORBIDDEN |= {"subprocess", "system", "popen", "socket", "urllib.request", "requests", "fsspec", "h5py", "yaml"}
