"""Model directories: a saved model is the same network, a damaged one is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import images, perturb_target

from udaseg.checkpoints.directory import ModelCard, load_model, read_card, save_model
from udaseg.config import Model
from udaseg.data.classes import Classes
from udaseg.errors import CheckpointError
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import PerDomain, Segmenter

_CLASSES = Classes(names=("road", "car", "sky"), palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)), raw_to_train={7: 0, 26: 1})


def _saved(directory: Path, per_domain: PerDomain = "stem") -> tuple[Segmenter, ModelCard]:
    model = Model(backbone="resnet10t", head="aspp", head_branches=(6, 12), per_domain=per_domain)
    card = ModelCard(model=model, classes=_CLASSES, short_side=128, recipe="bcl", stage="round-1", step=7)
    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head="aspp", head_branches=(6, 12), per_domain=per_domain)
    perturb_target(network)
    network.train()(images(), "source")
    save_model(directory, network, card)
    return network.eval(), card


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_a_saved_model_is_the_same_network(tmp_path: Path, per_domain: PerDomain) -> None:
    network, card = _saved(tmp_path, per_domain)
    loaded, read = load_model(str(tmp_path))
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert read == replace(card, image_sizes=network.image_sizes, weights_sha256=digest)
    assert not loaded.training
    for domain in ("source", "target"):
        assert torch.equal(loaded(images(), domain).logits, network(images(), domain).logits)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model directory"):
        read_card(str(tmp_path))


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    network, card = _saved(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(str(tmp_path))
    save_model(tmp_path, network, replace(card, model=replace(card.model, head_branches=(6,))))
    with pytest.raises(CheckpointError, match="lacks"):
        load_model(str(tmp_path))
    for text in ("{}", "nonsense", "[]", '{"model": 3}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match="not a model card"):
            load_model(str(tmp_path))


def test_a_number_of_old_classes_that_cannot_be_is_refused(tmp_path: Path) -> None:
    _, card = _saved(tmp_path / "model")
    text = (tmp_path / "model" / "model.json").read_text()
    for number, fits in ((2, True), (3, False), (0, False)):
        (tmp_path / "model" / "model.json").write_text(text.replace('"old_classes": null', f'"old_classes": {number}'))
        if fits:
            assert read_card(str(tmp_path / "model")).old_classes == number and card.old_classes is None
        else:
            with pytest.raises(CheckpointError, match=f"old_classes is {number}; 1 to 2 are possible"):
                read_card(str(tmp_path / "model"))
