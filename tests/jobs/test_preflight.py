"""What is found out before a run: resources, streams, workers, classes, crops, checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, make_checkpoint, make_dataset, tiny_recipe

from udaseg.config import Recipe
from udaseg.data.taxonomies import remap
from udaseg.errors import CheckpointError, ConfigError, DatasetError
from udaseg.job_config import Cluster
from udaseg.jobs import preflight
from udaseg.jobs.preflight import check, check_resumable, lacking_resources

ONE = Cluster(workers=1, gpu=False, threads=1)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str | None]:
    source, target = (make_dataset(tmp_path / name, name, labelled=name == "source") for name in ("source", "target"))
    return {"source": source, "target": target}


def test_what_a_cluster_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"CPU": 3.0, "GPU": 1.0}
    monkeypatch.setattr(preflight.ray, "cluster_resources", lambda: has)
    two = Cluster(workers=2, gpu=True)
    assert lacking_resources(two) == "2 GPU (it has 1)"
    assert lacking_resources(replace(two, min_workers=1)) == lacking_resources(replace(two, gpu=False)) == ""
    assert lacking_resources(replace(two, gpu=False, cpus_per_worker=2)) == "5 CPU (it has 3)"
    has.clear()
    assert lacking_resources(two) == "3 CPU (it has 0) and 2 GPU (it has 0)"


def test_a_gpu_is_asked_for_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from udaseg.jobs import resources

    monkeypatch.setattr(resources, "has_gpu", lambda: False)
    with pytest.raises(ConfigError, match=r"--cluster\.gpu: torch finds no GPU"):
        check(tiny_recipe("source_only_small"), {"source": "/nowhere", "target": None}, Cluster(gpu=True))


def test_blocks_are_asked_for_before_a_run_that_checkpoints_them(data: dict[str, str | None]) -> None:
    cluster = replace(ONE, grad_checkpointing=True)
    with pytest.raises(ConfigError, match=r"^stages\.0: cluster\.grad_checkpointing is .* has batch norms"):
        check(tiny_recipe("dacs_small"), data, cluster)
    check(tiny_recipe("dacs_small", model__backbone="test_vit"), data, cluster)


@pytest.mark.parametrize("colours", [False, True])
def test_a_network_has_no_class_for_pixels_of_several(colours: bool, tmp_path: Path) -> None:
    """Whether the dataset's labels hold ids or colours."""
    names = ["ground", "sky", "box"]
    theirs = replace(CLASSES, names=("road", "sky", "thing"))
    if colours:
        theirs = replace(theirs, color_to_train={"1,1,1": 0, "2,2,2": 1, "3,3,3": 2})
    given = {
        "names": names,
        "palette": CLASSES.palette,
        "map": {"road": "ground", "sky": "sky", "thing": ["box", "sky"]},
    }
    mapped = remap(theirs, json.dumps(given), "mapping.json")
    source = make_dataset(tmp_path / "source", "source")
    (tmp_path / "source" / "classes.json").write_text(mapped.to_json())
    found = check(tiny_recipe("source_only_small"), {"source": source, "target": None}, Cluster(workers=1, gpu=False))
    assert found == replace(CLASSES, names=tuple(names))


def streaming(data_recipe: str = "source_only_small", **changes: Any) -> Recipe:
    recipe = tiny_recipe(data_recipe)
    stage = recipe.stages[-1]
    return replace(recipe, stages=(replace(stage, init_from=None, data=replace(stage.data, **changes)),))


def test_what_a_stream_reads_must_be_there(data: dict[str, str | None]) -> None:
    """Found by `check`, not by a worker after an hour."""

    def checked(name: str, **directories: str | None) -> None:
        stage = tiny_recipe(name).stages[-1]
        alone = replace(stage, init_from=None, pseudo_label=None)
        check(Recipe(name="x", stages=(alone,)), {"source": None, "target": None, **directories}, ONE)

    source, target = data["source"], data["target"]
    with pytest.raises(DatasetError, match=r"target: stage .* needs labels, and train images have none"):
        checked("tada_small", source=target, target=source)  # "candidates"
    with pytest.raises(DatasetError, match=r"target: stage .* reads pseudo-labels; .* wrote$"):
        checked("ldbe_small", target=target)
    with pytest.raises(DatasetError, match=r"target: stage .* reads pseudo-labels; .*, with --rules\.distribution$"):
        checked("proda_small", source=source, target=target)
    with pytest.raises(DatasetError, match=r"source: no class_places\.arrow"):
        checked("camix_small", source=source, target=target)


def test_every_number_of_workers_that_training_may_go_on_with_divides_the_batch(data: dict[str, str | None]) -> None:
    recipe, only = tiny_recipe("source_only_small"), {"source": data["source"], "target": None}
    check(recipe, only, replace(ONE, workers=2, min_workers=1))
    with pytest.raises(ConfigError, match="batch_size 4 cannot be split among 3 workers in whole groups of 1"):
        check(recipe, only, replace(ONE, workers=4, min_workers=2))
    with pytest.raises(ConfigError, match="among 4 workers in whole groups of 2"):
        check(streaming(group_size=2), only, replace(ONE, workers=4))


def test_rare_classes_count_from_0(data: dict[str, str | None]) -> None:
    source = replace(tiny_recipe("source_only_small").stages[0].data.source, sampling="rare_class", rare_classes=(-1,))
    with pytest.raises(ConfigError, match=r"rare_classes has -1, but the dataset has 3 classes"):
        check(streaming(source=source), {"source": data["source"], "target": None}, ONE)


def test_a_checkpoint_of_another_network_is_refused(data: dict[str, str | None], tmp_path: Path) -> None:
    init = make_checkpoint(tmp_path / "model", 0)
    recipe = tiny_recipe("source_only_small", stages__0__init_from=init)
    only = {"source": data["source"], "target": None}
    check(recipe, only, ONE)
    with pytest.raises(ConfigError, match=r"stages\.0: "):
        check(tiny_recipe("source_only_small", stages__0__init_from=init, model__head_channels=8), only, ONE)


def test_crops_are_no_larger_than_the_backbone_takes(
    data: dict[str, str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    class Network:
        largest, feature_stride, align_corners = (32, 64), 4, False

    def look(crop: tuple[int, int], own: tuple[int, int] | None = None) -> None:
        recipe = streaming(crop=crop)
        stage = recipe.stages[0]
        source = replace(stage.data.source, crop=own)
        preflight._check_crop(replace(stage, data=replace(stage.data, source=source)), Network())  # type: ignore[arg-type]

    look((32, 64))
    look((32, 64), (16, 16))
    for crop, own, name in (
        ((33, 64), None, "data.crop"),
        ((32, 65), None, "data.crop"),
        ((16, 16), (64, 32), "data.source.crop"),
    ):
        with pytest.raises(ValueError, match=rf"{name} .* is larger than the \(32, 64\) that"):
            look(crop, own)


def test_of_a_stage_the_last_checkpoint_and_of_a_done_one_its_model_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    for step in (2, 4):
        (folder / f"checkpoint_{step:07d}").mkdir(parents=True)
        torch.save({"method": {"a": torch.zeros(1)}, "step": step}, folder / f"checkpoint_{step:07d}" / "state.pt")
    names = [{"checkpoint_dir_name": f"checkpoint_{step:07d}"} for step in (4, 2)]
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps({"checkpoint_results": names}))
    (folder / "checkpoint_0000002" / "state.pt").write_bytes(b"cut off")  # which nothing goes on from
    check_resumable([str(folder)])
    (folder / "checkpoint_0000004" / "state.pt").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"checkpoint_0000004/state\.pt"):
        check_resumable([str(folder)])
    make_checkpoint(folder / "model", 0)
    check_resumable([str(folder)])
    (folder / "model" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        check_resumable([str(folder)])
