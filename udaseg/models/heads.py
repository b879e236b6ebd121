"""Segmentation heads. Each maps the backbone's levels to (logits at feature resolution, embedding)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, SEModule
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from udaseg.types import HeadInit


class ASPPHead(nn.Module):
    """DeepLabV2's atrous spatial pyramid: the sum of one 3x3 classifier a dilation, on the last level.

    Four branches are ADVENT's, CLAN's, SDCA's, SPCL's and BCL's; the DACS line's released code returns from inside its
    loop and so has two. The embedding is the branches side by side, which is what BCL contrasts.

    Args:
        in_channels: channels of each level; only the last is used.
        num_classes: K.
        branches: dilations, e.g. (6, 12, 18, 24) or (6, 12).
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, branches: Sequence[int] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        if not branches:
            raise ValueError("head branches are empty; DeepLabV2 has (6, 12, 18, 24)")
        convolutions = [nn.Conv2d(in_channels[-1], num_classes, 3, padding=d, dilation=d) for d in branches]
        for convolution in convolutions:
            nn.init.normal_(convolution.weight, std=0.01)
        self.branches = nn.ModuleList(convolutions)
        self.embedding_channels = num_classes * len(branches)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        maps = [branch(features[-1]) for branch in self.branches]
        return torch.stack(maps).sum(0), torch.cat(maps, 1)


class ASPPGroupNormHead(nn.Module):
    """The head of ProDA and LDBE on the last level: five normalised branches, channel attention, a bottleneck.

    Side by side a 1x1 convolution and a 3x3 one for each dilation, `channels` wide with group norm; squeeze and
    excitation; a 3x3 convolution to `channels` with group norm, which is the embedding; dropout of whole channels; the
    classifier.

    Args:
        in_channels: channels of each level; only the last is used.
        num_classes: K.
        branches: dilations of the 3x3 convolutions.
        channels: width, a multiple of 32.
        norm: begin with a batch norm, as ProDA's second and third stage do.
        embedding_after_dropout: the embedding is what the dropout has left, as the features are of which ProDA makes
            its prototypes. Without dropout, in evaluation mode, both are the same.
        dropout: share of channels that are dropped.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        branches: Sequence[int] = (6, 12, 18, 24),
        channels: int = 256,
        norm: bool = False,
        embedding_after_dropout: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if channels % 32:
            raise ValueError(f"head channels are {channels}; group norm needs a multiple of 32")
        width = in_channels[-1]
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.embedding_after_dropout = embedding_after_dropout
        convolutions = [nn.Conv2d(width, channels, 1)]
        convolutions += [nn.Conv2d(width, channels, 3, padding=d, dilation=d) for d in branches]
        self.branches = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(32, channels), nn.ReLU(inplace=True))
            for convolution in convolutions
        )
        joined = channels * len(convolutions)
        self.bottleneck = nn.Sequential(
            SEModule(joined), nn.Conv2d(joined, channels, 3, padding=1), nn.GroupNorm(32, channels)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.embedding_channels = channels

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        level = self.norm(features[-1])
        embedding = self.bottleneck(torch.cat([branch(level) for branch in self.branches], 1))
        left = self.dropout(embedding)
        return self.classify(left), left if self.embedding_after_dropout else embedding


class DeepLabV3Head(nn.Module):
    """DeepLabV3's head on the last level, as torchvision has it (1706.05587; `DeepLabHead` of torchvision).

    Side by side a 1x1 convolution, a 3x3 one for each dilation and the mean of the whole level, `channels` wide; a 1x1
    convolution to `channels` and dropout; a 3x3 convolution, which is the embedding; the classifier. Every convolution
    but the classifier has a batch norm, that of the mean too: in training a process needs two images or more.

    Args:
        in_channels: channels of each level; only the last is used.
        num_classes: K.
        branches: dilations of the 3x3 convolutions; torchvision's are (12, 24, 36), for an output stride of 8.
        channels: width; torchvision's is 256.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        branches: Sequence[int] = (12, 24, 36),
        channels: int = 256,
    ) -> None:
        super().__init__()
        self.context = ASPP(in_channels[-1], list(branches), channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.embedding_channels = channels

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        *branches, mean = self.context.convs
        parts = [branch(features[-1]) for branch in branches]
        # its norm divides by the spread of as few numbers as there are images: bfloat16's rounding is a tenth of that
        with torch.autocast(features[-1].device.type, enabled=False):
            parts.append(mean(features[-1].float()))
        embedding = self.fuse(self.context.project(torch.cat(parts, 1)))
        return self.classify(embedding), embedding


class ContextAwareHead(nn.Module):
    """DAFormer's head: every level projected, upsampled to the finest and joined; then context at several dilations.

    The context is a 1x1 convolution, and a depthwise-separable 3x3 one for each dilation > 1, side by side, brought to
    `channels` by a 3x3 convolution. Without branches a 1x1 convolution takes their place, as in SegFormer, and in
    HRDA's scale attention. The embedding is what the classifier reads, before its dropout.

    Args:
        in_channels: channels of each level, finest first.
        num_classes: K.
        branches: dilations; DAFormer's are (1, 6, 12, 18).
        channels: width; DAFormer's is 256.
        dropout: share of channels that are dropped.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        branches: Sequence[int] = (1, 6, 12, 18),
        channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        joined = channels * len(in_channels)
        self.branches = nn.ModuleList(
            ConvNormAct(joined, channels, 1)
            if dilation == 1
            else nn.Sequential(
                ConvNormAct(joined, joined, 3, dilation=dilation, groups=joined), ConvNormAct(joined, channels, 1)
            )
            for dilation in branches
        )
        self.fuse = ConvNormAct(channels * len(branches), channels, 3) if branches else ConvNormAct(joined, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.embedding_channels = channels

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        joined = torch.cat(_to_finest(self.project, features), 1)
        if self.branches:
            joined = torch.cat([branch(joined) for branch in self.branches], 1)
        embedding = self.fuse(joined)
        return self.classify(self.dropout(embedding)), embedding


class MultiLevelHead(nn.Module):
    """A light head for small backbones: every level from stride 4 on is projected, upsampled to the finest and summed.

    The embedding is the fused map that the classifier reads.

    Args:
        in_channels: channels of each level, finest first.
        num_classes: K.
        channels: width of the fused map.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.fuse = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.embedding_channels = channels

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        fused = self.fuse(torch.stack(_to_finest(self.project, features)).sum(0))
        return self.classify(fused), fused


def _to_finest(project: nn.ModuleList, features: Sequence[Tensor]) -> list[Tensor]:
    """Each level through its projection, at the size of the first."""
    return _resized([layer(x) for layer, x in zip(project, features, strict=True)], features[0].shape[-2:])


def _resized(levels: Iterable[Tensor], size: Sequence[int]) -> list[Tensor]:
    """Maps at one size.

    Those in bfloat16 by way of single precision: a GPU adds a cell's gradient up in the type of the map.
    """

    def resize(x: Tensor) -> Tensor:
        wide = x.float() if x.dtype == torch.bfloat16 else x
        return F.interpolate(wide, size=list(size), mode="bilinear", align_corners=False).to(x.dtype)

    return [resize(x) for x in levels]


class ProjectionHead(nn.Module):
    """Two 1x1 convolutions from a head's embedding to the space that a contrastive loss compares."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1), nn.ReLU(inplace=True), nn.Conv2d(in_channels, channels, 1)
        )
        self.embedding_channels = channels

    def forward(self, embedding: Tensor) -> Tensor:
        return self.layers(embedding)


class LevelProjection(nn.Module):
    """SePiCo's projection (2204.08808): levels of the backbone -> unit vectors (B, channels, h, w).

    The levels, side by side at the size of the first, go through two 1x1 convolutions with batch norm and ReLU, the
    first of which has as many outputs as a level has channels on average.

    Args:
        in_channels: channels of each level that is read.
        channels: width of the unit vectors.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        joined = sum(in_channels)
        between = joined // len(in_channels)
        self.layers = nn.Sequential(ConvNormAct(joined, between, 1), ConvNormAct(between, channels, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(_resized(levels, levels[0].shape[-2:]), 1)
        return F.normalize(self.layers(joined), dim=1)


class ContrastProjection(nn.Module):
    """TADA's projection of the last level (2109.04813): two 1x1 convolutions, (B, A, h, w) -> unit vectors."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormAct(in_channels, in_channels, 1, bias=True), nn.Conv2d(in_channels, channels, 1)
        )

    def forward(self, level: Tensor) -> Tensor:
        return F.normalize(self.layers(level), dim=1)


Head = ASPPHead | ASPPGroupNormHead | ContextAwareHead | DeepLabV3Head | MultiLevelHead


class HeadPair(nn.Module):
    """Two heads of a kind on the same levels, whose logits are added, as CLAN's two classifiers.

    The embedding is both heads' logits side by side, those of the first before those of the second.

    Args:
        first, second: heads of the same shape.
        num_classes: K of each.
    """

    def __init__(self, first: Head, second: Head, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.embedding_channels = 2 * num_classes

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        first, second = self.first(features)[0], self.second(features)[0]
        return first + second, torch.cat([first, second], 1)

    def weights(self) -> tuple[Tensor, Tensor]:
        """All weights and biases of each head's convolutions, (N,) and (N,); norms, which begin alike, are left out."""
        first, second = (
            torch.cat([p.flatten() for m in head.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()])
            for head in (self.first, self.second)
        )
        return first, second


def classifiers(head: Head | HeadPair) -> list[nn.Conv2d]:
    """The convolutions whose outputs, added up, are a head's logits."""
    if isinstance(head, HeadPair):
        return [*classifiers(head.first), *classifiers(head.second)]
    return [*head.branches] if isinstance(head, ASPPHead) else [head.classify]


def draw(head: Head, init: HeadInit) -> None:
    """Draw a head's first weights as a line of papers does, in place. See `HeadInit` of `udaseg.config.Model`.

    "torch": as the heads are built: torch's defaults, but DeepLabV2's branches from N(0, 0.01), which are ADVENT's too.
    "mmseg": DAFormer's line. The classifier, and each of DeepLabV2's branches, from N(0, 0.01) with bias 0 (`init_cfg`
    there); every convolution that a norm follows from Kaiming's normal distribution by its outputs (`ConvModule` of
    mmcv); the projections of levels, linear layers there, as torch does. SegFormer's own code leaves its classifier as
    torch draws it, mmseg's does not.
    "deeplab": ProDA's, which draws every convolution from N(0, 0.01) when all is built, and before it sets the
    bottleneck's bias to 0; the channel attention, linear layers there, as torch does.

    Raises ValueError where the line has no such head.
    """
    if init == "torch" or (init == "deeplab" and isinstance(head, ASPPHead)):
        return
    if (init == "deeplab") != isinstance(head, ASPPGroupNormHead):
        raise ValueError(f"model.head_init {init!r} is not of a {type(head).__name__}; set it to torch")
    for name, module in head.named_modules():
        if not isinstance(module, nn.Conv2d) or name.startswith(("project.", "bottleneck.0.")):
            continue
        if init == "deeplab" or module in classifiers(head):
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None and (init == "mmseg" or name == "bottleneck.1"):
            nn.init.zeros_(module.bias)
