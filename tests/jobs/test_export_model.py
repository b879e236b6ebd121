"""An exported model runs without udaseg, from bytes of images to classes, and is the original's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, draw, make_checkpoint

import udaseg
from pipelines.export import main
from udaseg.checkpoints import exporting
from udaseg.checkpoints.directory import load_model
from udaseg.checkpoints.exporting import METADATA, export_network
from udaseg.errors import CheckpointError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model", 0)


def loaded(file: Path) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], dict[str, object]]:
    extra = {METADATA: ""}
    program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra[METADATA])


@pytest.mark.full
def test_of_any_size(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "--out", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "takes batches of images of any size" in first
    difference = float(second.split()[5])
    assert second.startswith("max difference to the original: ") and difference < 1e-5 and "; 0 of " in second
    exported, facts = loaded(tmp_path / "out" / "model.pt2")
    assert facts["names"] == list(CLASSES.names) and facts["palette"] == [list(c) for c in CLASSES.palette]
    assert facts["size"] is None
    predictor = udaseg.load(model, device="cpu")
    for size in ((40, 56), (56, 40), (40, 40), (97, 61), (32, 128), (300, 301)):
        images = np.stack([draw("target", n, size)[0] if min(size) >= 40 else noise(size) for n in range(2)])
        for batch in (images, images[:1]):
            labels, confidences = exported(torch.from_numpy(batch))
            for image, label, confidence in zip(batch, labels.numpy(), confidences.numpy(), strict=True):
                wanted = predictor.predict(image)
                assert label.dtype == np.uint8 and (label != wanted.label).mean() < 1e-3
                np.testing.assert_allclose(confidence, wanted.confidence, atol=1e-4)
    assert main([model, "--out", str(tmp_path / "out")]) == 2
    assert "holds an exported model already" in capsys.readouterr().err


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_of_one_size(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "--out", str(tmp_path / "out"), "--size", "48", "64"]) == 0
    assert "takes one image of 48 x 64 pixels" in capsys.readouterr().out
    exported, facts = loaded(tmp_path / "out" / "model.pt2")
    assert facts["size"] == [48, 64] and facts["names"] == list(CLASSES.names)
    image = draw("target", 0, (48, 64))[0]
    label, confidence = exported(torch.from_numpy(image)[None])
    wanted = udaseg.load(model, device="cpu").predict(image)
    assert np.array_equal(label[0].numpy(), wanted.label) and len(np.unique(wanted.label)) > 1
    np.testing.assert_allclose(confidence[0].numpy(), wanted.confidence, atol=1e-5)


def test_one_that_differs_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be where tracing or writing lost something."""
    network, card = load_model(model)
    original = exporting.ImageToLabel(network, card)

    class Spoilt:
        def __init__(self, file: io.BytesIO) -> None: ...

        def module(self) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
            return lambda image: (original(image)[0], original(image)[1] - 0.002)

    monkeypatch.setattr(exporting.torch.export, "export", lambda *args, **kwargs: None)
    monkeypatch.setattr(exporting.torch.export, "save", lambda *args, **kwargs: None)
    monkeypatch.setattr(exporting.torch.export, "load", Spoilt)
    with pytest.raises(CheckpointError, match=r"differs from the original by 2\.0e-03 in a probability"):
        export_network(network, card, (40, 40))
