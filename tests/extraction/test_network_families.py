"""Every row of 200 images is what the untouched model gives, for every family: 1e-4 in float32, 2e-2 in auto."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from runs import extract
from torch import nn

import featx

FAMILIES = {
    "vgg16": "classifier.6",
    "resnet18": "fc",
    "resnet50": "fc",
    "inception_v3": "fc",
    "mobilenet_v3_large": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "convnext_tiny": "classifier.2",
    "vit_b_16": "heads.head",
    "swin_t": "head",
    "bundled:efficientnet_lite0": "classifier",
}
N = 200


def picture(seed: int) -> Image.Image:
    """Blurred noise of some size: as smooth as photos are, in places."""
    rng = np.random.default_rng(seed)
    size = rng.integers(180, 420, 2)
    noise = Image.fromarray(rng.integers(0, 256, (*(size // 20), 3), np.uint8)).resize(size[::-1].tolist())
    return noise.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3))))


def settled(network: nn.Module) -> None:
    """Batch norms that do something, and keep a random network in range, as a trained one is."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in norms:
            part.running_mean.uniform_(-0.1, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_is_the_untouched_models(name, tmp_path):
    backbone = featx.Backbone(name, "DEFAULT" if name.startswith("bundled") else None)
    model = backbone.module
    if not name.startswith("bundled"):
        settled(model)
    images = [picture(seed) for seed in range(N)]
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(FAMILIES[name]).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    prepare = backbone.preprocessing
    with torch.inference_mode():
        for first in range(0, N, 8):
            model(
                prepare.normalise(torch.from_numpy(np.stack([prepare(image) for image in images[first : first + 8]])))
            )
    handle.remove()
    true = torch.cat(seen).flatten(1).numpy()
    for precision, tolerance in (("float32", 1e-4), ("auto", 2e-2)):
        # 25 batches: enough for "auto" to look for a faster way
        store = extract(images, tmp_path / f"{precision}.h5", backbone, precision=precision, batch_size=8)
        distance = np.linalg.norm(store["penultimate"] - true, axis=1) / np.linalg.norm(true, axis=1)
        said = f"{name} {store.recipe.precision} {store.recipe.engine}: {distance.max():.1e}"
        print(said)
        assert distance.max() <= tolerance, said
