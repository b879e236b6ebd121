"""`udaseg pseudo-label` of a folder part of which cannot be read, for a while or for good."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from tiny import CLASSES, digests, draw, make_checkpoint

from pipelines.pseudo_label import main
from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset
from udaseg.jobs.pseudo_label import job


def failures(out: Path) -> dict[str, tuple[str, str]]:
    rows = json.loads((out / "failed.json").read_text())
    return {row["image_id"]: (row["kind"], row["reason"].partition(": ")[2]) for row in rows}


@pytest.mark.full
def test_a_store_that_comes_back(tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    images, far = tmp_path / "images", tmp_path / "far"
    rows = []
    for n in range(6):
        folder = far if n in (1, 4) else images
        folder.mkdir(exist_ok=True)
        Image.fromarray(draw("target", n)[0]).save(folder / f"{n}.png")
        rows.append({"image_id": str(n), "image_uri": str(folder / f"{n}.png"), "height": 40, "width": 56})
        rows[-1] |= {"dataset": "d", "split": "train"}
    (images / "2.png").write_bytes(b"broken")
    data = tmp_path / "data"
    write_dataset(str(data), pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES)
    words = ["--checkpoint", make_checkpoint(tmp_path / "model", 0), "--images", str(data), "--block-size", "2"]
    words += ["--inference.no-gpu", "--rules.share", "0.3", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*words, str(whole)]) == 0
    far.rename(tmp_path / "away")
    for _ in range(2):
        assert main([*words, str(out)]) == 1
        assert f"{out}: 2 images could not be reached and have no label" in capsys.readouterr().err
        assert {i: kind for i, (kind, _) in failures(out).items()} == {
            "1": "unreachable", "2": "unreadable", "4": "unreachable"
        }  # fmt: skip
        assert read_manifest(str(out))["image_id"].to_pylist() == ["0", "3", "5"], "the others have their labels"
    (tmp_path / "away").rename(far)
    assert main([*words, str(out)]) == 0
    assert digests(out) == digests(whole)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.p*")}
    assert main([*words, str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.p*")} == before, "nothing is left to do"


@pytest.mark.full
def test_an_image_that_nobody_answers_for_is_not_the_one_that_all_nodes_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    of_no_store = f"{tmp_path}/{'x' * 300}.png"  # asking for it is an error, as of a store that is down
    with pytest.raises(OSError, match="too long"):
        job.exists(of_no_store)
    assert job._first_there([of_no_store, f"{tmp_path}/gone.png", f"{tmp_path}/a.png"]) == [f"{tmp_path}/a.png"]
    assert job._first_there([of_no_store]) == []


def test_names_and_links_of_strangers_do_not_stop_the_rest(tmp_path: Path, ray_session: None) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a", "[b]", "50%20 c", "Straße"):
        Image.fromarray(draw("target", 0)[0]).save(images / f"{name}.png")
    (images / "annexed.png").symlink_to("/nowhere/at/all.png")
    Path(os.fsdecode(os.fsencode(images) + b"/caf\xe9.png")).write_bytes(b"x")
    words = ["--checkpoint", make_checkpoint(tmp_path / "model", 0), "--inference.no-gpu"]
    assert main([*words, "--images", str(images), "--out", str(out)]) == 0
    assert set(failures(out)) == {"annexed", "caf\\xe9"}
    assert set(read_manifest(str(out))["image_id"].to_pylist()) == {"a", "[b]", "50%20 c", "Straße"}
    # Removed, and other images under the same --out in the same process.
    shutil.rmtree(out)
    (images / "a.png").rename(images / "z.png")
    assert main([*words, "--images", str(images), "--out", str(out), "--block-size", "1"]) == 0
    assert "z" in read_manifest(str(out))["image_id"].to_pylist()
