"""`udaseg predict`: label maps of a few images and videos, in this process and without Ray.

labels/<image_id>.png      the class of every pixel: 8 bits, train ids, the classes' colours as the palette
labels/<video>/<n>.png     the same of a video's frames, from 000000 on
overlays/<image_id>.png    where they are asked for, the image under the colours
overlays/<video>.mp4       likewise the video, at its frame rate
"""

from __future__ import annotations

import contextlib
import itertools
import posixpath
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from udaseg.checkpoints.predictor import OnnxPredictor, Predictor, load
from udaseg.data.classes import Classes
from udaseg.data.depth import other_range
from udaseg.data.folders import passed_over
from udaseg.data.images import read_image
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.pictures import overlay, palette_image, png
from udaseg.data.storage import absolute, exists, filesystem, join, remove, write_bytes
from udaseg.data.video import is_video, open_video, video_writer
from udaseg.errors import DatasetError, UnreachableError
from udaseg.extras import require_extra
from udaseg.jobs.output import lies_in, own_directory
from udaseg.reports.tables import printable

_NAMED = 3  # classes of an image that are printed
_SECONDS_BETWEEN_LINES = 5.0  # of a video


def predict_to(out: str, model: str, images: Sequence[str], *, overlays: bool = False) -> None:
    """Predict images and videos and write their label maps, a line for each; files of the same names are replaced.

    Args:
        out: the directory to write.
        model: model directory, or a model.onnx of `udaseg export`.
        images: files of images or videos, folders of images and dataset directories, as paths or URIs.
        overlays: whether the images under the colours of their classes are written too.

    Raises CheckpointError, DatasetError or ConfigError, and writes nothing, where the model or an image's name cannot
    be used, or there are videos and PyAV is not installed; DatasetError, when all others are written, where images
    cannot be read.
    """
    found, datasets = _listed(images, out)
    with own_directory(out, "predict"):
        predictor = load(model)
        own = predictor.depth_range
        ranges = {directory: open_index(directory).depth_range for directory in set(datasets.values())}
        for warning in (w for directory, there in ranges.items() for w in other_range(own, there, model, directory)):
            print(f"warning: {warning}", file=sys.stderr)
        failed: list[DatasetError] = []
        for image_id, uri in found.items():
            try:
                if is_video(uri):
                    _predict_video(predictor, image_id, uri, out, overlays)
                else:
                    depth_range = ranges[datasets[image_id]] if image_id in datasets else own
                    _predict_image(predictor, image_id, read_image(uri, depth_range), out, overlays)
            except DatasetError as error:
                failed.append(error if uri in str(error) else DatasetError(f"{uri}: {error}"))
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported
                    raise
                failed.append(DatasetError(f"{uri}: too large for the GPU's memory; predict it on a CPU"))
    if failed:
        kind = UnreachableError if any(isinstance(error, UnreachableError) for error in failed) else DatasetError
        if len(found) == 1:
            raise failed[0]
        raise kind("\n  ".join([f"{len(failed)} of {len(found)} images were not predicted", *map(str, failed)]))


def _predict_image(
    predictor: Predictor | OnnxPredictor, image_id: str, pixels: np.ndarray, out: str, overlays: bool
) -> None:
    file = join(out, "labels", f"{image_id}.png")
    label = _predict(predictor, pixels, file)
    drawn = join(out, "overlays", f"{image_id}.png")
    if overlays:
        write_bytes(drawn, png(overlay(pixels, label, predictor.classes)))
    else:
        remove(drawn)  # of an earlier prediction, which it may not show
    print(f"{printable(file)}: {_summary(np.bincount(label.ravel(), minlength=256), predictor.classes)}")


def _predict_video(predictor: Predictor | OnnxPredictor, video_id: str, uri: str, out: str, overlays: bool) -> None:
    """Frame after frame; of a video that breaks off what could be read is written before that is raised."""
    folder, file = join(out, "labels", video_id), join(out, "overlays", f"{video_id}.mp4")
    counts, number, told = np.zeros(256, np.int64), 0, time.monotonic()
    with open_video(uri) as video:
        with video_writer(file, video.rate) if overlays else contextlib.nullcontext() as write:
            for number, pixels in enumerate(video, 1):
                label = _predict(predictor, pixels, join(folder, f"{number - 1:06d}.png"))
                if write is not None:
                    write(np.asarray(overlay(pixels, label, predictor.classes)))
                counts += np.bincount(label.ravel(), minlength=256)
                if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                    print(f"{printable(uri)}: frame {number}{f' of {video.count}' if video.count else ''}", flush=True)
                    told = time.monotonic()
        for later in itertools.count(number) if number else ():  # of an earlier, longer video
            if not exists(frame := join(folder, f"{later:06d}.png")):
                break
            remove(frame)
        if not overlays:
            remove(file)
        if video.broken is not None:
            raise video.broken
    print(f"{printable(folder)}: {number} frames; {_summary(counts, predictor.classes)}")


def _predict(predictor: Predictor | OnnxPredictor, pixels: np.ndarray, file: str) -> np.ndarray:
    """The label map of an image, which is written."""
    label = predictor.predict(pixels).label
    write_bytes(file, png(palette_image(label, predictor.classes)))
    return label


def _listed(images: Sequence[str], out: str) -> tuple[dict[str, str], dict[str, str]]:
    """Image id -> URI, and of those in datasets -> dataset directory.

    Raises DatasetError where there is no image, two have one id or would be among the outputs."""
    found: dict[str, str] = {}
    datasets: dict[str, str] = {}
    for image_id, uri, directory in (one for word in images for one in _images(absolute(word), absolute(out))):
        if found.setdefault(image_id, uri) != uri:
            raise DatasetError(
                f"{uri} and {found[image_id]} would both be labels/{image_id}.png; predict them one after the other, "
                "with another --out"
            )
        datasets |= {} if directory is None else {image_id: directory}
    for video_id in (image_id for image_id, uri in found.items() if is_video(uri)):
        require_extra("video", found[video_id])
        if inside := [uri for image_id, uri in found.items() if image_id.startswith(f"{video_id}/")]:
            raise DatasetError(f"{inside[0]} would be among the frames of {found[video_id]}; give another --out for it")
    return found, datasets


def _images(uri: str, out: str) -> Iterator[tuple[str, str, str | None]]:
    """Id and URI of the images of a file, a folder or a dataset directory, and this directory."""
    fs, path = filesystem(uri)
    if not exists(uri):
        raise DatasetError(f"{uri}: no such file or folder")
    if lies_in(uri, out):
        raise DatasetError(f"{uri}: lies in the folder of predictions; choose an --out elsewhere")
    if fs.get_file_info(path).is_file:
        yield posixpath.splitext(posixpath.basename(path))[0], uri, None
        return
    directory = uri if exists(join(uri, "manifest.parquet")) else None
    if lies_in(out, uri) and directory is None:
        raise DatasetError(f"{out}: lies in the folder of images; choose an --out outside of it")
    unread = Counter[str]()
    try:
        for row in list_images(uri, unread=unread):
            yield row["image_id"], row["image_uri"], directory
    finally:
        for warning in passed_over(uri, unread):
            print(f"warning: {warning}", file=sys.stderr)


def _summary(pixels: np.ndarray, classes: Classes) -> str:
    """The classes that most of (256,) pixels of train ids are of, with their shares."""
    shares = pixels[: len(classes)] / pixels.sum()
    most = np.argsort(-shares, kind="stable")[:_NAMED]
    return ", ".join(f"{printable(classes.names[k])} {100 * shares[k]:.1f} %" for k in most if shares[k])
