"""What the pages' examples work on: 120 photos of textile, copied into the page's own folder, and a store of them."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from pathlib import Path

import conformal_clip_data
from IPython import get_ipython

import featx

N = {"nominal": 60, "local": 30, "global": 30}
for _name in ("FORCE_COLOR", "CLICOLOR_FORCE"):  # set by the kernel; commands would draw their progress bars
    os.environ.pop(_name, None)

os.environ["COLUMNS"] = "100"
LAYERS = ["blocks.2", "blocks.5", "penultimate"]


def bash(line: str, cell: str) -> None:
    """`%%bash` whose output comes whole: IPython's comes in pieces of 100 characters, which the site puts on lines."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", cell], stdout=-1, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="")
    done.check_returncode()


if get_ipython() is not None:  # in a page
    get_ipython().register_magic_function(bash, "cell")


def photos(folder: str = "photos") -> None:
    """A folder of class folders; `new` has three more photos."""
    for kind, n in N.items():
        paths = sorted((conformal_clip_data.textile_simulated_root() / kind).glob("*.jpg"))
        for place, chosen in ((Path(folder) / kind, paths[:n]), (Path("new"), paths[-1:])):
            place.mkdir(parents=True, exist_ok=True)
            for path in chosen:
                shutil.copy(path, place / (path.name if place.name == kind else f"{kind}.jpg"))


def manifest() -> None:
    """`photos.csv`: path, label, loom (ten in each class) and split."""
    photos()
    with open("photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "loom", "split"])
        for kind in N:
            for i, path in enumerate(sorted(Path("photos", kind).glob("*.jpg"))):
                writer.writerow([path, kind, f"loom {i % 10}", "test" if i % 4 == 3 else "train"])


def store() -> None:
    """`photos.h5`, from the folder where the build made it; and the photos."""
    photos()
    shutil.copy(os.environ["FEATX_EXAMPLES"] + "/photos.h5", "photos.h5")


if __name__ == "__main__":  # once for all pages, by conf.py
    photos()
    featx.extract("photos", "photos.h5", "bundled:efficientnet_lite0", LAYERS, progress=False)
