"""What the tests share: one Ray and one pair of ranks for the whole session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Ray and its libraries read these once, when they are imported.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "60",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",  # beside tests in another process
}
os.environ.pop("RAY_ADDRESS", None)  # tests never join a Ray that is there already

import torch  # not earlier: OpenMP reads its number of threads at import
from two_ranks import TwoRanks

torch.set_num_threads(1)

WHOLE_JOBS = ("test_train_job", "test_demo", "test_faults", "test_sweep", "test_job_submit", "test_pseudo_label_job")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that of two processes neither is left with them at the end."""
    items.sort(key=lambda item: item.path.stem not in WHOLE_JOBS)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[TwoRanks]:
    """Two processes with a gloo group between them."""
    pool = TwoRanks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with 4 CPUs, which are mere counters."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray")  # short: Ray's sockets lie in it
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=500_000_000,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
