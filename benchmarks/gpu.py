"""What does a GPU do for featx? Every GPU measurement in one run of bounded time.

    python benchmarks/gpu.py [--minutes 8] [--parts tests extract ...] [--images DIR]

tests:    the tests that use a GPU
extract:  images/s of ResNet-50, ViT-B/16 and EfficientNet-Lite0 into a verified store, eager and compiled, beside the
          usual loop, the bare forward pass and decoding on all cores; torchvision's nvJPEG where it is built in
solve:    cells A, A-SVC and B of solve.py on the GPU and on the CPU of the same machine, and D on the GPU
search:   the searches of search.py, k nearest neighbours among them
heads:    the perceptrons of heads.py
nystroem: Nystroem -> LinearSVC of nystroem.py, and SVC
finetune: an epoch of finetune.py's fine-tuning from a store

Each part runs in a process of its own, which is killed when its share of the time is over; time that a part leaves goes
to the later ones. A measurement that fails, or for which no time is left, is a line of the table that says so, and the
others follow. Without --images, extraction decodes generated JPEG files of 500 x 375 pixels. Prints one table and adds
lines to benchmarks/results/gpu.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import extract
import finetune
import heads
import numpy as np
import nystroem
import search
import solve
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold, train_test_split
from solve_data import CELLS, RESULTS, features, stand_in

import featx
from featx.transfer import FineTuner

LINE = "gpu.py: "  # begins the lines of standard output that hold a measurement
ROOT = Path(__file__).resolve().parent.parent


class Size(NamedTuple):
    """How much is measured."""

    images: int
    batch: int  # of bare forward passes
    rows: int
    columns: int
    scale: float  # of solve.py's cells
    epochs: int
    backbones: tuple[str, ...]
    engines: tuple[str, ...]
    processes: int


LARGE = Size(
    6000, 256, 10_000, 1280, 1.0, 20, ("resnet50", "vit_b_16", "bundled:efficientnet_lite0"), ("eager", "compiled"),
    len(os.sched_getaffinity(0)),
)  # fmt: skip
SMALL = Size(8, 2, 100, 16, 0.01, 1, ("bundled:pixels",), ("eager",), 0)

Measurement = tuple[str, Callable[[], Mapping[str, Any]]]  # its name, and a function that returns "value", "unit" ...


def tests(size: Size, images: Path | None) -> Iterator[Measurement]:
    def run() -> Mapping[str, Any]:
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "tests/pretend"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:])
        return {"value": int(done.stdout.split(" passed")[0].split()[-1]) if " passed" in done.stdout else 0,
                "unit": "passed"}  # fmt: skip

    yield "tests/pretend", run


def extraction(size: Size, images: Path | None) -> Iterator[Measurement]:
    def rate(case: Callable[..., dict[str, Any]], *arguments: Any) -> Mapping[str, Any]:
        found = case(*arguments)
        found["row_error"] = found.pop("error", None)
        return {"value": found["steady"], "unit": "images/s", **found}

    with tempfile.TemporaryDirectory() as scratch:
        if images is None:
            images = generated_photos(Path(scratch) / "photos", min(64, size.images))
        for name in size.backbones:
            folder = Path(scratch) / name.replace(":", "-")
            folder.mkdir()
            extract.set_up(argparse.Namespace(images=images, n=size.images, backbone=name), folder)
            if name == size.backbones[0]:
                yield "decoding, CPU", partial(rate, extract.decoding, name, folder)
                yield "decoding, nvJPEG", partial(decoded_on_gpu, sorted((folder / "images").iterdir()))
            for precision, engine in [("bfloat16", engine) for engine in size.engines] + [("float32", "eager")]:
                label = f"{name}, bare forward, {precision}, {engine}"
                yield label, partial(rate, extract.forward, name, folder, precision, engine, size.batch)
            if not name.startswith("bundled:"):
                yield f"{name}, usual loop", partial(rate, extract.loop, name, folder, size.processes)
            for engine in size.engines:
                yield f"{name}, featx, auto, {engine}", partial(rate, extract.featx_run, name, folder, "auto", engine)


def generated_photos(folder: Path, n: int) -> Path:
    """JPEG files of 500 x 375 pixels, as large as photos: coarse noise and a little fine noise. Seeded."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        fine = rng.normal(0, 6, (375, 500, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(
            folder / f"{i}.jpg", quality=85
        )
    return folder


def decoded_on_gpu(files: list[Path]) -> Mapping[str, Any]:
    """Decoding alone, in batches, by nvJPEG."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(files: list[Path]) -> None:
        content = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]
        decode_jpeg(content, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()

    decode(files[:64])  # warm
    start = time.perf_counter()
    for first in range(0, len(files), 64):
        decode(files[first : first + 64])
    return {"value": len(files) / (time.perf_counter() - start), "unit": "images/s"}


def cells(size: Size, images: Path | None) -> Iterator[Measurement]:
    def on(device: str, name: str) -> Mapping[str, Any]:
        cell = CELLS[name].scaled(size.scale)
        X, y = features(cell, None)
        folds = list(StratifiedKFold(cell.folds, shuffle=True, random_state=0).split(X, y))
        estimator = (solve.SVC if name == "A-SVC" else solve.LOGISTIC)[0](device=device)
        solve.ours(solve.clone(estimator).set_params(max_iter=1), X, y, cell.C, folds)  # warm
        found = solve.ours(estimator, X, y, cell.C, folds)
        return {"value": found.seconds, "unit": "s", "accuracy": found.accuracy.mean(1).tolist(),
                "gemm": solve.gemm(cell, device)}  # fmt: skip

    def sweep() -> Mapping[str, Any]:
        found = solve.sweep(CELLS["D"].scaled(size.scale), argparse.Namespace(device="cuda", repeats=1))
        if not found:
            raise RuntimeError("the GPU's memory does not hold cell D")
        return {"value": found[0]["ours"], "unit": "s", "part of the roofline": found[0]["roofline"]["part"]} | found[0]

    for name in ("A", "A-SVC", "B"):
        for device in ("cuda", "cpu"):
            yield f"{name}, {device}", partial(on, device, name)
    yield "D, cuda", sweep


def searches(size: Size, images: Path | None) -> Iterator[Measurement]:
    options = argparse.Namespace(
        fashion=None, rows=size.rows, columns=size.columns, repeats=1, peer_processes=size.processes, ours_only=True
    )

    def run(name: str) -> Mapping[str, Any]:
        found = search.compare(name, options)
        return {"value": found["ours"], "unit": "s", **found}

    for name in search.QUESTIONS:
        yield name, partial(run, name)


def perceptrons(size: Size, images: Path | None) -> Iterator[Measurement]:
    X, y = stand_in(size.rows, size.columns, 10)

    def run(make: Callable[[], Any]) -> Mapping[str, Any]:
        cpu_seconds, seconds, scores = heads.measured(make(), X, y)
        return {"value": seconds, "unit": "s", "cpu_seconds": cpu_seconds, "scores": scores.tolist()}

    for side, make in heads.searches([1024 if size is LARGE else 4], size.epochs).items():
        if side != "scikit-learn":
            yield side, partial(run, make)


def kernels(size: Size, images: Path | None) -> Iterator[Measurement]:
    X, y = stand_in(size.rows, size.columns, 10)
    parts = train_test_split(X, y, test_size=0.2, random_state=0)

    def run(model: Any) -> Mapping[str, Any]:
        nystroem.measured(model, parts)  # warm
        found = nystroem.measured(model, parts)
        return {"value": found["seconds"], "unit": "s", **found}

    for side, model in nystroem.models(1.0, 2000 if size is LARGE else 20).items():
        if not side.startswith("scikit-learn"):
            yield side, partial(run, model)


def fine_tuning(size: Size, images: Path | None) -> Iterator[Measurement]:
    n = min(1000, size.images)
    with tempfile.TemporaryDirectory() as scratch:
        photos = images or generated_photos(Path(scratch) / "photos", min(64, n))
        files = sorted(photos.resolve().rglob("*.jp*g"))
        for i in range(n):
            link = Path(scratch) / "images" / ("ant", "bee")[i % 2] / f"{i}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(files[i % len(files)])
        folder, output = Path(scratch) / "images", Path(scratch) / "maps.h5"
        store = featx.extract(folder, output, finetune.NAME, "blocks.5:none", progress=False, engine="eager")

        def run(boundary: str) -> Mapping[str, Any]:
            tuner = FineTuner(store, boundary, warmup=0.0, batch_size=finetune.BATCH, head="zeros")
            seconds = finetune.epoch_seconds(tuner, store.X, store.y)
            return {"value": n / seconds, "unit": "images/s", "epoch_seconds": seconds}

        for boundary in ("blocks.5", "input"):
            yield f"an epoch from {boundary}", partial(run, boundary)


# the function of each part, and its share of the time
PARTS: dict[str, tuple[Callable[[Size, Path | None], Iterator[Measurement]], float]] = {
    "tests": (tests, 1.5),
    "extract": (extraction, 4),
    "solve": (cells, 3),
    "search": (searches, 1.5),
    "heads": (perceptrons, 1),
    "nystroem": (kernels, 0.5),
    "finetune": (fine_tuning, 1),
}


def measured(part: str, size: Size, images: Path | None, deadline: float) -> Iterator[dict[str, Any]]:
    """A line for each measurement of a part; each in its own try."""
    try:
        for name, run in PARTS[part][0](size, images):
            line: dict[str, Any] = {"part": part, "case": name}
            if time.monotonic() > deadline:
                yield line | {"error": "no time left"}
                continue
            start = time.monotonic()
            try:
                yield line | dict(run()) | {"took": time.monotonic() - start}
            except Exception as error:
                yield line | {"error": _in_a_line(error), "took": time.monotonic() - start}
    except Exception as error:  # what precedes its measurements
        yield {"part": part, "case": "", "error": _in_a_line(error)}


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"


def in_process(part: str, command: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """The lines that a command prints for a part, until it ends or its time is over."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=seconds)
            end = f"ended with exit status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            end = f"stopped after its {seconds:.0f} s"
        for line in io.StringIO(output.decode(errors="replace")):
            if line.startswith(LINE):
                yield json.loads(line.removeprefix(LINE))
        if end:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            yield {"part": part, "case": "", "error": ": ".join([end, *last])}


def run_all(commands: Mapping[str, list[str]], minutes: float) -> Iterator[dict[str, Any]]:
    """The lines of all parts, each in a process of its own with its share of the time that is left."""
    end = time.monotonic() + 60 * minutes
    names = list(commands)
    for i, part in enumerate(names):
        share = PARTS[part][1] / sum(PARTS[name][1] for name in names[i:])
        seconds = max(5.0, share * (end - time.monotonic()))
        yield from in_process(part, [*commands[part], "--seconds", f"{seconds:.0f}"], seconds)


def table(lines: Iterable[Mapping[str, Any]]) -> str:
    rows = [("part", "case", "value", "unit, or why there is none")]
    for line in lines:
        value = f"{line['value']:,.4g}" if "value" in line else ""
        rows.append((line["part"], line["case"], value, line.get("error", line.get("unit", ""))[:100]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    rows.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=Path, help="folder of JPEG files")
    parser.add_argument("--small", action="store_true", help="a few images and rows, to try the script")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3600, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        deadline = time.monotonic() + 0.8 * options.seconds
        for line in measured(options.part, SMALL if options.small else LARGE, options.images, deadline):
            print(LINE + json.dumps(line, default=str), flush=True)
        return
    own = [sys.executable, __file__, *(["--small"] if options.small else [])]
    own += ["--images", str(options.images)] if options.images else []
    head, lines = solve.header(), []
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "gpu.jsonl").open("a") as file:
        for line in run_all({part: [*own, "--part", part] for part in options.parts}, options.minutes):
            lines.append(line)
            print(line["part"], line["case"], line.get("value", line.get("error")), file=sys.stderr, flush=True)
            file.write(json.dumps(head | line) + "\n")
            file.flush()
    print(f"{head['date']}, {head['gpu'] or 'no GPU'}, {head['cpu']}, {head['cores']} cores, {head['versions']}\n")
    print(table(lines))


if __name__ == "__main__":
    main()
