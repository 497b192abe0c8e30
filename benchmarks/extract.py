"""How fast is extraction, end to end into a verified store? Against the loop every tutorial shows, and the ceilings.

    python benchmarks/extract.py --images DIR [--n 2000] [--backbone resnet50] [--repeats 3]

DIR holds JPEG files, at any depth; they are repeated (as copies, each a file of its own) up to N. Random weights, the
same on both sides. In one run, each in a fresh process:

(a) the loop: DataLoader + torchvision transforms + eager float32 forward + np.save, at each of 0, 1, ... processes
(b) img2vec-pytorch, where it is installed
(c) the bare forward pass on ready tensors, in each precision, compiled as featx compiles it
(d) decoding and resizing alone, on all cores
featx: cold (a fresh process with an empty compiler cache, all that a user waits for) and steady (what the run did from
its fourth batch on; of fewer than eight it says nothing), with every row compared with the loop's.

Prints a table and adds lines to benchmarks/results/extract.jsonl. On a machine with GPUs, the same command uses them,
and adds the forward pass from ready uint8 arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEER_BATCH = {"cpu": 32, "cuda": 256}


def weights_of(folder: Path) -> Path | str:
    """What featx's backbone loads: the seeded random weights, or those of a bundled one."""
    path = folder / "weights.pth"
    return path if path.exists() else "DEFAULT"


def network(name: str, folder: Path) -> torch.nn.Module:
    """The untouched model, without its classifier, with the weights that all sides load."""
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    for head in ("fc", "classifier", "heads"):
        if hasattr(model, head):
            setattr(model, head, torch.nn.Identity())
    return model.eval()


def transform(name: str) -> Any:
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT.transforms()


def place() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Files(torch.utils.data.Dataset):
    def __init__(self, files: list[Path], prepare: Any) -> None:
        self.files, self.prepare = files, prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        from PIL import Image

        return self.prepare(Image.open(self.files[i]).convert("RGB"))


def loop(name: str, folder: Path, workers: int) -> dict[str, Any]:
    """(a), and the rows by which all others are judged."""
    files = sorted((folder / "images").iterdir())
    start = time.perf_counter()
    model = network(name, folder).to(place())
    loader = torch.utils.data.DataLoader(Files(files, transform(name)), PEER_BATCH[place()], num_workers=workers)
    rows, at = [], [(0, time.perf_counter())]
    with torch.no_grad():
        for pixels in loader:
            rows.append(model(pixels.to(place())).cpu().numpy())
            at.append((at[-1][0] + len(pixels), time.perf_counter()))
    np.save(folder / "loop.npy", np.concatenate(rows))
    return {"cold": time.perf_counter() - start, "steady": steady(at)}


def img2vec(name: str, folder: Path) -> dict[str, Any]:
    """(b) as its README calls it, in batches; it has eager float32 and no decoding threads."""
    import torchvision
    from img2vec_pytorch import Img2Vec, img_to_vec
    from PIL import Image

    files = sorted((folder / "images").iterdir())[:256]  # its speed does not change
    img_to_vec.resnet50 = lambda **_: torchvision.models.resnet50(weights=None)  # it would download them
    model = Img2Vec(cuda=place() == "cuda", model="resnet50", layer="default", layer_output_size=2048)
    model.model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    at = [(0, time.perf_counter())]
    for first in range(0, len(files), 32):
        model.get_vec([Image.open(file).convert("RGB") for file in files[first : first + 32]])
        at.append((first + 32, time.perf_counter()))
    return {"steady": steady(at)}


def forward(name: str, folder: Path, precision: str, engine: str, batch: int | None = None) -> dict[str, Any]:
    """(c) on pixels that are ready on the device."""
    from featx.backbones import COMPILED, EAGER, Backbone, TappedNetwork, resolve_taps

    backbone = Backbone(name, weights_of(folder))
    taps, _ = resolve_taps(backbone, "penultimate", "avg")
    device, rows = torch.device(place()), batch or PEER_BATCH[place()]
    run = TappedNetwork(backbone, taps, device, precision, COMPILED if engine == "compiled" else EAGER)
    pixels = torch.randint(0, 256, (rows, *backbone.preprocessing.size, 3), dtype=torch.uint8, device=device)
    start = time.perf_counter()
    for values in run(pixels).values():
        values.cpu()
    compiling, times = time.perf_counter() - start, []
    for _ in range(12):
        start = time.perf_counter()
        for values in run(pixels).values():
            values.cpu()
        times.append(time.perf_counter() - start)
    return {"steady": rows / statistics.median(times), "compiling": compiling}


def decoding(name: str, folder: Path) -> dict[str, Any]:
    """(d) with featx's own decoder and resizing, and with Pillow's and torchvision's transforms for comparison."""
    from concurrent.futures import ThreadPoolExecutor

    from featx.backbones import Backbone
    from featx.images import batches

    torch.set_num_threads(1)
    files = sorted((folder / "images").iterdir())
    preprocessing = Backbone(name, weights_of(folder)).preprocessing
    workers = len(os.sched_getaffinity(0))
    at = [(0, time.perf_counter())]
    for batch in batches(files, preprocessing, preprocessing.size, 32, workers):
        at.append((at[-1][0] + len(batch.digests), time.perf_counter()))
    if name.startswith("bundled:"):
        return {"steady": steady(at)}
    reference = Files(files[:512], transform(name))
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(reference.__getitem__, range(len(reference))):
            pass
    return {"steady": steady(at), "transforms": len(reference) / (time.perf_counter() - start)}


def featx_run(name: str, folder: Path, precision: str, engine: str) -> dict[str, Any]:
    start = time.perf_counter()
    import featx

    at = [(0, time.perf_counter())]
    output = folder / f"{precision}.h5"
    store = featx.extract(
        folder / "images",
        output,
        name,
        weights=weights_of(folder),
        precision=precision,
        engine=engine,
        progress=lambda now: now.phase == "extracting" and at.append((now.done, time.perf_counter())),
        replace=True,
    )
    cold = time.perf_counter() - start
    store.verify()
    error = None
    if (folder / "loop.npy").exists():
        true = np.load(folder / "loop.npy")
        ours = store["penultimate"]
        error = float((np.linalg.norm(ours - true, axis=1) / np.linalg.norm(true, axis=1)).max())
    recipe = store.recipe
    output.unlink()
    assert error is None or error <= (1e-4 if recipe.precision == "float32" else 2e-2), error
    return {
        "cold": cold,
        "start": at[min(2, len(at) - 1)][1] - start,
        "steady": steady(at),
        "error": error,
        "precision": recipe.precision,
        "engine": recipe.engine,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def ready_arrays(name: str, folder: Path, precision: str) -> dict[str, Any]:
    """For GPUs: from uint8 arrays that need no resizing, so that decoding is no part of it."""
    import featx

    preprocessing = featx.Backbone(name, weights_of(folder)).preprocessing
    exact = featx.Preprocessing(preprocessing.crop, preprocessing.crop, mean=preprocessing.mean, std=preprocessing.std)
    backbone = featx.Backbone(name, folder / "weights.pth", preprocessing=exact)
    arrays = np.random.default_rng(0).integers(0, 256, (20_000, *exact.size, 3), np.uint8)
    at = [(0, time.perf_counter())]
    tick = lambda now: now.phase == "extracting" and at.append((now.done, time.perf_counter()))  # noqa: E731
    featx.extract(arrays, folder / "arrays.h5", backbone, precision=precision, progress=tick)
    return {"steady": steady(at)}


def steady(at: list[tuple[int, float]]) -> float:
    """Images a second from the fourth batch on."""
    (n, first), (m, last) = at[min(4, len(at) - 2)], at[-1]
    return (m - n) / (last - first)


CASES = {case.__name__: case for case in (loop, img2vec, forward, decoding, featx_run, ready_arrays)}


def apart(case: str, *arguments: Any, cold: bool = False) -> dict[str, Any]:
    """A case in a process of its own; cold: with an empty cache of compiled code."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": cache} if cold else {})
        command = [sys.executable, __file__, "--case", case, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{case} {arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def set_up(options: argparse.Namespace, folder: Path) -> int:
    import torchvision

    photos = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    (folder / "images").mkdir()
    for i in range(options.n):
        shutil.copyfile(photos[i % len(photos)], folder / "images" / f"{i:06d}.jpg")
    if options.backbone.startswith("bundled:"):
        return len(photos)
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.backbone, weights=None)
    torch.save(model.state_dict(), folder / "weights.pth")
    return len(photos)


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        name, backbone, folder, *more = sys.argv[2:]
        print(json.dumps(CASES[name](backbone, Path(folder), *[int(x) if x.isdigit() else x for x in more])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", nargs="+", default=["auto", "float32"])
    parser.add_argument("--engine", nargs="+", default=["auto", "compiled"])
    parser.add_argument("--loop-processes", nargs="+", type=int, default=range(len(os.sched_getaffinity(0)) + 1))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    results: dict[str, list[dict[str, Any]]] = {}

    def took(label: str, case: str, *arguments: Any, cold: bool = False) -> None:
        found = apart(case, options.backbone, folder, *arguments, cold=cold)
        results.setdefault(label, []).append(found)
        print(label, results[label][-1], file=sys.stderr)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        distinct = set_up(options, folder)
        for repeat in range(options.repeats):
            for workers in options.loop_processes if repeat == 0 else [best_workers(results)]:
                took(f"(a) loop, {workers} processes", "loop", workers)
            for precision in options.precision:
                for engine in options.engine:
                    took(f"featx, {precision}, engine {engine}", "featx_run", precision, engine, cold=True)
            ours = [run for label, runs in results.items() if label.startswith("featx, ") for run in runs]
            ways = {(run["precision"], run["engine"].split(",")[0]) for run in ours}
            for precision, engine in sorted(ways):
                took(f"(c) forward, {precision} {engine}", "forward", precision, engine)
            took("(d) decoding", "decoding")
            if torch.cuda.is_available():
                took("featx from ready arrays", "ready_arrays", "auto")
        if options.backbone == "resnet50":
            try:
                took("(b) img2vec-pytorch", "img2vec")
            except SystemExit as error:
                print(f"(b) img2vec-pytorch: {str(error).splitlines()[-1]}", file=sys.stderr)
    report(options, distinct, results)


def best_workers(results: dict[str, list[dict[str, Any]]]) -> int:
    loops = {label: runs[0]["steady"] for label, runs in results.items() if label.startswith("(a)")}
    return int(max(loops, key=loops.__getitem__).split()[2])


def median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def report(options: argparse.Namespace, distinct: int, results: dict[str, list[dict[str, Any]]]) -> None:
    speed = {label: median(runs, "steady") for label, runs in results.items()}
    best = max((label for label in results if label.startswith("(a)")), key=speed.__getitem__)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{options.n:,} files of {distinct:,} photos, {options.backbone}, {options.repeats} repeats")
    print(
        f"{where}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    for label, runs in results.items():
        print(f"{label:36} {speed[label]:8.1f} images/s {speed[label] / speed[best]:6.2f} x (a)")
        if "error" not in runs[0]:
            continue
        way = f"{runs[0]['precision']} {runs[0]['engine'].split(',')[0]}"
        bare, decode = speed[f"(c) forward, {way}"], speed["(d) decoding"]
        ceiling = min(bare, decode) if torch.cuda.is_available() else 1 / (1 / bare + 1 / decode)
        cold, theirs = median(runs, "cold"), median(results[best], "cold")
        print(
            f"    {way}, rows within {max(run['error'] for run in runs):.1e}, peak {median(runs, 'peak') / 1e9:.2f} GB"
        )
        print(f"    {speed[label] / ceiling:.2f} of the ceiling, {ceiling:.1f} images/s")
        print(f"    cold {cold:.1f} s, {theirs / cold:.2f} x (a); to the first rows {median(runs, 'start'):.1f} s")
    target = Path(__file__).parent / "results" / "extract.jsonl"
    target.parent.mkdir(exist_ok=True)
    with target.open("a") as file:
        for label, runs in results.items():
            file.write(json.dumps({"case": label, "n": options.n, "backbone": options.backbone, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
