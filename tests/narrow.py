"""Networks with all the layers of well-known ones and few of their weights, so that none takes seconds to make."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import VisionTransformer, vgg11


def seeded(make: Callable[..., nn.Module], **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**options).eval()


def vit_b_32() -> nn.Module:
    """Of 64 x 64 pixels."""
    widths = {"num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    return seeded(VisionTransformer, image_size=64, patch_size=32, num_layers=12, **widths)


def vgg_11() -> nn.Module:
    """Its classifier has nine in ten of its weights, and the narrow one few."""

    def make() -> nn.Module:
        with torch.device("meta"):
            net = vgg11()
        net.features.to_empty(device="cpu")
        for part in net.features:
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()
        net.classifier[0], net.classifier[3], net.classifier[6] = nn.Linear(25_088, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        return net

    return seeded(make)
