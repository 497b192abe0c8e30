"""What a store keeps of each image beside its rows, as one record: `images` fills it, `store` writes and reads it.

FORMAT.md gives the meaning of each field.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CAMERA_BYTES = 64
IMAGE_STATISTICS = np.dtype(
    [
        ("hash", "<u8"),
        ("mirror_hash", "<u8"),
        ("height", "<i8"),
        ("width", "<i8"),
        ("file_bytes", "<i8"),
        ("jpeg_quality", "<f4"),
        ("brightness", "<f4"),
        ("contrast", "<f4"),
        ("sharpness", "<f4"),
        ("dark", "<f4"),
        ("bright", "<f4"),
        ("taken", "<i8"),
        ("camera", f"S{CAMERA_BYTES}"),
    ]
)


def joined(records: Mapping[int, bytes], positions: np.ndarray) -> np.ndarray:
    """The records of some images, (m,) of IMAGE_STATISTICS.

    Parameters
    ----------
    records : {position of an image: bytes of its record}
    positions : (m,) int
    """
    return np.frombuffer(b"".join(records[i] for i in positions.tolist()), IMAGE_STATISTICS)
