"""Mono- and polycrystalline solar cells (elpv): what helps a model of one kind on the other.

    pip install elpv-dataset
    python benchmarks/adapt.py [--layer penultimate] [--scoring accuracy balanced_accuracy]

The package's 2,624 pictures (research licence) have a probability of a defect, four classes here. Features are
EfficientNet-Lite0's. Each direction is a `featx.transfer.adapt`; `--json FILE` adds a line for each to a file.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path

import elpv_dataset
from solve import header

import featx
from featx.display import console
from featx.report import adaptation_json, adaptation_table
from featx.transfer import adapt

NAMES = {"0": "intact", "0.3": "perhaps", "0.7": "likely", "1": "defective"}


def stores(folder: Path, layer: str) -> list[featx.FeatureStore]:
    """A store of each kind of cell."""
    root = Path(elpv_dataset.__file__).parent / "data"
    cells = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
    made = []
    for kind in ("mono", "poly"):
        with open(folder / f"{kind}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            for name, probability, kind_of_cell in cells:
                if kind_of_cell == kind:
                    writer.writerow([root / name, NAMES[f"{round(float(probability), 1):g}"]])
        made.append(
            featx.extract(
                folder / f"{kind}.csv", folder / f"{kind}.h5", "bundled:efficientnet_lite0", layer, progress=False
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="penultimate")
    parser.add_argument("--scoring", nargs="+", default=["accuracy", "balanced_accuracy"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(header())
    with tempfile.TemporaryDirectory() as folder:
        mono, poly = stores(Path(folder), arguments.layer)
        for scoring in arguments.scoring:
            for source, target in ((mono, poly), (poly, mono)):
                start = time.perf_counter()
                adaptation = adapt(source, target, scoring=scoring, progress=False)
                seconds = time.perf_counter() - start
                console(width=140).print(adaptation_table(adaptation))
                print(f"{seconds:.0f} s\n", flush=True)
                if arguments.json is not None:
                    line = {"seconds": seconds, **json.loads(adaptation_json(adaptation))}
                    with open(arguments.json, "a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
