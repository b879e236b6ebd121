"""HRDA: one network at two resolutions, whose predictions a learned attention blends (2204.13132; lhoyer/HRDA)."""

from __future__ import annotations

from math import lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.heads import Head, HeadPair
from udaseg.models.image_sizes import pad
from udaseg.models.segmenter import Segmenter
from udaseg.models.windows import window_starts
from udaseg.rng import uniforms
from udaseg.types import Detail, Domain, SegOutput


class HRDA(Segmenter):
    """A `Segmenter` that sees the whole image at half its resolution, and crops of it in full detail.

    In training, where memory is short, one detail crop is seen, at random or where the context is least certain. For
    pseudo-labels and evaluation (`detail="everywhere"`) overlapping crops cover the image. The attention says, per
    class and cell of the context, how far the detail is to be trusted; outside the crop that is not at all. Both
    resolutions share all weights.

    `features` and `embedding` of the output are the context's. `aux` adds, where one crop was seen, "detail_logits" (B,
    K, h, w) of the crop alone at its own size, "detail_at" (B, 2), its top left corner in pixels, and
    "detail_embedding" (B, D, H / s, W / s), the crop's embedding in an image of zeros at the head's stride s.

    The authors draw one place a batch, here it is one a sample.

    Args:
        attention: head for the attention; its K logits become shares by a sigmoid.
        detail_crop: height and width in pixels; at most that of the image is used.
        settings: see `Segmenter`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head | HeadPair,
        *,
        attention: Head,
        detail_crop: tuple[int, int],
        **settings: Any,
    ) -> None:
        super().__init__(backbone, head, attention=attention, **settings)
        self.unit = 2 * lcm(self.stride, self.image_sizes.multiple)  # crops begin at whole cells of the context
        if any(size < 1 or size % self.unit for size in detail_crop):
            raise ValueError(f"model.detail_crop {detail_crop} must be multiples of {self.unit} for this network")
        self.image_sizes.padded(*detail_crop)  # which must not be larger than the only size that is taken
        self.detail_crop = detail_crop
        self.feature_stride *= 2  # of the context

    @property
    def largest(self) -> tuple[int, int] | None:
        only = self.image_sizes.only
        return None if only is None else (2 * only[0], 2 * only[1])

    def levels(self, image: Tensor, domain: Domain) -> tuple[Tensor, ...]:
        return super().levels(_half(self._padded(image)), domain)

    def forward(
        self,
        image: Tensor,
        domain: Domain = "target",
        index: Tensor | None = None,
        detail: Detail = "random",
    ) -> SegOutput:
        """See `Segmenter`. Raises ValueError where a crop is to be drawn at random without `index`."""
        height, width = image.shape[-2:]
        image = self._padded(image)
        size = (min(self.detail_crop[0], image.shape[2]), min(self.detail_crop[1], image.shape[3]))
        features, context, embedding, attention = self.run(_half(image), domain)
        assert attention is not None
        shape = (image.shape[2] // self.stride, image.shape[3] // self.stride)
        aux: dict[str, Tensor] = {}
        if detail == "everywhere":
            seen = self._everywhere(image, size, domain, shape)
            share = attention.sigmoid()
        else:
            at = (
                self._most_uncertain(context, size) if detail == "entropy" else self._random(image, size, domain, index)
            )
            crop = image[_places(at, size)].movedim(-1, 1).contiguous()
            _, logits, crop_embedding, _ = self.run(crop, domain)
            cells = at // self.stride
            seen = _placed(logits, cells, shape)
            inside = _placed(torch.ones_like(logits[:, :1]), cells, shape)[..., ::2, ::2]
            share = attention.sigmoid() * inside
            aux = {
                "detail_logits": F.interpolate(logits, size=size, mode="bilinear", align_corners=False),
                "detail_at": at,
                "detail_embedding": _placed(crop_embedding, cells, shape),
            }
        fused = _double((1 - share) * context) + _double(share) * seen
        logits = F.interpolate(fused, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return SegOutput(
            logits=logits[..., :height, :width],
            embedding=embedding,
            features=features,
            aux={"coarse_logits": fused, **aux},
        )

    def _padded(self, image: Tensor) -> Tensor:
        height, width = (size + -size % self.unit for size in image.shape[-2:])
        return pad(image, (height, width), self.mean)

    def _everywhere(self, image: Tensor, size: tuple[int, int], domain: Domain, shape: tuple[int, int]) -> Tensor:
        """Mean logits of crops that overlap by half.

        In training mode all crops are one batch, whose statistics batch norms take, as the authors have it; otherwise
        they go one by one, which needs less memory.
        """
        rows, columns = (
            window_starts(whole, part, 0.5, self.unit) for whole, part in zip(image.shape[2:], size, strict=True)
        )
        places = [(i, j) for i in rows for j in columns]
        crops = [image[..., i : i + size[0], j : j + size[1]] for i, j in places]
        if self.training:
            each = self.run(torch.cat(crops), domain)[1].split(len(image))
        else:
            each = tuple(self.run(crop, domain)[1] for crop in crops)
        total = image.new_zeros(len(image), self.num_classes, *shape)
        count = image.new_zeros(1, 1, *shape)
        for (i, j), logits in zip(places, each, strict=True):
            row, column = i // self.stride, j // self.stride
            here = (..., slice(row, row + logits.shape[2]), slice(column, column + logits.shape[3]))
            total[here] += logits
            count[here] += 1
        return total / count

    def _random(self, image: Tensor, size: tuple[int, int], domain: Domain, index: Tensor | None) -> Tensor:
        if index is None:
            raise ValueError('HRDA draws a detail crop by the sample\'s index: give it, or detail="everywhere"')
        drawn = torch.from_numpy(uniforms(self.seed, index.numpy(), f"detail.{domain}", 2))
        places = [(whole - part) // self.unit + 1 for whole, part in zip(image.shape[2:], size, strict=True)]
        return ((drawn * torch.tensor(places)).long() * self.unit).to(image.device, non_blocking=True)

    def _most_uncertain(self, context: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 2) places, half a crop apart, where the mean entropy of the context's prediction is highest."""
        log_probability = context.detach().log_softmax(1)
        entropy = -(log_probability.exp() * log_probability).sum(1, keepdim=True)
        cell = 2 * self.stride
        rows, columns = (max(self.unit, side // 2 // self.unit * self.unit) for side in size)
        mean = F.avg_pool2d(entropy, (size[0] // cell, size[1] // cell), stride=(rows // cell, columns // cell))
        best = mean.flatten(1).argmax(1)
        return torch.stack([best // mean.shape[3] * rows, best % mean.shape[3] * columns], 1)


def _half(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)


def _double(plane: Tensor) -> Tensor:
    return F.interpolate(plane, scale_factor=2.0, mode="bilinear", align_corners=False)


def _placed(part: Tensor, at: Tensor, shape: tuple[int, int]) -> Tensor:
    """Each sample's (C, h, w) part at its (row, column) in a (C, *shape) plane of zeros."""
    whole = part.new_zeros(len(part), *shape, part.shape[1])
    sample, _, row, column = _places(at, (part.shape[2], part.shape[3]))
    return whole.index_put((sample, row, column), part.movedim(1, -1)).movedim(-1, 1).contiguous()


def _places(at: Tensor, size: tuple[int, int]) -> tuple[Tensor, slice, Tensor, Tensor]:
    """The index of a (B, C, H, W) batch that cuts crops of a size from each sample's (row, column) on: (B, h, w, C)."""
    sample = torch.arange(len(at), device=at.device)[:, None, None]
    row, column = (at[:, i, None] + torch.arange(size[i], device=at.device) for i in (0, 1))
    return sample, slice(None), row[:, :, None], column[:, None, :]
