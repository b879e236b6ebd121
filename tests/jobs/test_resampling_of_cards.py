"""What a model card says of resizing is how evaluation, labelling and the verdict resize, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, make_checkpoint, make_dataset

from udaseg.checkpoints.directory import load_model, read_card, save_model
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


@pytest.mark.parametrize("how", ["bilinear", "antialias"])
def test_the_card_says_how_images_are_resized(tmp_path: Path, how: Resample) -> None:
    directory = make_dataset(tmp_path / "data", "target", train=1, val=2)
    uri = make_checkpoint(tmp_path / "model", seed=3)
    network = load_model(uri)[0]
    save_model(tmp_path / "model", network, replace(read_card(uri), short_side=16, resample=how))
    card = read_card(uri)
    assert card.size() == {"short_side": 16, "resample": how}

    index = open_index(directory)
    start, stop = index.rows("val")
    pixels = [to_pixels(np.array(index.image(row))[None], torch.device("cpu")) for row in range(start, stop)]
    expected = [predict(network, image, short_side=16, resample=how) for image in pixels]
    inference = Inference(gpu=False)
    counts = Evaluator([uri], directory, inference, 1)({"id": np.arange(start, stop)})["counts"][0, 0]
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
    feature = _features(network, pixels[0], card)
    torch.testing.assert_close(feature, network(resized(pixels[0], 16, how), "source").embedding)
    other = predict(network, pixels[0], short_side=16, resample="bicubic")
    assert not torch.allclose(other, expected[0], atol=1e-3), "the filter is seen"
