"""An embedded pair of domains, rendered to folders as a download of a public pair would leave them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from udaseg.data.street_domains import CLASSES, DOMAINS
from udaseg.data.street_scene import render
from udaseg.data.strict_json import dump_json
from udaseg.errors import DatasetError

RENDERER = 2
"""Raise it with every change of the pixels, so that `write_pair` never passes off an older pair as the present one."""


def write_pair(
    directory: str | Path, *, seed: int = 0, size: tuple[int, int] = (128, 256), train: int = 240, val: int = 60
) -> None:
    """Render both domains to `directory`, as a download of a public pair would leave them.

        {source,target}/{train,val}/{images,labels}/NNNN.png   RGB images; 8-bit palette labels of train ids
        classes.json                                           `CLASSES`
        synthetic.json                                         these arguments, written last

    A whole pair of the same arguments is left as it is, and an interrupted one is made anew. Raises DatasetError where
    the directory holds a pair of other arguments or anything else.
    """
    root = Path(directory)
    done, begun = root / "synthetic.json", root / "synthetic.json.tmp"
    arguments = {"renderer": RENDERER, "seed": seed, "size": list(size), "train": train, "val": val}
    marker = next((path for path in (done, begun) if path.exists()), None)
    if marker:
        if (found := json.loads(marker.read_text())) != arguments:
            raise DatasetError(f"{root}: holds a pair of {found}, not of {arguments}; delete it or name another folder")
        if marker is done:
            return
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root}: holds other files; name a new or empty directory")
    root.mkdir(parents=True, exist_ok=True)
    begun.write_text(dump_json(arguments))
    colours = [value for colour in CLASSES.palette for value in colour]
    for domain in DOMAINS:
        for split, count, first in (("train", train, 0), ("val", val, train)):
            images, labels = (root / domain / split / kind for kind in ("images", "labels"))
            images.mkdir(parents=True, exist_ok=True)
            labels.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image, label = render(domain, first + i, seed=seed, size=size)
                Image.fromarray(image).save(images / f"{i:04d}.png")
                indexed = Image.fromarray(label)
                indexed.putpalette(colours + [0] * (768 - len(colours)))  # all 256 entries keep the file at 8 bits
                indexed.save(labels / f"{i:04d}.png")
    (root / "classes.json").write_text(CLASSES.to_json())
    begun.replace(done)
