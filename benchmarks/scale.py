"""What do a million, a hundred million and a billion images cost? Bytes, hours, machines, and what limits them.

    python benchmarks/scale.py [--images 1e6 1e8 1e9] [--hours 24] [--set cores=32 gpus=8 ...] [--measure]

n images of `image_bytes`, a machine with g GPUs (or none) and c cores, rows of d numbers:

    read    = network / image_bytes                       images/s
    decode  = c * decode_per_core
    forward = g * forward, or `forward` of the whole CPU without GPUs
    write   = disk_write / row_bytes,    row_bytes = itemsize * d + metadata
    rate    = min(read, decode, forward, write) with GPUs; without, decoding and forward share the cores:
              min(read, write, 1 / (1 / decode + 1 / forward))
    hours   = n / rate / 3600,    store = n * row_bytes,    machines = hours / deadline, rounded up
    fit     = passes * n d * max(itemsize / disk_read, 4 k / flops)      seconds of a linear probe of k classes

The defaults of `Constants` say which of them were measured and which are assumed; --set replaces them. --measure
measures decoding, forward pass and metadata on this CPU with generated photos, and compares the formula with a run.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

WIDTHS = {"efficientnet_lite0": 1280, "resnet50": 2048, "vit_b_16": 768}
# images/s of one GPU, bfloat16: assumed, of no measurement of featx; benchmarks/gpu.py measures them
GPU_FORWARD = {"efficientnet_lite0": 5000.0, "resnet50": 2500.0, "vit_b_16": 1500.0}


@dataclass(frozen=True)
class Constants:
    """Measured ones are of benchmarks/README.md: 2 cores of an AMD EPYC with AVX512-BF16, photos of 500 x 375."""

    image_bytes: float = 100e3  # assumed
    decode_per_core: float = 398.0  # images/s, measured: 796 on 2 cores
    metadata: float = 139.0  # bytes of an image beside its row: id, key, digest, statistics; measured, short ids
    itemsize: int = 4  # float32
    cores: int = 16  # of a machine; assumed
    gpus: int = 1  # of a machine; assumed
    network: float = 1.25e9  # bytes/s, 10 Gbit/s; assumed
    disk_write: float = 0.78e9  # bytes/s, measured: 1.6 GB in 2.04 s, with fsync and checksums
    disk_read: float = 2e9  # bytes/s where the page cache does not hold the store; assumed
    flops: float = 400e9  # of a fit's products, measured on 2 cores
    passes: int = 50  # of a linear probe over one layer; assumed
    classes: int = 1000


@dataclass(frozen=True)
class Cost:
    """Of one machine, unless it says otherwise."""

    rate: float  # images/s
    hours: float
    bottleneck: str
    source_bytes: float
    store_bytes: float
    fit_hours: float

    def machines(self, deadline_hours: float) -> int:
        return math.ceil(self.hours / deadline_hours)


def cost(n: float, width: int, forward: float, constants: Constants) -> Cost:
    """By the formulae above; `forward` is images/s of a GPU, or of the CPU where there are no GPUs."""
    c = constants
    row_bytes = c.itemsize * width + c.metadata
    rates = {"network": c.network / c.image_bytes, "disk": c.disk_write / row_bytes}
    decode = c.cores * c.decode_per_core
    if c.gpus:
        rates |= {"decoding": decode, "GPUs": c.gpus * forward}
    else:
        rates["CPU"] = 1 / (1 / decode + 1 / forward)
    bottleneck = min(rates, key=rates.__getitem__)
    hours = n / rates[bottleneck] / 3600
    a_pass = n * width * max(c.itemsize / c.disk_read, 4 * c.classes / c.flops)
    return Cost(rates[bottleneck], hours, bottleneck, n * c.image_bytes, n * row_bytes, c.passes * a_pass / 3600)


def measured(backbone: str, n: int, folder: Path, constants: Constants) -> tuple[Constants, float, dict[str, float]]:
    """Constants of this CPU, images/s of the forward pass, and what a run of n images took: "rate", "bytes".

    Photos are generated, and decoding and forward pass are timed apart from the run.
    """
    import extract
    from gpu import generated_photos

    import featx

    photos = generated_photos(folder / "photos", min(64, n))
    extract.set_up(argparse.Namespace(images=photos, n=n, backbone=backbone), folder)
    cores = len(os.sched_getaffinity(0))
    files = sorted((folder / "images").iterdir())
    decode = extract.decoding(backbone, folder)["steady"]
    forward = extract.forward(backbone, folder, "float32", "eager", min(n, 32))["steady"]
    settings: dict[str, Any] = {"progress": False, "precision": "float32", "engine": "eager", "batch_size": min(n, 32)}
    halves, seconds = [], 0.0
    for m in (n // 2, n):  # the first one warms
        start = time.perf_counter()
        halves.append(featx.extract(files[:m], folder / f"{m}.h5", backbone, **settings))
        seconds = time.perf_counter() - start
    sizes = [store.path.stat().st_size for store in halves]
    width = halves[1]["penultimate"].shape[1]
    metadata = (sizes[1] - sizes[0]) / (n - n // 2) - constants.itemsize * width
    found = replace(
        constants,
        image_bytes=sum(file.stat().st_size for file in files) / n,
        decode_per_core=decode / cores,
        metadata=metadata,
        cores=cores,
        gpus=0,
    )
    return found, forward, {"rate": n / seconds, "bytes": float(sizes[1]), "width": width}


def table(images: list[float], forward: Mapping[str, float], constants: Constants, deadline_hours: float) -> str:
    head = ("backbone", "images", "source, TB", "store, TB", "images/s", "hours", "limited by",
            f"machines for {deadline_hours:g} h", "linear probe, hours")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for backbone, width in WIDTHS.items():
        for n in images:
            it = cost(n, width, forward[backbone], constants)
            values = (
                backbone, f"{n:,.0f}", f"{it.source_bytes / 1e12:,.3g}", f"{it.store_bytes / 1e12:,.3g}",
                f"{it.rate:,.0f}", f"{it.hours:,.3g}", it.bottleneck, f"{it.machines(deadline_hours):,}",
                f"{it.fit_hours:,.2g}",
            )  # fmt: skip
            lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=float, default=[1e6, 1e8, 1e9])
    parser.add_argument("--hours", type=float, default=24, help="until the extraction is to be done")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="constants, or a backbone's images/s"
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--run", type=int, default=128, help="number of photos of --measure")
    options = parser.parse_args()
    given = {name: float(value) for name, _, value in (each.partition("=") for each in options.set)}
    kinds = {field.name: type(field.default) for field in fields(Constants)}
    if unknown := given.keys() - kinds.keys() - GPU_FORWARD.keys():
        parser.error(f"no constant {', '.join(sorted(unknown))}; there are {', '.join([*kinds, *GPU_FORWARD])}")
    constants = Constants(**{name: kinds[name](value) for name, value in given.items() if name in kinds})
    if options.measure:
        with tempfile.TemporaryDirectory() as scratch:
            backbone = "bundled:efficientnet_lite0"
            found, forward, run = measured(backbone, options.run, Path(scratch), constants)
            expected = cost(options.run, int(run["width"]), forward, found)
            print(found)
            print(f"{backbone}: {run['rate']:.1f} images/s, by the formula {expected.rate:.1f}; "
                  f"{run['bytes']:,.0f} bytes, by the formula {expected.store_bytes:,.0f}")  # fmt: skip
        return
    forward = {name: given.get(name, rate) for name, rate in GPU_FORWARD.items()}
    print(table(options.images, forward, constants, options.hours))


if __name__ == "__main__":
    main()
