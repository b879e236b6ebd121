"""Which image sizes a backbone takes, found by trial, and the padding of those that it does not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LARGEST_MULTIPLE = 256
_TRIAL = 128  # pixels of a side, so that no size fails for being small


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of the images that a backbone takes. Others are padded at the bottom and right."""

    multiple: int = 1
    """Pixels whose multiples height and width must be."""
    smallest: int = 1
    """Pixels that height and width must have, a multiple of `multiple`."""
    only: tuple[int, int] | None = None
    """The one height and width that are taken; None = many."""

    def check(self) -> None:
        """Raise ValueError where no trial finds such sizes."""
        numbers = (self.multiple, self.smallest, *(self.only or ()))
        if min(numbers) < 1 or max(self.multiple, self.smallest) > 1 << 12 or self.smallest % self.multiple:
            raise ValueError(f"image_sizes {self} are not those of any backbone")

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is padded to. Raises ValueError for one larger than the only size that is taken."""
        if self.only is not None:
            if height > self.only[0] or width > self.only[1]:
                raise ValueError(
                    f"the backbone takes images of {self.only[0]} x {self.only[1]} pixels alone, and this one has "
                    f"{height} x {width}: set model.input_size to the size of the crops, or smaller crops"
                )
            return self.only
        high, wide = (max(size + -size % self.multiple, self.smallest) for size in (height, width))
        return high, wide


def pad(image: Tensor, size: tuple[int, int], colour: Tensor) -> Tensor:
    """(B, 3, H, W) images at the top left of (B, 3, *size) ones of a colour, (1, 3, 1, 1). The image itself if equal.

    The backbone's mean colour is 0 to it, as are the zeros that its convolutions pad with.
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    batch = image.shape[0]  # len() would fix it in an exported network
    colour = colour.to(image.dtype)
    right = colour.expand(batch, -1, height, size[1] - width)
    below = colour.expand(batch, -1, size[0] - height, size[1])
    return torch.cat([torch.cat([image, right], 3), below], 2)


def crop(level: Tensor, padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """The cells of a (B, C, h, w) level of a padded image that hold pixels of the image."""
    height, width = (
        -(-side * cells // whole) for side, cells, whole in zip(size, level.shape[-2:], padded, strict=True)
    )
    return level[..., :height, :width]


def find_image_sizes(
    body: nn.Module, strides: Sequence[int], input_size: tuple[int, int] | None, *, key: Hashable
) -> ImageSizes:
    """What sizes a backbone takes, by trial on tensors without memory.

    Args:
        body: (B, 3, H, W) images -> levels.
        strides: pixels of a cell of each level, finest first.
        input_size: height and width that it certainly takes, where such are known.
        key: of the settings that `body` was built with; what was found for a key is not searched again.

    Raises ValueError, naming model.input_size, where it takes none of the sizes that were tried.
    """
    if key not in _FOUND:
        training = body.training
        body.eval()
        try:
            # Some backbones hold tensors that are no buffers, which do not mix with those without memory.
            found = _search(body, strides, input_size, "meta") or _search(body, strides, input_size, "cpu")
        finally:
            body.train(training)
        if found is None:
            raise ValueError(f"takes no images of {input_size}: set model.input_size to a size that it does take")
        _FOUND[key] = found
    return _FOUND[key]


_FOUND: dict[Hashable, ImageSizes] = {}


def _search(
    body: nn.Module, strides: Sequence[int], input_size: tuple[int, int] | None, device: str
) -> ImageSizes | None:
    multiples, multiple = [1], strides[0]
    while multiple <= _LARGEST_MULTIPLE:
        multiples.append(multiple)
        multiple *= 2
    if input_size is not None:
        multiples.append(max(input_size))
    for multiple in multiples:
        cells = 2
        while multiple * cells < _TRIAL:
            cells *= 2
        # just above and just below a power of two: levels that are rounded up and rounded down differ in one of them
        if _takes(body, (multiple * (cells + 1), multiple * (cells - 1)), device):
            smallest = multiple
            while smallest <= _TRIAL and not _takes(body, (smallest, smallest), device):
                smallest = max(2 * smallest, strides[-1] + -strides[-1] % multiple)
            return ImageSizes(multiple, smallest)
    if input_size is not None and _takes(body, input_size, device):
        return ImageSizes(only=input_size)
    return None


@torch.no_grad()
def _takes(body: nn.Module, size: tuple[int, int], device: str) -> bool:
    tensors = dict[str, Tensor]([*body.named_parameters(), *body.named_buffers()])
    if device == "meta":
        tensors = {name: torch.empty_like(tensor, device=device) for name, tensor in tensors.items()}
    try:
        torch.func.functional_call(body, tensors, (torch.zeros(1, 3, *size, device=device),))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, NotImplementedError):
        return False
    return True
