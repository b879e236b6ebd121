"""What a run shows of target images: the right pictures, no trace in training, and TensorBoard's files of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from event_files import images
from PIL import Image
from toy import CPU, METHODS, SEED, changed, make_columns, make_stage, make_state, snapshot, warm_up

from udaseg.config import Stream
from udaseg.data.classes import Classes
from udaseg.data.pictures import cut, png, sheet
from udaseg.data.storage import write_bytes
from udaseg.reports.progress import Board
from udaseg.training.pictures import PICTURES, draw_pictures

CLASSES = Classes(names=("a", "b", "c", "d"), palette=((9, 0, 0), (0, 99, 0), (0, 0, 199), (250, 250, 0)))
HOW: dict[str, Any] = {"step": 5, "seed": SEED, "device": CPU}


def test_pictures_are_those_of_the_method_which_stays_as_it_was() -> None:
    stage = make_stage("dacs")
    stage = replace(stage, data=replace(stage.data, target=Stream(labels="none"), flip=False))
    columns = [make_columns(), make_columns(first=2)]
    for batch in columns:
        del batch["target_label"]
    method = make_state(stage).method
    warm_up(method.student)
    before = snapshot(method)
    drawn = draw_pictures(method, columns, stage, CLASSES, **HOW)
    again = draw_pictures(method, columns, stage, CLASSES, **HOW)
    assert not changed(before, method)
    assert list(drawn) == ["input", "mixture", "pseudo_label", "prediction"]
    assert all(len(pictures) == PICTURES for pictures in drawn.values())
    pixels = {name: [np.asarray(picture) for picture in pictures] for name, pictures in drawn.items()}
    assert all((np.asarray(x) == y).all() for name in drawn for x, y in zip(again[name], pixels[name], strict=True))

    shown = np.concatenate([batch["target_image"] for batch in columns])
    source = np.concatenate([batch["source_image"] for batch in columns])
    assert all((found == image).all() for found, image in zip(pixels["input"], shown, strict=False))
    colours = torch.tensor(CLASSES.palette)
    method.eval()
    with torch.no_grad():
        image = torch.from_numpy(shown[:PICTURES]).permute(0, 3, 1, 2).float() / 255
        label = method.predictor(image, "target", detail="everywhere").logits.argmax(1)
    assert (np.stack(pixels["prediction"]) == colours[label].numpy()).all()
    assert {tuple(c) for c in np.stack(pixels["pseudo_label"]).reshape(-1, 3).tolist()} <= {*CLASSES.palette}
    # the mixture has blocks of the source and of the target, in other colours by jitter and blur
    for found, mine, other in zip(pixels["mixture"], shown, source, strict=False):
        same, theirs = (np.abs(found.astype(int) - x).mean((2,)) for x in (mine, other))
        assert (same < theirs).mean() > 0.05 and (theirs < same).mean() > 0.05


@pytest.mark.parametrize(("name", "column"), [("oracle", "label"), ("ldbe_enhancement", "pseudo_label")])
def test_what_data_says_of_the_target_is_what_is_taught(name: str, column: str) -> None:
    stage, columns = make_stage(name), make_columns()
    stage = replace(stage, data=replace(stage.data, flip=False, target=replace(
        stage.data.target, labels="true" if column == "label" else "pseudo")))  # fmt: skip
    drawn = draw_pictures(make_state(stage).method, [columns], stage, CLASSES, **HOW)
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = CLASSES.palette
    for picture, label in zip(drawn[column], columns["target_label"], strict=True):
        assert (np.asarray(picture) == palette[label]).all()
    assert ("mixture" in drawn) == (name != "oracle")


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("ucd",)])
def test_every_method_is_drawn_without_a_trace(name: str) -> None:
    stage = make_stage(name)
    method = make_state(stage).method
    before = snapshot(method)
    drawn = draw_pictures(method, [make_columns()], stage, CLASSES, **HOW)
    assert {"input", "prediction"} <= drawn.keys() and not changed(before, method)


@pytest.mark.parametrize("content", [b"", b"garbage", "a picture", "half a sheet"])
def test_what_is_no_sheet_is_not_cut(content: bytes | str) -> None:
    if isinstance(content, str):
        tile = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
        content = png(tile) if content == "a picture" else (whole := sheet({"image": [tile, tile]}))[: len(whole) // 2]
    with pytest.raises(ValueError, match="not a sheet of pictures"):
        cut(content)


def test_a_sheet_is_cut_into_what_it_was_made_of() -> None:
    rng = np.random.default_rng(0)
    wide = {name: [Image.fromarray(rng.integers(0, 255, (40, 600, 3), np.uint8)) for _ in "ab"] for name in "xyz"}
    found = cut(sheet(wide))
    assert [*found] == ["x", "y", "z"] and {x.shape for one in found.values() for x in one} == {(34, 512, 3)}
    small = {"x": [Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8))]}
    assert (cut(sheet(small))["x"][0] == np.asarray(small["x"][0])).all()
    with pytest.raises(ValueError, match="not a sheet"):
        cut(png(Image.new("RGB", (4, 4))))


def test_event_files_have_the_pictures_of_every_checkpoint(tmp_path: Path) -> None:
    def picture(value: int) -> Image.Image:
        return Image.new("RGB", (6, 4), (value, 2 * value, 0))

    run, folder = str(tmp_path / "run"), tmp_path / "board"
    rows = [{"stage": 1, "name": "adapt", "step": step, "ce": 0.5} for step in (10, 20)]
    board = Board(str(folder), run)
    for step in (10, 20):
        drawn = {"input": [picture(1), picture(2)], "prediction": [picture(step), picture(step + 1)]}
        write_bytes(f"{run}/pictures/1-adapt/{step:07d}.png", sheet(drawn))
        board.update(rows[: step // 10])
    board.close()
    tags = [f"target_{i}/{what}" for i in (0, 1) for what in ("input", "prediction")]
    found = images(folder / "1-adapt")
    assert sorted(found) == sorted((tag, step) for tag in tags for step in (10, 20))
    assert found["target_1/prediction", 20][3, 5].tolist() == [21, 42, 0]
    assert found["target_0/input", 10].shape == (4, 6, 3)
    # the run goes on from step 10: the picture of step 20 is drawn again, that of step 10 stays
    write_bytes(f"{run}/pictures/1-adapt/0000020.png", sheet({"input": [picture(7)]}))
    resumed = Board(str(folder), run, rows)
    resumed.update([rows[0], rows[1] | {"ce": 0.25}])
    resumed.close()
    found = images(folder / "1-adapt")
    assert found.keys() == {("target_0/input", 20), *((tag, 10) for tag in tags)}
    assert found["target_0/input", 20][0, 0].tolist() == [7, 14, 0]
