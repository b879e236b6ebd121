"""Networks on images: what the verdict is made of, and the choice of images to label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from udaseg.checkpoints.directory import load_model
from udaseg.data.index import open_index
from udaseg.evaluation.metrics import confusion
from udaseg.evaluation.to_label import layout
from udaseg.evaluation.verdict import Judged, in_the_look_of, strong_view
from udaseg.job_config import Inference
from udaseg.jobs.adapt.inputs import HELD_OUT, Inputs
from udaseg.jobs.ray_session import lazily, track
from udaseg.jobs.resources import actor_pool
from udaseg.models.inference import answering_device, predict, to_pixels


class _Networks:
    """Ray Data actor: columns of rows -> what each network does on them."""

    what = "on the target"

    def __init__(self, checkpoints: Sequence[str], inputs: Inputs, inference: Inference, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = answering_device(inference.gpu)
        self.networks = [load_model(uri) for uri in checkpoints]
        for network, _ in self.networks:
            network.to(self.device)
        self.inputs, self.inference = inputs, inference
        self.target = open_index(inputs.target)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self.judged(*row) for row in zip(*block.values(), strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def judged(self, *row: int) -> dict[str, np.ndarray]:
        """Of one image, arrays whose first axis is the networks'."""
        raise NotImplementedError

    def predicted(self, image: torch.Tensor) -> Iterator[np.ndarray]:
        """(K, H, W) probabilities of an image, (1, 3, H, W) in [0, 1], by one network after the other."""
        for network, card in self.networks:
            yield predict(network, image, **card.views(**self.inference.views()))[0].cpu().numpy()

    def classes(self, image: torch.Tensor) -> list[np.ndarray]:
        """(H, W) of each network, the probabilities of one of them held at a time."""
        return [probability.argmax(0).astype(np.uint8) for probability in self.predicted(image)]

    def pixels(self, image: np.ndarray) -> torch.Tensor:
        return to_pixels(np.array(image[None]), self.device)  # a copy: a decoder's memory is read-only

    def counts(self, references: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> np.ndarray:
        """(N, K, K) int64."""
        number = len(self.target.classes)
        return np.stack([confusion(a, b, number) for a, b in zip(references, predictions, strict=True)])


class _OnTarget(_Networks):
    """A row of the target -> "views", and "truth" where it is labelled."""

    def judged(self, *row: int) -> dict[str, np.ndarray]:
        (number,) = map(int, row)
        image = self.pixels(self.target.image(number))
        found = self.classes(image)
        out = {"row": np.array(number), "views": self.counts(found, self.classes(strong_view(image, number)))}
        if not self.target.lacks(HELD_OUT, "label_uri"):
            out["truth"] = self.counts([self.target.train_ids(number)] * len(found), found)
        return out


class _OnSource(_Networks):
    """A row of the source, and one of the target whose look it is given -> "source" and "styled"."""

    what = "on the source"

    def judged(self, *row: int) -> dict[str, np.ndarray]:
        number, like = map(int, row)
        assert self.inputs.source is not None
        source = open_index(self.inputs.source)
        image, truth = source.image(number), [source.train_ids(number)] * len(self.networks)
        styled = in_the_look_of(image, self.target.image(like))
        return {
            "row": np.array(number),
            "source": self.counts(truth, self.classes(self.pixels(image))),
            "styled": self.counts(truth, self.classes(self.pixels(styled))),
        }


class _Survey(_Networks):
    """A row of the target -> its mean "entropy" and the "layout" of its classes, by one network."""

    def judged(self, *row: int) -> dict[str, np.ndarray]:
        (number,) = map(int, row)
        (probability,) = self.predicted(self.pixels(self.target.image(number)))
        entropy = torch.special.entr(torch.from_numpy(probability)).sum(0).mean()
        return {"row": np.array(number), "entropy": entropy.numpy(), "layout": layout(probability)}


def judge(checkpoints: Sequence[str], inputs: Inputs, *, images: int, inference: Inference) -> list[Judged]:
    """What each network does on held-out images of both domains, at most `images` of each."""
    parts: dict[str, np.ndarray] = {}
    for actor, columns in _held_out(inputs, images):
        parts |= _over(actor, columns, f"judged {actor.what}", checkpoints, inputs, inference)
    return _by_network(parts, len(checkpoints))


def judged_here(checkpoints: Sequence[str], inputs: Inputs, *, images: int, inference: Inference) -> list[Judged]:
    """As `judge`, in this process and without Ray."""
    parts: dict[str, np.ndarray] = {}
    for actor, columns in _held_out(inputs, images):
        parts |= actor(checkpoints, inputs, inference, threads=torch.get_num_threads())(columns)
    return _by_network(parts, len(checkpoints))


def _held_out(inputs: Inputs, images: int) -> list[tuple[type[_Networks], dict[str, np.ndarray]]]:
    """What is looked at by which actor."""
    rows = _spread(inputs.target, HELD_OUT, images)
    looked: list[tuple[type[_Networks], dict[str, np.ndarray]]] = [(_OnTarget, {"row": rows})]
    if inputs.source is not None:
        own = _spread(inputs.source, HELD_OUT, images)
        looked.append((_OnSource, {"row": own, "like": rows[np.arange(len(own)) % len(rows)]}))
    return looked


def _by_network(parts: Mapping[str, np.ndarray], count: int) -> list[Judged]:
    return [Judged(**{name: part[:, n] for name, part in parts.items() if name != "row"}) for n in range(count)]


def survey(checkpoint: str, inputs: Inputs, *, images: int, inference: Inference) -> dict[str, np.ndarray]:
    """Of the target's training images, at most `images`: "row", "entropy" (N,) in nats, "layout" (N, D)."""
    rows = _spread(inputs.target, "train", images)
    return _over(_Survey, {"row": rows}, "looked at, for labelling", [checkpoint], inputs, inference)


def _spread(directory: str, split: str, images: int) -> np.ndarray:
    """Rows of a split at even distances, `images` at most."""
    start, stop = open_index(directory).rows(split)
    return np.linspace(start, stop - 1, min(images, stop - start)).round().astype(np.int64)


def _over(
    actor: type[_Networks],
    columns: Mapping[str, np.ndarray],
    what: str,
    checkpoints: Sequence[str],
    inputs: Inputs,
    inference: Inference,
) -> dict[str, np.ndarray]:
    """What an actor says of all rows, in their order."""
    options, threads = actor_pool(inference)
    count = len(columns["row"])
    items: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    blocks = (
        ray.data.from_items(items, override_num_blocks=-(-count // 8))
        .map_batches(
            lazily(actor),
            fn_constructor_args=(list(checkpoints), inputs, inference, threads),
            batch_size=None,
            batch_format="numpy",
            **options,
        )
        .iter_batches(batch_size=None, batch_format="numpy")
    )
    found = list(track(blocks, count, what, size=lambda block: len(block["row"])))
    order = np.argsort(np.concatenate([block["row"] for block in found]), kind="stable")
    return {name: np.concatenate([block[name] for block in found])[order] for name in found[0]}
