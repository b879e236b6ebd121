"""Small networks, and a network whose answer is chosen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toy import CLASSES

from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import PerDomain, Segmenter
from udaseg.types import SegOutput

BACKBONES = ["resnet10t", "mobilenetv3_small_050", "convnext_atto"]


def small_network(
    per_domain: PerDomain = "nothing", *, classes: int = 5, seed: int = 0, **options: object
) -> Segmenter:
    torch.manual_seed(seed)
    settings = {"backbone": "resnet10t", "head_channels": 16, "per_domain": per_domain} | options
    return build_segmenter(classes, **settings)  # type: ignore[arg-type]


def images(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def perturb_target(network: Segmenter) -> None:
    with torch.no_grad():
        for parameter in network.target_parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


class Says(nn.Module):
    """A network whose logits are chosen, and that keeps what it was shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.register_buffer("logits", logits)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.seen: list[Tensor] = []

    def forward(
        self, image: Tensor, domain: str = "target", index: Tensor | None = None, detail: str = ""
    ) -> SegOutput:
        self.seen.append(image)
        return SegOutput(logits=self.logits, embedding=self.logits)


def half_sure() -> Tensor:
    """(2, K, 64, 64) logits: class 1 everywhere, confident in the left half of sample 0 alone."""
    logits = torch.zeros(2, CLASSES, 64, 64)
    logits[:, 1] = 1.0
    logits[0, 1, :, :32] = 9.0
    return logits
