"""One image at a time, in this process: `udaseg.load(MODEL).predict(image)`."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from udaseg.data.classes import Classes
from udaseg.data.images import read_image, require_proportions, rgb
from udaseg.data.storage import read_bytes, to_uri
from udaseg.data.strict_json import parse_json
from udaseg.errors import CheckpointError, ConfigError, DatasetError
from udaseg.extras import require_extra
from udaseg.types import DepthRange, Location, NetworkRole

if TYPE_CHECKING:  # an ONNX file is predicted without torch, and its three seconds
    import torch

    from udaseg.checkpoints.directory import ModelCard
    from udaseg.models.segmenter import Segmenter

METADATA = "udaseg.json"
"""What an exported file calls its metadata, which `udaseg.checkpoints.exporting.metadata` makes."""


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

    @property
    def depth_range(self) -> DepthRange | None:
        """The values of images of more than 8 bits that become 0 and 255."""
        return self.card.depth_range

    def predict(self, image: Location | Image.Image | np.ndarray, **views: Any) -> Prediction:
        """The class of every pixel of an image.

        Args:
            image: path or URI of a file, which is read as it is shown (turned by its EXIF orientation, as an opened
                image of Pillow's is), more than 8 bits with the card's `depth_range`; or (H, W, 3) uint8 RGB pixels.
            views: window, overlap, blend, scales, flip or domain of `udaseg.predict`; without a window the card's, if
                it has one.

        Raises ConfigError where a view is outside its range, and DatasetError, with the name of the image, where that
        cannot be read, is no such image or is too long and narrow.
        """
        from udaseg.models.inference import check_views, predict, to_pixels

        check_views(**views)
        name, pixels = _pixels(image, self.depth_range)
        side = self.card.short_side * max(views.get("scales", (1.0,)))
        require_proportions(pixels.shape[0], pixels.shape[1], side, name)
        batch = to_pixels(np.stack([pixels]), self.device)  # a copy: those of a file are not to be written
        confidence, label = predict(self.network, batch, **self.card.views(**views))[0].max(0)
        return Prediction(label.byte().cpu().numpy(), confidence.cpu().numpy())


class OnnxPredictor:
    """A model.onnx of `udaseg export`, run by ONNX Runtime on the CPU; torch is not loaded.

    Raises CheckpointError where the file is none, and ConfigError where ONNX Runtime is not installed.
    """

    def __init__(self, file: str) -> None:
        require_extra("onnx", file)
        runtime = importlib.import_module("onnxruntime")
        try:
            content = read_bytes(file)
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file") from None
        try:
            self.session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # a dozen types of ONNX Runtime's own
            raise CheckpointError(f"{file}: not a network that ONNX Runtime can read: {str(error)[:300]}") from None
        said = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if said is None:
            raise CheckpointError(f"{file}: not written by `udaseg export`, as it does not say what its classes are")
        try:
            facts = parse_json(said, f"{file}: its metadata")
            self.classes = Classes(names=tuple(facts["names"]), palette=tuple(map(tuple, facts["palette"])))
            self.size = facts["size"] and tuple(map(int, facts["size"]))
            self.short_side = int(facts["short_side"])
            self.depth_range: DepthRange | None = facts["depth_range"] and tuple(facts["depth_range"])
        except (KeyError, TypeError, ValueError, DatasetError) as error:
            raise CheckpointError(
                f"{file}: its metadata are not those of this version ({error}); export it again"
            ) from None

    def predict(self, image: Location | Image.Image | np.ndarray) -> Prediction:
        """The class of every pixel of an image, given as to `Predictor.predict`. Raises DatasetError likewise, and
        where the file takes images of one size alone and the image has another."""
        name, pixels = _pixels(image, self.depth_range)
        height, width = pixels.shape[:2]
        require_proportions(height, width, self.short_side, name)
        if self.size is not None and (height, width) != self.size:
            only = " x ".join(map(str, self.size))
            raise DatasetError(
                f"{name}: {height} x {width} pixels, and the network was exported for {only} alone; predict with the "
                "model that it was exported from"
            )
        label, confidence = self.session.run(["label", "confidence"], {"image": pixels[None]})
        return Prediction(label[0], confidence[0])


def load(
    model: Location, *, network: NetworkRole = "predictor", device: str | None = None
) -> Predictor | OnnxPredictor:
    """A model directory, a checkpoint of a run or an exported model.onnx, as what predicts images.

    Args:
        model: path or URI.
        network: of a checkpoint also its "student" or "teacher".
        device: torch's name of one; None = a GPU where there is one. An exported file is run on the CPU.

    Raises CheckpointError, and ConfigError where a network or device is asked for that an exported file has not.
    """
    if (uri := to_uri(model)).endswith(".onnx"):
        if network != "predictor" or device not in (None, "cpu"):
            raise ConfigError(
                f"{uri}: an exported file holds one network, which runs on the CPU; give a model directory"
            )
        return OnnxPredictor(uri)
    import torch

    from udaseg.checkpoints.directory import load_model

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
    if not isinstance(image, str | os.PathLike):
        raise DatasetError(
            f"an image of type {type(image).__name__}; give a path, one of Pillow's images or an array; "
            "`udaseg.predict` takes batches of tensors"
        )
    uri = to_uri(image)
    return uri, read_image(uri, depth_range)
