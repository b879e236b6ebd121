"""As a model card says evaluation, labelling, the verdict and single predictions see images, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CLASSES, make_checkpoint, make_dataset

from udaseg.checkpoints.directory import load_model, read_card, save_model
from udaseg.checkpoints.predictor import load
from udaseg.config import PseudoLabel
from udaseg.data.index import open_index
from udaseg.evaluation.metrics import confusion
from udaseg.job_config import Inference
from udaseg.jobs.adapt.inputs import Inputs
from udaseg.jobs.adapt.judging import judged_here
from udaseg.jobs.evaluate import Evaluator
from udaseg.jobs.ledger import Ledger
from udaseg.jobs.pseudo_label.actors import PredictActor, _features
from udaseg.jobs.pseudo_label.tasks import Work
from udaseg.models.inference import predict, resized, to_pixels
from udaseg.types import Resample


@pytest.mark.parametrize(("how", "window"), [("bilinear", None), ("antialias", None), ("antialias", (16, 12))], ids=str)
def test_the_card_says_how_images_are_seen(tmp_path: Path, how: Resample, window: tuple[int, int] | None) -> None:
    directory = make_dataset(tmp_path / "data", "target", train=1, val=2)
    uri = make_checkpoint(tmp_path / "model", seed=3)
    network = load_model(uri)[0]
    size: dict[str, Any] = {"short_side": 16, "resample": how}
    save_model(tmp_path / "model", network, replace(read_card(uri), **size, window=window, overlap=0.25))
    card = read_card(uri)
    assert card.size() == size and card.views() == size | {"window": window, "overlap": 0.25}

    index = open_index(directory)
    start, stop = index.rows("val")
    pixels = [to_pixels(np.array(index.image(row))[None], torch.device("cpu")) for row in range(start, stop)]
    expected = [predict(network, image, **size, window=window, overlap=0.25) for image in pixels]
    inference = Inference(gpu=False)
    counts = Evaluator([uri], directory, inference, 1)({"id": np.arange(start, stop)})["counts"][0, 0, 0]
    found = [p[0].argmax(0).numpy() for p in expected]
    assert np.array_equal(
        counts, sum(confusion(index.train_ids(row), f, 3) for row, f in zip(range(start, stop), found, strict=True))
    )
    (judged,) = judged_here([uri], Inputs(None, directory), images=2, inference=inference)
    assert judged.truth is not None and np.array_equal(judged.truth.sum(0), counts)

    ledger = Ledger.__new__(Ledger)  # no block is read
    work = Work(
        checkpoints=(uri,), out=str(tmp_path), ledger=ledger, classes=CLASSES, rules=PseudoLabel(), inference=inference
    )
    probability = PredictActor(work, 1)._predict(np.array(index.image(start))[None])[0]
    torch.testing.assert_close(probability, expected[0])
    alone = load(uri).predict(np.array(index.image(start)))
    torch.testing.assert_close(torch.tensor(alone.confidence), expected[0][0].amax(0))
    told = PredictActor(replace(work, inference=replace(inference, window=(16, 16), overlap=0.0)), 1)
    probability = told._predict(np.array(index.image(start))[None])[0]
    windows = predict(network, pixels[0], **size, window=(16, 16), overlap=0.0)
    torch.testing.assert_close(probability, windows, msg="what is told goes first")
    assert not torch.allclose(windows, expected[0], atol=1e-3), "windows are seen"
    feature = _features(network, pixels[0], card)
    torch.testing.assert_close(feature, network(resized(pixels[0], 16, how), "source").embedding)
    other = predict(network, pixels[0], short_side=16, resample="bicubic", window=window, overlap=0.25)
    assert not torch.allclose(other, expected[0], atol=1e-3), "the filter is seen"
