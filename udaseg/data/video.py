"""Videos, a frame at a time, through PyAV: the extra `udaseg[video]`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from udaseg.data.images import MAX_PIXELS
from udaseg.data.storage import filesystem, writer
from udaseg.errors import DatasetError
from udaseg.extras import require_extra

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")


_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo"
"""FFmpeg's others include lists of files and addresses that it would open."""


def is_video(uri: str) -> bool:
    """Whether a file's name is that of a video."""
    return filesystem(uri)[1].lower().endswith(SUFFIXES)


class Video:
    """The frames of a video in their order, (H, W, 3) uint8 RGB as they are shown; one is held at a time."""

    def __init__(self, container: InputContainer, uri: str) -> None:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        self._container, self._stream, self._uri = container, stream, uri
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        """Frames a second, on average where they are not evenly spaced."""
        self.count = stream.frames or None
        """Frames, where the file says how many."""
        self.broken: DatasetError | None = None
        """Why there are no more frames, naming the video, where it has ended before its end."""

    def __iter__(self) -> Iterator[np.ndarray]:
        import av

        number, until = 0, 0.0
        try:
            for frame in self._container.decode(self._stream):
                pixels = frame.to_ndarray(format="rgb24")
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))  # a telephone held upright
                number += 1
                until = max(until, frame.time or 0.0)
        except (av.FFmpegError, OSError) as error:
            self.broken = DatasetError(f"{self._uri}: frame {number} cannot be decoded: {error.strerror or error}")
        if not number:
            self.broken = self.broken or DatasetError(f"{self._uri}: a video without a frame")
        elif self._lacks(number, until):
            self.broken = self.broken or DatasetError(f"{self._uri}: was cut off, it ends after frame {number - 1}")

    def _lacks(self, number: int, until: float) -> bool:
        """Whether frames are missing that the file's head promises: more than its rounding or an edit explains."""
        start = (self._stream.start_time or 0) * float(self._stream.time_base or 0)
        alone = len(self._container.streams) == 1  # sound may be longer than the pictures
        seconds = (self._container.duration or 0) / 1e6 if alone else 0.0
        told = max(self.count or 0, round(seconds * float(self.rate)))
        shown = max(number, round((until - start) * float(self.rate)) + 1)  # not all are evenly spaced
        return told - shown >= 2 and shown < 0.95 * told


@contextlib.contextmanager
def open_video(uri: str) -> Iterator[Video]:
    """A video to read, while the block runs.

    Raises DatasetError, naming it, where it is no video in a known format, and ConfigError where PyAV is not installed.
    """
    require_extra("video", uri)
    import av

    fs, path = filesystem(uri)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(fs.open_input_file(path))
            container = stack.enter_context(av.open(file, "r", options={"format_whitelist": _FORMATS}))
        except (av.FFmpegError, OSError) as error:
            raise DatasetError(f"{uri}: not a video in a known format: {error.strerror or error}") from None
        if not container.streams.video:
            raise DatasetError(f"{uri}: holds no pictures")
        size = container.streams.video[0].codec_context
        if size.width * size.height > MAX_PIXELS:
            raise DatasetError(f"{uri}: {size.width} x {size.height} pixels; more than {MAX_PIXELS:,} are not decoded")
        yield Video(container, uri)


@contextlib.contextmanager
def video_writer(uri: str, rate: Fraction) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends an (H, W, 3) uint8 RGB frame to an MP4 (H.264) of so many frames a second.

    The file is there, whole, when the block has ended without an error and a frame was written.
    """
    import av

    with tempfile.TemporaryDirectory() as folder:
        encoded = os.path.join(folder, "video.mp4")
        with av.open(encoded, "w") as container:
            stream = None

            def write(pixels: np.ndarray) -> None:
                nonlocal stream
                stream = stream or _h264(container, rate, pixels.shape[0], pixels.shape[1])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

            yield write
            if stream is None:
                return
            container.mux(stream.encode())
        with open(encoded, "rb") as file, writer(uri) as out:
            shutil.copyfileobj(file, out)


def _h264(container: OutputContainer, rate: Fraction, height: int, width: int) -> Any:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"  # whose chroma needs even sides
    return stream
