"""A store's layers in pieces that share a checksum: read, decompressed, checked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featx.errors import DamageError, StoreError
from featx.store import layout
from featx.store.compression import decompress
from featx.store.contents import Contents


class Damage(NamedTuple):
    """Rows start to stop of a layer whose bytes are not those that were written."""

    layer: str
    start: int
    stop: int


class Blocks:
    """The blocks of a store's layers: `layout.block_rows` rows in each, fewer in a layer's last.

    What is checked are the bytes in the file, in an archive the compressed ones.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def count(self, name: str) -> int:
        return self._contents.checksums[name].shape[0]

    def rows(self, name: str, block: int, check: bool = False) -> np.ndarray:
        """A block's rows.

        Raises
        ------
        DamageError
            With `check`, or compressed: bytes are not those that were written.
        """
        mapped, array = self._contents.mapped, self._contents.layers[name]
        unit = layout.block_rows(array.row_bytes)
        start, stop = block * unit, min((block + 1) * unit, array.shape[0])
        if array.chunks is None:
            at, nbytes = array.offset + start * array.row_bytes, (stop - start) * array.row_bytes
        else:
            at, nbytes = array.chunks.extents[block]
        stored = memoryview(mapped.content)[at : at + nbytes]
        if check and layout.checksum(stored) != mapped.array(self._contents.checksums[name])[block]:
            raise damage_error(self._contents, [Damage(name, start, stop)])
        shape = (stop - start, *array.shape[1:])
        if array.chunks is None:
            return np.frombuffer(stored, array.dtype).reshape(shape)
        itemsize = np.dtype(array.dtype).itemsize
        try:
            content = decompress(bytes(stored), unit * array.row_bytes, itemsize, array.chunks.filters)
        except StoreError:  # a package is missing
            raise
        except ValueError as error:
            raise damage_error(self._contents, [Damage(name, start, stop)]) from error
        return np.frombuffer(content, array.dtype).reshape(unit, *shape[1:])[: stop - start]

    def verify(self) -> None:
        """Read all rows, compressed ones as they are, and compare them with their checksums.

        Raises
        ------
        DamageError
            Rows are damaged; neighbouring blocks are one entry of its `damages`.
        StoreError
            There is something between layers.
        """
        mapped = self._contents.mapped
        found: list[Damage] = []
        for name in self._contents.layers:
            for block in range(self.count(name)):
                try:
                    self.rows(name, block, check=True)
                except DamageError as error:
                    (damage,) = error.damages
                    if found and found[-1].layer == name and found[-1].stop == damage.start:
                        damage = Damage(name, found.pop().start, damage.stop)
                    found.append(damage)
        if found:
            raise damage_error(self._contents, found)
        if not mapped.is_zero(layout.gaps(self._contents.layers.values(), layout.PAGE, mapped.seal.metadata)):
            raise StoreError(f"{mapped.path} is damaged: there is something between its layers; no row is")


def damage_error(contents: Contents, damages: list[Damage]) -> DamageError:
    ids = contents.ids
    said = [
        f"{layer!r} rows {start:,} to {stop - 1:,} ({str(ids[start])!r} to {str(ids[stop - 1])!r})"
        for layer, start, stop in damages[:3]
    ]
    more = f" and {len(damages) - 3:,} more places" if len(damages) > 3 else ""
    return DamageError(
        f"{contents.mapped.path} is damaged in {'; '.join(said)}{more}; extract it again, or restore it from a copy",
        damages,
    )
