"""What the tests share: one Ray and one pair of ranks for the whole session."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pyarrow.fs as pafs
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
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a worker; test_faults.py has it
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",  # beside tests in another process
    # of the S3 server that the tests start; nobody's account
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
os.environ.pop("RAY_ADDRESS", None)  # tests never join a Ray that is there already

import torch  # not earlier: OpenMP reads its number of threads at import
from two_ranks import TwoRanks

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it

WHOLE_JOBS = {
    "test_train_job", "test_demo", "test_faults", "test_sweep", "test_job_submit", "test_pseudo_label_job",
    "test_pseudo_label_faults",
}  # fmt: skip


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
def s3() -> Iterator[Callable[[str, str], str]]:
    """A real S3 server on this machine: a function of bucket and key that makes the bucket and returns the URI."""
    with server("moto.server", "--host", "127.0.0.1", "--port") as port:
        query = f"endpoint_override=http://127.0.0.1:{port}&region=us-east-1"

        def uri(bucket: str, key: str) -> str:
            pafs.FileSystem.from_uri(f"s3://{bucket}/?{query}&allow_bucket_creation=true")[0].create_dir(bucket)
            return f"s3://{bucket}/{key}?{query}"

        yield uri


@pytest.fixture(scope="session")
def gs() -> Iterator[Callable[[str, str], str]]:
    """As `s3`, of a server that speaks as Google's does."""
    with server("gcp_storage_emulator", "start", "--in-memory", "--quiet", "--host", "127.0.0.1", "--port") as port:
        query = f"scheme=http&endpoint_override=127.0.0.1%3A{port}&retry_limit_seconds=60"

        def uri(bucket: str, key: str) -> str:
            body, kind = json.dumps({"name": bucket}).encode(), {"Content-Type": "application/json"}
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/storage/v1/b", body, kind))
            except urllib.error.HTTPError as error:
                assert error.code == 409, error  # it is there
            return f"gs://anonymous@{bucket}/{key}?{query}"

        yield uri


@contextlib.contextmanager
def server(*words: str) -> Iterator[int]:
    """A module that serves on the port that it is given last; a process, since Arrow may wait for it with the GIL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", *words, str(port)], **quiet)  # type: ignore[call-overload]
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, f"{words[0]} ended"
            time.sleep(0.1)
        else:
            pytest.fail(f"{words[0]} does not answer")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Callable[[str, str], str]:
    """`s3`, then `gs`."""
    made: Callable[[str, str], str] = request.getfixturevalue(request.param)
    return made


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
