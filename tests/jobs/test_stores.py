"""Images, checkpoint and labels in buckets of S3's and Google's kind: what comes out is what local files give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import draw, listed, make_checkpoint, make_dataset, tiny_recipe, tree, upload

from pipelines.pseudo_label import main
from udaseg.checkpoints.directory import MODEL_FILE
from udaseg.data.folders import files
from udaseg.data.index import open_index
from udaseg.data.manifest import read_manifest
from udaseg.data.storage import children, exists, join, read_bytes, remove, write_bytes
from udaseg.job_config import Cluster
from udaseg.jobs.evaluate import evaluate
from udaseg.jobs.train import train

DOMAINS = ("source", "target")


def test_a_bucket_is_listed_as_a_folder_is(store: Callable[[str, str], str], tmp_path: Path) -> None:
    for name in ("b.png", "a/x y+z%.png", "a/b/c.jpg", "a.txt", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    uri = store("listing", "below/here")
    upload(tmp_path, uri)
    local, remote = files(str(tmp_path), [".png", ".jpg"]), files(uri, [".png", ".jpg"])
    assert [name for name, _ in remote] == [name for name, _ in local] == ["a/b/c", "a/x y+z%", "b"]
    assert all(read_bytes(there) == read_bytes(here) for (_, there), (_, here) in zip(remote, local, strict=True))


@pytest.mark.full
def test_labels_in_a_bucket_are_those_of_local_files(
    store: Callable[[str, str], str], tmp_path: Path, ray_session: None
) -> None:
    images, checkpoint = tmp_path / "images", tmp_path / "model"
    make_checkpoint(checkpoint, 0)
    (images / "drive").mkdir(parents=True)
    for n in range(6):
        Image.fromarray(draw("target", n)[0]).save(images / "drive" / f"{n} +%.png")
    (images / "broken.png").write_bytes(b"broken")
    upload(images, store("fleet", "images"))
    upload(checkpoint, store("fleet", "model"))
    more = ["--block-size", "2", "--inference.no-gpu", "--layouts", "coco_stuff"]
    out = store("labels", "first/run")
    there = ["--images", store("fleet", "images"), "--checkpoint", store("fleet", "model"), "--out", out, *more]
    assert main(there) == 0
    assert main(["--images", str(images), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), *more]) == 0

    remote, local = tree(out), tree(str(tmp_path / "out"))
    assert remote.keys() == local.keys()
    same = [name for name in local if name.endswith(".png")]
    assert len(same) == 5 * 6 and all(remote[name] == local[name] for name in same)
    index = open_index(out)  # as `train` reads it
    start, stop = index.rows("train")
    assert stop - start == 6 and read_manifest(out)["image_id"].to_pylist()[0] == "drive/0 +%"
    assert np.array_equal(index.image(start), np.asarray(Image.open(images / "drive" / "0 +%.png")))
    assert index.train_ids(start).shape == (40, 56)

    # A job that was killed after its first block of the second pass goes on where it was.
    for name in ("manifest.parquet", "report.json", "labels/drive/2 +%.png", "job/label/00000001.parquet"):
        assert exists(join(out, *name.split("/")))
        remove(join(out, *name.split("/")))
    assert main(there) == 0
    assert tree(out) == remote


def test_a_google_bucket_lists_folders_that_no_object_stands_for(gs: Callable[[str, str], str]) -> None:
    uri = gs("folders", "here")
    for name in ("b.png", "b.png/inside.png", "a/deeper/c.png"):
        write_bytes(join(uri, *name.split("/")), b"")
    found = [(info.base_name, info.is_file) for info in children(uri)]
    assert sorted(found) == [("a", False), ("b.png", False), ("b.png", True)]
    assert children(join(uri, "nowhere")) == []


RECIPE, ONE = tiny_recipe("bcl_paper_small", steps=2), Cluster(workers=1, gpu=False, threads=1)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A folder with a pair of domains and a run on them."""
    folder = tmp_path_factory.mktemp("local")
    pair = {domain: make_dataset(folder / domain, domain, labelled=domain == "source") for domain in DOMAINS}
    train(RECIPE, **pair, out=str(folder / "run"), cluster=ONE)
    return folder


@pytest.mark.full
def test_a_run_in_a_bucket_is_that_of_local_files(store: Callable[[str, str], str], local_run: Path) -> None:
    """All stages of BCL, their labelling included, and the same command once more, which finds nothing left to do."""
    pair, out = {domain: store("domains", domain) for domain in DOMAINS}, store("runs", "bcl")
    for domain in DOMAINS:
        upload(local_run / domain, pair[domain])
    model = train(RECIPE, **pair, out=out, cluster=ONE)
    local = local_run / "run" / "model"
    assert read_bytes(join(model, MODEL_FILE)) == (local / MODEL_FILE).read_bytes()
    assert np.array_equal(evaluate([model], pair["source"]), evaluate([str(local)], str(local_run / "source")))
    before = {name: info.size for name, info in listed(out).items()}
    assert {"metrics.jsonl", "pseudo_labels/1-round-0/manifest.parquet"} <= before.keys()
    train(RECIPE, **pair, out=out, cluster=ONE, resume=True)
    assert {name: info.size for name, info in listed(out).items()} == before
    assert read_bytes(join(model, MODEL_FILE)) == (local / MODEL_FILE).read_bytes()
