"""Exported models outside Python: labels and probabilities in Node and Chromium against the saved pipeline's own.

    npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
    python benchmarks/export_web.py package/dist TRAIN TEST... [--images 1000] [--tests 1000] [--chromium chromium]

TRAIN has class folders; each TEST is a folder of images that are not in TRAIN. A StandardScaler and a
LogisticRegression on the penultimate layer of a part of TRAIN are saved as .skops, and exported with input "pixels"
and as a web page, whose input is "image". Every TEST is predicted by the .skops pipeline, by onnxruntime in Python, by
onnxruntime-web under Node with the page's own code, and by the page itself in headless Chromium. Prints the labels
that differ from the pipeline's, the largest difference of a probability, and the median milliseconds of an image: CPU
time with one thread; Chromium's are by the clock and include decoding the file. Adds a line to
benchmarks/results/export_web.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from solve import header
from solve_data import RESULTS

import featx
from featx.backbones import Preprocessing
from featx.deploy import export, export_web
from featx.images import collect, decode
from featx.learn import LogisticRegression, StoredFeatures

DRIVER = Path(__file__).with_suffix(".mjs")
FORMS = ("pixels", "image")


class Server(ThreadingHTTPServer):
    """Serves the files of a site, and under /test/ the number of images, their files and arrays; takes the answers."""

    def __init__(self, site: Path, images: list[Path], arrays: list[np.ndarray]) -> None:
        self.answers: list[dict[str, Any]] = []
        self.finished = threading.Event()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(site))

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                _, *path = self.path.split("/")
                if path[0] != "test":
                    return super().do_GET()
                self.send_response(200)
                if path[1] == "n":
                    body = json.dumps(len(images)).encode()
                elif path[1] == "file":
                    body = images[int(path[2])].read_bytes()
                else:
                    array = arrays[int(path[2])]
                    self.send_header("shape", json.dumps(array.shape[:2] + (3,) if array.ndim == 3 else array.shape))
                    body = array.tobytes()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                server.answers = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                server.finished.set()

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


Answers = tuple[list[str], np.ndarray, float]  # labels, probabilities, median milliseconds


def outside(command: list[str], server: Server, timeout_seconds: float = 3600) -> Answers:
    """What a program that is started with `command` posts to the server."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + timeout_seconds
        while not server.finished.wait(1):
            if process.poll() not in (None, 0) or time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"{command[0]} gave no answers: {process.stderr and process.stderr.read()}")
        process.terminate()
        process.communicate()
    server.shutdown()
    answers = server.answers
    return (
        [answer["label"] for answer in answers],
        np.array([answer["values"] for answer in answers]),
        float(np.median([answer["milliseconds"] for answer in answers])),
    )


def in_python(path: Path, form: str, inputs: list[np.ndarray], classes: list[str]) -> Answers:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    labels, probabilities, milliseconds = [], [], []
    for each in inputs[:1] + inputs:  # the first one warms up
        began = time.process_time()
        label, shares = session.run(None, {form: each})
        milliseconds.append(1000 * (time.process_time() - began))
        labels.append(classes[int(label[0])])
        probabilities.append(shares[0])
    return labels[1:], np.array(probabilities[1:]), float(np.median(milliseconds[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--tests", type=int, default=1000, help="at most, of each folder")
    parser.add_argument("--backbone", default="bundled:efficientnet_lite0")
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    train = collect(options.train)
    chosen, _ = train_test_split(
        np.arange(len(train.images)), train_size=options.images, stratify=train.y, random_state=0
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = featx.extract(
            [train.images[i] for i in chosen],
            folder / "train.h5",
            options.backbone,
            labels=train.y[chosen],
            precision="float32",
            engine="eager",
        )
        pipeline = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression(C=1e-3))
        model = featx.load(featx.save(pipeline.fit(store.X, store.y), folder / "model.skops"))
        classes = [str(label) for label in model.classes_]
        sites = {form: folder / form for form in FORMS}
        export_web(model, sites["image"], runtime=options.runtime)
        (sites["image"] / DRIVER.name).write_bytes(DRIVER.read_bytes())
        page = (sites["image"] / "index.html").read_text()
        script = f'<script type="module" src="{DRIVER.name}"></script></body>'
        (sites["image"] / "test.html").write_text(page.replace("</body>", script))
        shutil.copytree(sites["image"], sites["pixels"])
        export(model, sites["pixels"] / "model.onnx", replace=True)
        prepare = Preprocessing.from_dict(store.recipe.preprocessing)
        rows = []
        print(f"{'test':14} {'program':22} {'input':8} {'labels that differ':>18} {'difference':>12} {'ms':>7}")
        for test in options.test:
            tested = collect(test).images
            images = [tested[i] for i in np.random.default_rng(0).permutation(len(tested))[: options.tests]]
            expected, probabilities = model.predict(images), model.predict_proba(images)
            for form in FORMS:
                pictures = [decode(image)[0] for image in images]
                inputs = [np.asarray(each) if form == "image" else prepare(each)[None] for each in pictures]
                arrays = [np.asarray(each.convert("RGBA")) for each in pictures] if form == "image" else inputs
                results = {"onnxruntime": in_python(sites[form] / "model.onnx", form, inputs, classes)}
                server = Server(sites[form], images, arrays)
                node = ["node", str(DRIVER), str(sites[form]), server.origin]
                results["onnxruntime-web, Node"] = outside(node, server)
                if form == "image":
                    server = Server(sites[form], images, arrays)
                    browser = [options.chromium, "--headless", "--no-sandbox", f"--user-data-dir={folder / 'profile'}"]
                    results["the page in Chromium"] = outside([*browser, f"{server.origin}/test.html"], server)
                for program, (labels, shares, milliseconds) in results.items():
                    row = {
                        "test": f"{test.resolve().parent.name}/{test.name}",
                        "n": len(images),
                        "program": program,
                        "input": form,
                        "differ": int((np.array(labels) != expected).sum()),
                        "difference": float(np.abs(shares - probabilities).max()),
                        "milliseconds": milliseconds,
                    }
                    rows.append(row)
                    print(
                        f"{row['test']:14} {program:22} {form:8} {row['differ']:>7} of {len(images):>7} "
                        f"{row['difference']:12.1e} {milliseconds:7.1f}",
                        flush=True,
                    )
    with open(RESULTS / "export_web.jsonl", "a") as file:
        file.write(json.dumps(header() | {"backbone": options.backbone, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
