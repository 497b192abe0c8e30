"""The nodes of a small Ray cluster, and a network whose processes end and whose class no other process can import."""

from __future__ import annotations

from pathlib import Path

import featx

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}  # of the tests' cluster


def deadly(folder: Path, seconds: float = 0.0) -> featx.Backbone:
    """Kills its process at a red picture while the folder has a file "kill", which it removes if it is not "always".

    Each process leaves a file with its number in the folder. A pass takes some seconds.
    """
    import os
    import signal
    import time

    import torch
    from torch import nn

    class Deadly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            (folder / f"process {os.getpid()}").touch()
            is_red = (images[:, 0] > 2) & (images[:, 1] < -2)
            flag = folder / "kill"
            if bool(is_red.all((1, 2)).any()) and flag.exists():
                if flag.read_text() != "always":
                    flag.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            return self.last(self.first(images).mean((2, 3)))

    torch.manual_seed(0)
    return featx.Backbone(Deadly(), preprocessing=featx.Preprocessing(crop=(32, 32), resize=32))
