"""TensorBoard's event files, read as TensorBoard does: what a new file takes back is gone."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(folder: Path) -> list[Event]:
    """The events of a folder's files, in the order of their names."""
    found: list[Event] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length and its checksum, event and its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.session_log.status == SessionLog.START:
                found = [earlier for earlier in found if earlier.step < event.step]
            else:
                found.append(event)
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar."""
    return [(e.step, v.simple_value) for e in events(folder) for v in e.summary.value if v.tag == tag]


def images(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """(H, W, 3) uint8 of each image, by tag and step."""
    return {
        (v.tag, e.step): np.asarray(Image.open(io.BytesIO(v.image.encoded_image_string)).convert("RGB"))
        for e in events(folder)
        for v in e.summary.value
        if v.HasField("image")
    }
