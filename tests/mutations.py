"""Mutated stores for `fuzz_child.py`: bytes, and with a right identity and seal objects, datasets, values and pieces.

Each function takes a seeded generator and the bytes of a good store, and gives those of another file. What they raise
means that there is no such file.
"""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import numpy as np
from forged import header_spans, pieces_of, seal_of, sealed, tree_of, values_of, with_pieces, with_tree, with_values

from featx.store import hdf5, layout
from featx.store.compression import filters_of
from featx.store.hdf5 import Array, Chunks

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 63, 64, 65, 69, 70, 127, 128, 255, 256, 1000, 4095, 4096, 8191, 8192, 65535, 2**16]
NUMBERS += [2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1]
TYPES = ["<f2", "<f4", "<f8", "<i1", "<i8", "<u1", "<u8", "S1", "S3", "S8", "S16", "S65536", f"S{2**31 - 1}"]
TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "null",
    "true",
    "NaN",
    "1e999",
    "-1",
    "0",
    "9" * 30,
    '"a:avg"',
    "\\ud800",
    "é",
]


def mutated_bytes(rng: random.Random, content: bytearray, start: int, stop: int) -> None:
    """A few bytes between start and stop become others; the length stays."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(start, stop)
        kind = rng.randrange(6)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            at = min(at, stop - width)
            content[at : at + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
        elif kind == 3:  # one part over another
            length = min(rng.choice((4, 8, 16, 64, 200)), stop - start)
            here, there = (rng.randrange(start, stop - length + 1) for _ in range(2))
            content[here : here + length] = content[there : there + length]
        elif kind == 4:
            length = min(rng.choice((1, 8, 64)), stop - at)
            content[at : at + length] = bytes([rng.choice((0, 255))]) * length
        else:  # a small step of a number
            at = min(at, stop - 8)
            (number,) = struct.unpack_from("<Q", content, at)
            struct.pack_into("<Q", content, at, (number + rng.choice((-8, -1, 1, 8, 4096))) % 2**64)


def spliced(rng: random.Random, content: bytes) -> bytes:
    """Longer, shorter, or parts in another order."""
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    return rng.choice(
        (
            content[:a],
            content[:a] + content[b:],
            content[:b] + content[a:],
            content + content[a:b],
            content[:a] + bytes(b - a) + content[b:],
            content[b:] + content[:b],
            content[:a] + rng.randbytes(rng.randrange(1, 100)) + content[a:],
        )
    )


def resealed(rng: random.Random, good: bytes) -> bytes:
    """Other objects, metadata or superblock behind a right identity and seal, the checksums of HDF5 right in part."""
    content, seal = bytearray(good), seal_of(good)
    part = rng.randrange(8)
    if part < 5:
        spans = header_spans(good, seal.structure)
        start, stop = rng.choice(spans)
        mutated_bytes(rng, content, start + rng.choice((0, 10)), stop - 4)
        if rng.random() < 0.8:
            content[stop - 4 : stop] = struct.pack("<I", hdf5._lookup3(bytes(content[start : stop - 4])))
    elif part < 6:
        start = layout.PAGE
        mutated_bytes(rng, content, start, start + 44)
        content[start + 44 : start + 48] = struct.pack("<I", hdf5._lookup3(bytes(content[start : start + 44])))
    elif part < 7:
        mutated_bytes(rng, content, seal.metadata, seal.structure)
    else:
        tail = spliced(rng, bytes(content[seal.structure :]))
        content = content[: seal.structure] + tail
    places = [seal.metadata, seal.structure]
    if rng.random() < 0.05:
        places[rng.randrange(2)] = rng.choice([*NUMBERS, *(seal.structure + 8 * rng.randrange(-50, 50) for _ in "ab")])
    places = [min(place, len(content)) for place in places]
    return sealed(content, *places, seal.version)


def retreed(rng: random.Random, good: bytes) -> bytes:
    """Other datasets, as they would be written."""
    tree = tree_of(good)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice([*tree])
        group, key = (tree, name) if isinstance(tree[name], Array) else (tree[name], rng.choice([*tree[name]] or [""]))
        if not isinstance(group.get(key), Array):
            continue
        array = group[key]
        kind = rng.randrange(10)
        if kind == 0:
            group[key] = replace(array, dtype=rng.choice(TYPES))
        elif kind < 3:
            shape = [*array.shape] or [1]
            shape[rng.randrange(len(shape))] = rng.choice([*NUMBERS, shape[0] + 1, shape[0] - 1]) % 2**64
            group[key] = replace(array, shape=tuple(shape))
        elif kind == 3:
            extra = [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 31, 60)))]
            group[key] = replace(array, shape=rng.choice(((*array.shape, *extra), tuple(extra), (), array.shape[1:])))
        elif kind == 4:
            group[key] = replace(array, offset=rng.choice(NUMBERS) + layout.PAGE)
        elif kind == 5:
            other = rng.choice(
                [node for node in tree.values() if isinstance(node, Array)] + [*tree_of(good)["layers"].values()]
            )
            group[key] = replace(array, offset=other.offset)
        elif kind == 6:
            extents = tuple((rng.choice(NUMBERS) + 4096, rng.choice(NUMBERS) % 2**16) for _ in range(rng.randrange(4)))
            filters = rng.choice((*filters_of("<f4").values(), (), ((rng.randrange(400), "x", (rng.randrange(9),)),)))
            group[key] = replace(array, chunks=Chunks(rng.choice((1, 23, 64, 70, 2**40)), filters, extents))
        elif kind == 7:
            group[rng.choice([key + "2", "é", "a/b", "%41", "x" * 60_000, "\0", "..", *tree])] = group.pop(key)
        elif kind == 8:
            group.pop(key)
        elif array.chunks is not None:
            extents = [*array.chunks.extents]
            at = rng.randrange(len(extents)) if extents else 0
            extents[at : at + 1] = [tuple(rng.choice((n, n + 1, n - 1, rng.choice(NUMBERS))) for n in extents[at])]
            group[key] = replace(array, chunks=replace(array.chunks, extents=tuple(extents)))
        elif group is tree:
            group[key] = rng.choice(({}, {"x": array}))
    attributes = layout.attributes(seal_of(good).version)
    if rng.random() < 0.03:
        attributes[rng.choice(("x", "version"))] = rng.choice((2, b"x", bytes(60_000)))
    return with_tree(good, tree, attributes)


def revalued(rng: random.Random, good: bytes) -> bytes:
    """Other metadata, each dataset in its right place."""
    values = values_of(good)
    if rng.random() < 0.4:
        text = values["recipe"][0].decode()
        for _ in range(rng.choice((1, 1, 2, 5))):
            a = rng.randrange(len(text))
            b = min(len(text), a + rng.choice((0, 0, 1, 1, 5, 20)))
            new = rng.choice([*TOKENS, str(rng.choice(NUMBERS)), text[b : b + 30], "[" * rng.choice((10, 2000))])
            text = text[:a] + new + text[b:]
        values["recipe"] = np.array([text.encode() or b" "])
        return with_values(good, values)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([part for part in values if part != "recipe" and values[part]])
        key = rng.choice([*values[name]])
        array = values[name][key]
        kind = rng.randrange(6)
        if kind == 0 and array.size:
            content = bytearray(array.tobytes())
            mutated_bytes(rng, content, 0, max(8, len(content)))
            values[name][key] = np.frombuffer(bytes(content[: array.nbytes]), array.dtype).reshape(array.shape)
        elif kind == 1:
            values[name][key] = rng.choice((array[1:], array[:0], np.concatenate([array, array[:1]]), array[::-1]))
        elif kind == 2 and array.size and array.dtype.kind in "iu":
            flat = array.reshape(-1).astype(np.uint64)
            flat[rng.randrange(len(flat))] = rng.choice(NUMBERS) % 2**64
            values[name][key] = flat.astype(array.dtype).reshape(array.shape)
        elif kind == 3:
            values[name][key] = (
                array.astype(rng.choice(("<i4", "<f8", "S30", "<u8"))) if array.dtype.kind != "S" else array
            )
        elif kind == 4 and array.dtype.kind == "S" and array.size:
            texts = array.reshape(-1).tolist()
            texts[rng.randrange(len(texts))] = rng.randbytes(rng.randrange(20))
            values[name][key] = np.array(texts, f"S{max(1, *map(len, texts))}")
        else:
            values[name][rng.choice((key, key + "x", "%zz", ""))] = values[name].pop(key)
    return with_values(good, values)


def repieced(rng: random.Random, good: bytes) -> bytes:
    """Other compressed pieces, their checksums right."""
    pieces = pieces_of(good)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice([*pieces])
        i = rng.randrange(len(pieces[name]))
        content = bytearray(pieces[name][i])
        if rng.random() < 0.7:
            mutated_bytes(rng, content, 0, max(8, len(content)))
        pieces[name][i] = bytes(content) if rng.random() < 0.8 else spliced(rng, bytes(content)) or b"x"
    return with_pieces(good, pieces)


def mutation(rng: random.Random, good: bytes, is_archive: bool) -> tuple[str, bytes]:
    """Its kind, and a file."""
    kind = rng.random()
    while True:
        try:
            if kind < 0.1:
                content = bytearray(good)
                mutated_bytes(rng, content, 0, len(content))
                return "bytes", bytes(content)
            if kind < 0.15:
                return "splice", spliced(rng, good)
            if kind < 0.25 and is_archive:
                return "pieces", repieced(rng, good)
            if kind < 0.55:
                return "resealed", resealed(rng, good)
            if kind < 0.8:
                return "tree", retreed(rng, good)
            return "values", revalued(rng, good)
        except (struct.error, ValueError, OverflowError, UnicodeError, IndexError, KeyError, MemoryError):
            continue  # what cannot be written, nobody can send
