"""Reads, decompresses and checks the blocks of a store's layers: the rows that share a checksum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featx.errors import DamageError, StoreError
from featx.store import layout
from featx.store.compression import decompress
from featx.store.contents import Contents


class Damage(NamedTuple):
    """Rows `start` to `stop` (exclusive) of a layer do not match their checksums."""

    layer: str
    start: int
    stop: int


class Blocks:
    """The blocks of a store's layers: `layout.block_rows` rows each, fewer in the last one of a layer.

    Checksums are of the bytes in the file; in an archive those are compressed.
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
            The bytes do not match their checksum; raised if `check` is true or the layer is compressed.
        """
        mapped, array = self._contents.mapped, self._contents.layers[name]
        unit = layout.block_rows(array.row_bytes)
        start, stop = block * unit, min((block + 1) * unit, array.shape[0])
        if array.chunks is None:
            offset, nbytes = array.offset + start * array.row_bytes, (stop - start) * array.row_bytes
        else:
            offset, nbytes = array.chunks.extents[block]
        stored = memoryview(mapped.content)[offset : offset + nbytes]
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
        """Compare the bytes of all blocks with their checksums.

        Raises
        ------
        DamageError
            Rows are damaged; adjacent blocks are one entry of its `damages`.
        StoreError
            The bytes between layers are not zero.
        """
        mapped = self._contents.mapped
        damages: list[Damage] = []
        for name in self._contents.layers:
            for block in range(self.count(name)):
                try:
                    self.rows(name, block, check=True)
                except DamageError as error:
                    (damage,) = error.damages
                    if damages and damages[-1].layer == name and damages[-1].stop == damage.start:
                        damage = Damage(name, damages.pop().start, damage.stop)
                    damages.append(damage)
        if damages:
            raise damage_error(self._contents, damages)
        if not mapped.is_zero(layout.gaps(self._contents.layers.values(), layout.PAGE, mapped.seal.metadata)):
            raise StoreError(f"{mapped.path} is damaged between its layers; no row is damaged")


def damage_error(contents: Contents, damages: list[Damage]) -> DamageError:
    ids = contents.ids
    places = [
        f"{layer!r} rows {start:,} to {stop - 1:,} ({str(ids[start])!r} to {str(ids[stop - 1])!r})"
        for layer, start, stop in damages[:3]
    ]
    more = f" and {len(damages) - 3:,} more places" if len(damages) > 3 else ""
    return DamageError(
        f"{contents.mapped.path} is damaged in {'; '.join(places)}{more}; extract it again, or restore it from a copy",
        damages,
    )
