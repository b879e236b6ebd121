"""A network is scored as by a plain loop, on two ranks too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_dataset
from two_ranks import TwoRanks

from udaseg.components.augment import strong
from udaseg.data.index import open_index
from udaseg.evaluation.checkpoint_scores import Scoring, score
from udaseg.evaluation.metrics import confusion, mean_iou
from udaseg.evaluation.model_selection import SCORES, agreement, mean_entropy, mutual_information
from udaseg.models.build import build_segmenter
from udaseg.models.inference import predict


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    return {
        "target": make_dataset(folder / "target", "target"),
        "unlabelled": make_dataset(folder / "unlabelled", "target", labelled=False),
    }


def score_tiny(
    rank: int, directory: str, images: int, told: tuple[int, int] | None = None, own: tuple[int, int] | None = None
) -> dict[str, float]:
    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head_channels=16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scoring = Scoring(directory=directory, images=images, window=told)
    found = score(network, scoring, short_side=40, window=own, device=torch.device("cpu"))
    assert network.training and all(torch.equal(v, before[name]) for name, v in network.state_dict().items())
    return found


def test_a_network_is_scored_as_by_a_plain_loop_and_left_as_it_is(pair: dict[str, str]) -> None:
    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head_channels=16).eval()
    index = open_index(pair["target"])
    start, stop = index.rows("val")
    assert stop - start == 4
    counts, flat, views = np.zeros((3, 3), np.int64), [], []
    for row in (start, stop - 1):  # two at even distances
        image = torch.tensor(index.image(row)).permute(2, 0, 1)[None].float() / 255
        view = strong(image, torch.tensor([row]), seed=0, purpose="score", jitter_probability=1, blur_probability=1)
        assert not torch.equal(image, view)
        first, second = (predict(network, x, short_side=40)[0].double() for x in (image, view))
        counts += confusion(index.train_ids(row), first.argmax(0).numpy(), 3)
        flat.append(first.flatten(1).T)
        views.append(second.flatten(1).T)
    found = score_tiny(0, pair["target"], images=2)
    assert set(found) == {"miou", *SCORES}
    assert found["miou"] == pytest.approx(mean_iou(counts))
    assert found["entropy"] == pytest.approx(float(mean_entropy(torch.cat(flat))))
    assert found["information"] == pytest.approx(float(mutual_information(torch.cat(flat))))
    assert found["agreement"] == pytest.approx(float(agreement(torch.cat(flat), torch.cat(views))))
    windows = score_tiny(0, pair["target"], images=2, told=(16, 24))
    assert windows["entropy"] != found["entropy"] and score_tiny(0, pair["target"], 2, own=(16, 24)) == windows
    assert score_tiny(0, pair["target"], 2, told=(16, 24), own=(8, 8)) == windows, "what is told goes first"
    unlabelled = score_tiny(0, pair["unlabelled"], images=2)
    assert set(unlabelled) == set(SCORES) and unlabelled["snd"] == found["snd"]


def test_two_ranks_score_as_one(two_ranks: TwoRanks, pair: dict[str, str]) -> None:
    one = score_tiny(0, pair["target"], images=3)
    for found in two_ranks.run(score_tiny, pair["target"], 3):
        assert found == pytest.approx(one, rel=1e-9)
