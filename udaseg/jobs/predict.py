"""`udaseg predict`: label maps of a few images, in this process and without Ray.

labels/<image_id>.png    the class of every pixel: 8 bits, train ids, the classes' colours as the palette
overlays/<image_id>.png  where they are asked for, the image under the colours
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

import numpy as np

from udaseg.checkpoints.predictor import Prediction, load
from udaseg.data.classes import Classes
from udaseg.data.images import read_image
from udaseg.data.listing import list_images
from udaseg.data.pictures import overlay, palette_image, png
from udaseg.data.storage import absolute, exists, filesystem, join, write_bytes
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs.output import lies_in, own_directory
from udaseg.reports.tables import printable

_NAMED = 3  # classes of an image that are printed


def predict_to(out: str, model: str, images: Sequence[str], *, overlays: bool = False) -> None:
    """Predict images and write their label maps, a line for each; what was there of the same names is replaced.

    Args:
        out: the directory to write.
        model: model directory.
        images: files, folders and dataset directories, as paths or URIs.
        overlays: whether the images under the colours of their classes are written too.

    Raises CheckpointError, DatasetError or ConfigError, and writes nothing, where the model or an image's name cannot
    be used; DatasetError, when all others are written, where images cannot be read.
    """
    found = _listed(images, out)
    with own_directory(out, "predict"):
        predictor = load(model)
        failed: list[DatasetError] = []
        for image_id, uri in found.items():
            try:
                pixels = read_image(uri)
                prediction = predictor.predict(pixels)
            except DatasetError as error:
                failed.append(error if uri in str(error) else DatasetError(f"{uri}: {error}"))
                continue
            file = join(out, "labels", f"{image_id}.png")
            write_bytes(file, png(palette_image(prediction.label, predictor.classes)))
            if overlays:
                picture = overlay(pixels, prediction.label, predictor.classes)
                write_bytes(join(out, "overlays", f"{image_id}.png"), png(picture))
            print(f"{printable(file)}: {_summary(prediction, predictor.classes)}")
    if failed:
        kind = UnreachableError if any(isinstance(error, UnreachableError) for error in failed) else DatasetError
        if len(found) == 1:
            raise failed[0]
        raise kind("\n  ".join([f"{len(failed)} of {len(found)} images were not predicted", *map(str, failed)]))


def _listed(images: Sequence[str], out: str) -> dict[str, str]:
    """Image id -> URI. Raises DatasetError where there is no image, two have one id or would be among the outputs."""
    found: dict[str, str] = {}
    for image_id, uri in (pair for word in images for pair in _images(absolute(word), absolute(out))):
        if found.setdefault(image_id, uri) != uri:
            raise DatasetError(
                f"{uri} and {found[image_id]} would both be labels/{image_id}.png; predict them one after the other, "
                "with another --out"
            )
    return found


def _images(uri: str, out: str) -> Iterator[tuple[str, str]]:
    """The images of a file, a folder or a dataset directory."""
    fs, path = filesystem(uri)
    if not exists(uri):
        raise DatasetError(f"{uri}: no such file or folder")
    if lies_in(uri, out):
        raise DatasetError(f"{uri}: lies in the folder of predictions; choose an --out elsewhere")
    if fs.get_file_info(path).is_file:
        yield posixpath.splitext(posixpath.basename(path))[0], uri
        return
    if lies_in(out, uri) and not exists(join(uri, "manifest.parquet")):
        raise DatasetError(f"{out}: lies in the folder of images; choose an --out outside of it")
    for row in list_images(uri):
        yield row["image_id"], row["image_uri"]


def _summary(prediction: Prediction, classes: Classes) -> str:
    """The classes that most of an image is of, with their shares."""
    shares = np.bincount(prediction.label.ravel(), minlength=len(classes)) / prediction.label.size
    most = np.argsort(-shares, kind="stable")[:_NAMED]
    return ", ".join(f"{printable(classes.names[k])} {100 * shares[k]:.1f} %" for k in most if shares[k])
