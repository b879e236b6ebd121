"""The source in the look of the target: what is written of an image, once, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import digests, make_dataset, tiny_recipe
from torch import nn

from udaseg.config import Stage
from udaseg.data.index import open_index
from udaseg.errors import CheckpointError, DatasetError
from udaseg.job_config import Inference
from udaseg.jobs import translate as job
from udaseg.jobs.ledger import Ledger
from udaseg.jobs.translate import translate
from udaseg.training.step import RunState, build_state

SUPPORT = Path(__file__).parents[1] / "support"
STAGE = tiny_recipe("i2i_cr_small").stages[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunState, Path]:
    """A stage whose generators change images, and its directory with a checkpoint of that and one of before."""
    folder = tmp_path_factory.mktemp("stage")
    state = build_state(STAGE, 3, seed=0, init=None, device=torch.device("cpu"), bf16=False)
    names = ["checkpoint_0000002", "checkpoint_0000004"]
    for name in names:
        (folder / name).mkdir()
        state.save(folder / name / "state.pt")
        for generator in state.method.generators.values():
            nn.init.normal_(generator.last.weight, std=0.1)
    state.save(folder / names[-1] / "state.pt")
    results = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(results))
    return state, folder


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are begun, in this process, one after the other."""
    begun: list[int] = []

    def here(ledger: Ledger, phase: str, *, fn: Any, fn_constructor_args: Any) -> None:
        actor = fn(*fn_constructor_args)
        for block in sorted(set(range(ledger.blocks)) - ledger.committed(phase)):
            begun.append(block)
            actor({"block": np.array([block])})

    monkeypatch.setattr(job, "BLOCK_SIZE", 2)
    monkeypatch.setattr(job, "ensure_ray", lambda: None)
    monkeypatch.setattr(job, "actor_pool", lambda inference: ({}, 1))
    monkeypatch.setattr(job, "run_phase", here)
    return begun


def run(folder: Path, source: str, out: Path, stage: Stage = STAGE) -> None:
    translate(stage, str(folder), source=source, out=str(out), inference=Inference(gpu=False))


def test_a_translated_source_has_the_labels_and_sizes_of_the_source_and_the_generator_s_change(
    trained: tuple[RunState, Path], blocks: list[int], tmp_path: Path
) -> None:
    """The generator has learnt from images of half the size."""
    state, folder = trained
    source, stage = (
        make_dataset(tmp_path / "source", "source", train=3, val=1),
        replace(STAGE, data=replace(STAGE.data, short_side=20)),
    )
    run(folder, source, tmp_path / "out", stage)
    assert blocks == [0, 1]
    theirs, mine = open_index(source), open_index(str(tmp_path / "out"))
    assert mine.splits == {"train": [0, 3]} and mine.classes == theirs.classes
    generator = state.method.generators["target"]
    for row in range(3):
        image = theirs.image(row)
        pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None] / 255
        small = torch.nn.functional.interpolate(pixels, (20, 28), mode="bilinear", antialias=True)
        change = torch.nn.functional.interpolate(generator(small) - small, pixels.shape[2:], mode="bilinear")
        expected = ((pixels + change).clamp(0, 1) * 255)[0].permute(1, 2, 0).detach().numpy()
        assert np.abs(mine.image(row) - expected).max() <= 0.51 and np.abs(expected - image).mean() > 2
        assert np.array_equal(mine.train_ids(row), theirs.train_ids(row))
        for name in ("image_id", "height", "width", "class_pixels", "dataset"):
            assert mine.table[name][row] == theirs.table[name][row]
    assert mine.uri(0, "label_uri") == theirs.uri(0, "label_uri"), "labels stay where they are"


def test_what_is_done_is_not_done_again_and_ends_with_the_same_bytes(
    trained: tuple[RunState, Path], blocks: list[int], tmp_path: Path
) -> None:
    _, folder = trained
    source = make_dataset(tmp_path / "source", "source", train=5, val=0)
    run(folder, source, tmp_path / "out")
    whole = digests(tmp_path / "out")
    assert blocks == [0, 1, 2] and len([name for name in whole if name.startswith("images/")]) == 5

    shutil.copytree(tmp_path / "out", tmp_path / "cut")  # as a kill in the second block leaves it
    for name in (
        "manifest.parquet",
        "index.arrow",
        "images/003.png",
        *(f"job/translate/{b:08}.parquet" for b in (1, 2)),
    ):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut" / ".partial").mkdir()
    (tmp_path / "cut" / ".partial" / "x.tmp").write_bytes(b"half")
    blocks.clear()
    run(folder, source, tmp_path / "cut")
    assert blocks == [1, 2] and digests(tmp_path / "cut") == whole


def test_what_cannot_be_translated_is_named(trained: tuple[RunState, Path], blocks: list[int], tmp_path: Path) -> None:
    _, folder = trained
    source = make_dataset(tmp_path / "source", "source", train=2, val=0)
    with pytest.raises(CheckpointError, match=r"nowhere: its checkpoints are gone"):
        run(tmp_path / "nowhere", source, tmp_path / "out")
    other = replace(STAGE, method=replace(STAGE.method, generator_channels=4))
    with pytest.raises(CheckpointError, match=r"state\.pt: not of stage 'translation'.*first\.0\.weight"):
        run(folder, source, tmp_path / "other", other)
    (tmp_path / "source" / "images" / "001.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"001\.png: not an image"):
        run(folder, source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    more = make_dataset(tmp_path / "more", "source", train=3, val=0)
    with pytest.raises(DatasetError, match="begun with other images"):
        run(folder, more, tmp_path / "out")


JOB = """
import sys
from tiny import tiny_recipe
from udaseg.job_config import Inference
from udaseg.jobs import translate as job
job.BLOCK_SIZE = 2
stage, (folder, source, out) = tiny_recipe("i2i_cr_small").stages[1], sys.argv[1:]
job.translate(stage, folder, source=source, out=out, inference=Inference(gpu=False, actors=1))
"""


@pytest.mark.full
def test_a_killed_job_on_ray_is_resumed(
    trained: tuple[RunState, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL of the driver in the middle of the blocks, twice; the same bytes as in this process without Ray."""
    source, out = make_dataset(tmp_path / "source", "source", train=160, val=0), tmp_path / "out"
    words = [sys.executable, "-c", JOB, str(trained[1]), source, str(out)]
    paths = os.pathsep.join([*map(str, (SUPPORT, SUPPORT.parents[1])), os.environ.get("PYTHONPATH", "")])

    def done() -> int:
        return len(list((out / "job" / "translate").glob("*.parquet")))

    for enough in (3, 10):
        driver = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
        try:
            deadline = time.monotonic() + 500
            while done() < enough:
                assert driver.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        time.sleep(3)  # until its actors have died of it
        assert enough <= done() < 80 and not (out / "manifest.parquet").exists(), "killed too late"
    subprocess.run(words, env=os.environ | {"PYTHONPATH": paths}, check=True, timeout=500)
    assert done() == 80
    request.getfixturevalue("blocks")
    run(trained[1], source, tmp_path / "whole")
    assert digests(out) == digests(tmp_path / "whole")


def test_a_source_that_was_made_anew_is_refused(
    trained: tuple[RunState, Path], blocks: list[int], tmp_path: Path
) -> None:
    """As another dataset, with images of the same names."""
    source = make_dataset(tmp_path / "source", "source")
    run(trained[1], source, tmp_path / "out")
    shutil.rmtree(source)
    make_dataset(tmp_path / "source", "target")
    with pytest.raises(DatasetError, match="was begun with other images"):
        run(trained[1], source, tmp_path / "out")


def test_images_have_the_size_that_the_generator_has_seen(tmp_path: Path) -> None:
    """That of the stream, where it is not the stage's."""
    assert STAGE.data.source is not None
    own = replace(STAGE.data.source, short_side=STAGE.data.short_side + 8, resample="bicubic")
    for stream, side, resample in (
        (STAGE.data.source, STAGE.data.short_side, STAGE.data.resample), (own, own.short_side, "bicubic")
    ):  # fmt: skip
        stage = replace(STAGE, data=replace(STAGE.data, source=stream))
        work = job.Translation(stage=stage, checkpoint="", out=str(tmp_path), ledger=None, gpu=False)  # type: ignore[arg-type]
        assert work.size == {"short_side": side, "resample": resample}
