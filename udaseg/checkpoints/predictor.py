"""One image at a time, in this process: `udaseg.load(MODEL).predict(image)`."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from udaseg.checkpoints.directory import ModelCard, load_model
from udaseg.data.classes import Classes
from udaseg.data.images import read_image, require_proportions, rgb
from udaseg.data.storage import to_uri
from udaseg.errors import DatasetError
from udaseg.models.inference import check_views, predict, to_pixels
from udaseg.models.segmenter import Segmenter
from udaseg.types import DepthRange, Location, NetworkRole


class Prediction(NamedTuple):
    """What a network says of an image."""

    label: np.ndarray
    """(H, W) uint8 train ids: places in the classes' names."""
    confidence: np.ndarray
    """(H, W) float32, the probability of that class, in (0, 1]."""


class Predictor:
    """A network on its device, with its classes."""

    def __init__(self, network: Segmenter, card: ModelCard, device: torch.device) -> None:
        self.network = network.to(device)
        self.card = card
        self.device = device

    @property
    def classes(self) -> Classes:
        """Names and colours, in the order of the train ids."""
        return self.card.classes

    def predict(self, image: Location | Image.Image | np.ndarray, **views: Any) -> Prediction:
        """The class of every pixel of an image.

        Args:
            image: path or URI of a file, which is read as it is shown (turned by its EXIF orientation, as an opened
                image of Pillow's is), more than 8 bits with the card's `depth_range`; or (H, W, 3) uint8 RGB pixels.
            views: window, overlap, blend, scales, flip or domain of `udaseg.predict`.

        Raises ConfigError where a view is outside its range, and DatasetError, with the name of the image, where that
        cannot be read, is no such image or is too long and narrow.
        """
        check_views(**views)
        name, pixels = _pixels(image, self.card.depth_range)
        side = self.card.short_side * max(views.get("scales", (1.0,)))
        require_proportions(pixels.shape[0], pixels.shape[1], side, name)
        batch = to_pixels(np.stack([pixels]), self.device)  # a copy: those of a file are not to be written
        confidence, label = predict(self.network, batch, **self.card.size(), **views)[0].max(0)
        return Prediction(label.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())


def load(model: Location, *, network: NetworkRole = "predictor", device: str | None = None) -> Predictor:
    """A model directory, or a checkpoint of a run, as what predicts images.

    Args:
        model: path or URI.
        network: of a checkpoint also its "student" or "teacher".
        device: torch's name of one; None = a GPU where there is one.

    Raises CheckpointError.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(*load_model(model, network), torch.device(device))


def _pixels(image: Location | Image.Image | np.ndarray, depth_range: DepthRange | None) -> tuple[str, np.ndarray]:
    """The name of an image, and its (H, W, 3) uint8 pixels."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DatasetError(f"an array of {image.dtype} of shape {image.shape}; give (H, W, 3) uint8 RGB")
        return "the image", image
    if isinstance(image, Image.Image):
        if any(str(tile[3]).startswith("LA;16") for tile in getattr(image, "tile", ())):  # as of files
            raise DatasetError("grey of 16 bits beside an alpha channel, of which half would be lost; leave alpha out")
        try:
            image.load()  # it may have been opened only
        except Exception as error:  # Pillow's decoders raise a dozen types on broken files
            raise DatasetError(f"the image cannot be decoded: {error}") from None
        with contextlib.suppress(Exception):  # as of files, EXIF that is broken is passed over
            image = ImageOps.exif_transpose(image)
        return "the image", rgb(image, depth_range)
    uri = to_uri(image)
    return uri, read_image(uri, depth_range)
