"""Sealed objects that the HDF5 library would read, in an otherwise valid store, are refused.

Featx's writer makes them, with one of its functions replaced, so that all addresses and checksums are valid.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from forged import good_store, refused, tree_of, with_tree, written

from featx.store import hdf5

GOOD = good_store()


def _link(kind: int, target: bytes) -> tuple[str, Callable[..., list[bytes]]]:
    """Replace the link of `failures` by one of another kind."""

    def messages(addresses: dict[str, int]) -> list[bytes]:
        head = struct.pack("<BBBBH", 1, 0x19, kind, 1, 8) + b"failures" + struct.pack("<H", len(target)) + target
        return [hdf5._message(hdf5.LINK, head) if b"failures" in one else one for one in original(addresses)]

    original = hdf5._group_messages
    return "_group_messages", messages


def _with(of: str, kind: int, content: bytes | None, instead: bool = False) -> tuple[str, Callable[..., list[bytes]]]:
    """Add a message to the headers of a "group" or "dataset", or replace those of its kind."""

    def messages(*arguments: Any) -> list[bytes]:
        kept = [one for one in original(*arguments) if not instead or one[0] != kind]
        return kept if content is None else [*kept, hdf5._message(kind, content)]

    original = getattr(hdf5, f"_{of}_messages")
    return f"_{of}_messages", messages


def _type(other: bytes) -> tuple[str, Callable[[np.dtype], bytes]]:
    """Replace the type of rows."""
    original = hdf5._type
    return "_type", lambda dtype: other if dtype == np.float32 else original(dtype)


def _growing(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<4B{2 * len(shape)}Q", 2, len(shape), 1, 1, *shape, *shape)


def _shared(kind: int, data: bytes) -> bytes:
    return struct.pack("<BHB", kind, len(data), 2 if kind == hdf5.TYPE else 0) + data


def _longer(kind: int, data: bytes) -> bytes:
    return struct.pack("<BHB", kind, len(data) + 8, 0) + data + bytes(8)


def _with_times(messages: list[bytes]) -> bytes:
    body = b"".join(messages)
    head = b"OHDR" + struct.pack("<BB", 2, 0x22) + bytes(16) + struct.pack("<I", len(body)) + body
    return head + struct.pack("<I", hdf5._lookup3(head))


_f4, _i4, _s1 = (hdf5._type(np.dtype(kind)) for kind in ("<f4", "<i4", "S1"))
_head = struct.Struct("<BBBBI").pack  # class and version, three bytes of bits, size
OF_OBJECTS: dict[str, tuple[str, Any]] = {
    "soft link": _link(1, b"/layers"),
    "external link": _link(64, b"\0/etc/passwd\0/x\0"),
    "user-defined link": _link(100, b"x"),
    "external files": _with("dataset", 7, bytes([1, 0, 0, 0, 1, 0, 1]) + bytes(33)),
    "virtual layout": _with("dataset", 8, bytes([4, 3]) + bytes(12), instead=True),
    "compact layout": _with("dataset", 8, bytes([3, 0, 4, 0]) + bytes(4), instead=True),
    "old layout": _with("dataset", 8, bytes([1, 1, 1]) + bytes(20), instead=True),
    "no layout": _with("dataset", 8, None, instead=True),
    "no type": _with("dataset", 3, None, instead=True),
    "no shape": _with("dataset", 1, None, instead=True),
    "two shapes": _with("dataset", 1, hdf5._space((7,))),
    "a null shape": _with("dataset", 1, bytes([2, 0, 0, 2]), instead=True),
    "a shape that may grow": ("_space", _growing),
    "a fill value": _with("dataset", 5, bytes([3, 0x25, 4]) + bytes(7), instead=True),
    "a filter without chunks": _with("dataset", 11, bytes([2, 1, 1, 0, 0, 0, 0, 0])),
    "an attribute of a dataset": _with("dataset", 12, hdf5._attribute("x", 1)[4:]),
    "an attribute of a group": _with("group", 12, hdf5._attribute("x", 1)[4:]),
    "a comment": _with("dataset", 13, b"hello\0"),
    "a time": _with("dataset", 18, bytes([1, 0, 0, 0]) + bytes(4)),
    "a header that goes on elsewhere": _with("group", 16, bytes(16)),
    "a message of no kind": _with("group", 0, bytes(8)),
    "an unknown message": _with("dataset", 200, bytes(8)),
    "links in a heap": _with("group", 2, struct.pack("<BBQQ", 0, 0, 64, 128), instead=True),
    "a symbol table": _with("group", 17, bytes(16)),
    "a shared message": ("_message", _shared),
    "a longer message": ("_message", _longer),
    "a header with times": ("_header", _with_times),
    "type: text of variable length": _type(_head(0x19, 1, 1, 0, 4) + _s1),
    "type: rows of variable length": _type(_head(0x19, 0, 0, 0, 4) + _f4),
    "type: object reference": _type(_head(0x17, 0, 0, 0, 4)),
    "type: region reference": _type(_head(0x17, 1, 0, 0, 4)),
    "type: compound": _type(_head(0x36, 1, 0, 0, 4) + b"a\0\0" + _f4),
    "type: opaque": _type(_head(0x15, 0, 0, 0, 4)),
    "type: bits": _type(_head(0x14, 0, 0, 0, 4) + struct.pack("<HH", 0, 32)),
    "type: enumeration": _type(_head(0x18, 0, 0, 0, 4) + _i4),
    "type: array": _type(_head(0x3A, 0, 0, 0, 4) + bytes([1, 1, 0, 0, 0]) + _f4),
    "type: time": _type(_head(0x12, 0, 0, 0, 4) + struct.pack("<H", 32)),
    "type: big-endian": _type(_f4[:1] + bytes([_f4[1] | 1]) + _f4[2:]),
    "type: another kind of float": _type(_f4[:-4] + struct.pack("<I", 126)),
    "type: text filled with blanks": _type(_head(0x13, 0x12, 0, 0, 4)),
    "type: of no bytes": _type(_head(0x13, 0x11, 0, 0, 0)),
    "type: of 2 GiB": _type(_head(0x13, 0x11, 0, 0, 2**31)),
    "type: of 4 GiB": _type(_head(0x13, 0x11, 0, 0, 2**32 - 1)),
    "wrong checksums": ("_lookup3", lambda data: 0),
}


def test_sealed_objects_that_no_store_has_are_refused(tmp_path, monkeypatch, subtests):
    for name in OF_OBJECTS:
        with subtests.test(name):
            (function, forged), tree = OF_OBJECTS[name], tree_of(GOOD)
            with monkeypatch.context() as patched:
                patched.setattr(hdf5, function, forged)
                content = with_tree(GOOD, tree)
            assert content != GOOD
            path = written(tmp_path / "a.h5", content)
            refused(path, "not a whole")
            if name in SEEN:  # it is what it is called, and the library would follow it
                with h5py.File(path) as file:
                    assert SEEN[name](file)


SEEN: dict[str, Callable[[h5py.File], bool]] = {
    "soft link": lambda file: type(file.get("failures", getlink=True)) is h5py.SoftLink,
    "external link": lambda file: file.get("failures", getlink=True).filename == "/etc/passwd",
    "an attribute of a dataset": lambda file: file["layers/a:avg"].attrs["x"] == 1,
    "type: object reference": lambda file: file["layers/a:avg"].dtype == h5py.ref_dtype,
    "type: compound": lambda file: file["layers/a:avg"].dtype.names == ("a",),
    "type: big-endian": lambda file: file["layers/a:avg"].dtype == np.dtype(">f4"),
    "a shape that may grow": lambda file: file["layers/a:avg"].maxshape == (69, 3),
}
