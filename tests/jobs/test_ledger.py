"""The state of a job: blocks, entries, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from udaseg.errors import DatasetError
from udaseg.jobs.ledger import Ledger, open_ledger


def rows(count: int, prefix: str = "") -> Iterator[dict[str, Any]]:
    for n in range(count):
        yield {
            "image_id": f"{prefix}{n}",
            "image_uri": f"/{n}.png",
            "label_uri": None,
            "dataset": "d",
            "split": "train",
        }


def state(folder: Path, count: int = 10, **job: Any) -> Ledger:
    return open_ledger(str(folder / "job"), lambda: rows(count), block_size=4, job=job)


def test_blocks_are_the_listing_in_its_order(tmp_path: Path) -> None:
    ledger = state(tmp_path)
    assert (ledger.images, ledger.blocks) == (10, 3)
    ids = [[row["image_id"] for row in ledger.rows(block)] for block in range(3)]
    assert ids == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


def test_row_groups_of_the_listing_are_many_blocks(tmp_path: Path) -> None:
    """Ten million images in a group a block took more than a gigabyte of every process."""
    ledger = open_ledger(str(tmp_path / "job"), lambda: rows(9000), block_size=32, job={})
    assert pq.read_metadata(tmp_path / "job" / "listing.parquet").num_row_groups == 3
    ids = [row["image_id"] for block in range(ledger.blocks) for row in ledger.rows(block)]
    assert ids == [str(n) for n in range(9000)]
    assert [len(ledger.rows(block)) for block in (0, 127, 128, 281)] == [32, 32, 32, 8]


@pytest.mark.parametrize("column", ["image_id", "image_uri", "label_uri", "dataset", "split"])
def test_a_job_of_other_images_is_refused_whatever_differs(column: str, tmp_path: Path) -> None:
    state(tmp_path)
    others = [row | ({column: "another"} if n == 5 else {}) for n, row in enumerate(rows(10))]
    with pytest.raises(DatasetError, match="other images"):
        open_ledger(str(tmp_path / "job"), lambda: iter(others), block_size=4, job={})


def test_a_job_finds_its_state_again(tmp_path: Path) -> None:
    first = state(tmp_path, rules={"share": 0.1}, scales=(1.0,))
    before = (tmp_path / "job" / "listing.parquet").read_bytes()
    again = open_ledger(
        str(tmp_path / "job"), lambda: rows(10), block_size=99, job={"rules": {"share": 0.1}, "scales": [1.0]}
    )
    assert again == first, "the blocks stay as they were cut"
    assert (tmp_path / "job" / "listing.parquet").read_bytes() == before


def test_another_job_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    state(tmp_path, rules={"share": 0.1})
    with pytest.raises(DatasetError, match=r'other rules \(\{"share": 0.1\}, now \{"share": 0.2\}\)'):
        state(tmp_path, rules={"share": 0.2})
    with pytest.raises(DatasetError, match="other images"):
        state(tmp_path, 11, rules={"share": 0.1})
    with pytest.raises(DatasetError, match="other truth"):
        state(tmp_path, rules={"share": 0.1}, truth=True)


def test_no_images_leave_no_state(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no images"):
        state(tmp_path, 0)
    assert not (tmp_path / "job").exists()


def test_entries_come_back_as_they_were_written(tmp_path: Path) -> None:
    ledger = state(tmp_path)
    entry = {
        "image_id": ["a", "b"],
        "nothing": [],
        "height": np.array([3, 4], np.int32),
        "sum": np.array([0.1, 1e300]),
        "empty": np.array([], np.int64),
    }
    assert ledger.committed("predict") == set()
    ledger.commit("predict", 2, entry)
    assert ledger.committed("predict") == {2} and ledger.committed("label") == set()
    assert ledger.is_committed("predict", 2) and not ledger.is_committed("predict", 1)
    back = ledger.entry("predict", 2)
    assert back["image_id"] == ["a", "b"] and back["nothing"] == []
    for name in ("height", "sum", "empty"):
        assert back[name].dtype == entry[name].dtype and np.array_equal(back[name], entry[name])  # type: ignore[attr-defined]


def test_an_entry_is_the_same_bytes_whoever_writes_it(tmp_path: Path) -> None:
    ledger = state(tmp_path)
    for phase in ("one", "two"):
        ledger.commit(phase, 0, {"image_id": ["a"], "count": np.arange(1000)}, scratch=str(tmp_path / "scratch"))
    one, two = (tmp_path / "job" / phase / "00000000.parquet" for phase in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert not list((tmp_path / "scratch").iterdir())


def test_what_was_left_half_written_is_no_entry(tmp_path: Path) -> None:
    ledger = state(tmp_path)
    ledger.commit("predict", 0, {"image_id": []})
    (tmp_path / "job" / "predict" / "00000001.parquet.0123.tmp").write_bytes(b"half")
    assert ledger.committed("predict") == {0}


def test_a_job_that_lacks_what_it_was_begun_with_is_another(tmp_path: Path) -> None:
    state(tmp_path, rules=1, depth_range=[0, 10])
    with pytest.raises(DatasetError, match=r"other depth_range \(\[0, 10\], now null\)"):
        state(tmp_path, rules=1)


def test_a_listing_that_was_cut_off_is_found_at_once(tmp_path: Path) -> None:
    state(tmp_path)
    path = tmp_path / "job" / "listing.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"listing\.parquet: not the whole listing"):
        state(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"block_size": 0}, {"block_size": True}, {"count": 0}, {"count": "9"}, {"job": []}]
)
def test_a_state_of_no_job_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    state(tmp_path)
    path = tmp_path / "job" / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DatasetError, match=r"job\.json: not a job's state"):
        state(tmp_path)
