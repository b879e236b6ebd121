"""What remote code raises reaches the user as one line, and an address where no cluster answers is refused."""

from __future__ import annotations

import errno
import socket
import time

import pytest
import ray

from pipelines.cli import command
from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from udaseg.jobs.ray_session import ensure_ray, lazily, track
from udaseg.jobs.remote_errors import plain_errors

pytestmark = pytest.mark.usefixtures("ray_session")
MESSAGE = "a/b [x].png: is broken"


@ray.remote(num_cpus=0)
def _raise(error: Exception) -> None:
    raise error


@ray.remote(num_cpus=0)
def _ask(error: Exception) -> None:
    ray.get(_raise.remote(error))


@pytest.mark.parametrize("kind", [ConfigError, DatasetError, CheckpointError, TrainingError])
def test_an_error_of_ours_in_a_task_is_raised_as_itself(kind: type[Exception]) -> None:
    for task in (_raise, _ask):
        with pytest.raises(kind) as caught, plain_errors():
            ray.get(task.remote(kind(MESSAGE)))
        assert str(caught.value) == MESSAGE


def test_other_errors_of_a_task_are_one_line() -> None:
    with pytest.raises(TrainingError) as caught, plain_errors():
        ray.get(_ask.remote(KeyError("lost")))
    assert str(caught.value) == "KeyError: 'lost'; --verbose for the whole traceback"


def test_an_error_of_a_file_in_a_task_is_one_of_a_file_here() -> None:
    with pytest.raises(OSError) as caught, plain_errors():
        ray.get(_ask.remote(OSError(errno.ENOSPC, "No space left on device", "/out/a.png")))
    assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: '/out/a.png'"

    def full(block: dict[str, object]) -> dict[str, object]:
        raise OSError(errno.ENOSPC, "No space left on device: '/out/b.png'")

    ensure_ray()  # which has Ray Data raise what a task raised
    with pytest.raises(OSError) as caught, plain_errors():
        ray.data.range(1).map_batches(full).materialize()
    assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: '/out/b.png'"


def test_a_local_error_is_not_touched() -> None:
    with pytest.raises(KeyError), plain_errors():
        raise KeyError("lost")


def test_ray_data_tells_of_a_broken_file_and_of_a_constructor_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    class Fails:
        def __init__(self) -> None:
            raise CheckpointError(MESSAGE)

    def broken(batch: dict) -> dict:
        raise DatasetError(MESSAGE)

    ensure_ray()
    pool = {"compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0.1}
    for function, how, kind in ((broken, {}, DatasetError), (lazily(Fails), pool, CheckpointError)):
        blocks = ray.data.range(2, override_num_blocks=1).map_batches(function, **how).iter_batches()
        began = time.monotonic()
        with pytest.raises(kind) as caught:
            list(track(blocks, 2, "blocks", size=len))
        assert str(caught.value) == MESSAGE
        assert time.monotonic() - began < 30
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.1", "127.0.0.1:99999", "ray://127.0.0.1:10001", "127.0.0.1:1"])
def test_an_address_where_no_cluster_answers_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}.*unset RAY_ADDRESS"):
        ensure_ray()


def test_an_address_where_something_else_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no Ray"):
            ensure_ray()


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def fail(argv: object) -> None:
        assert argv == ["--x"], "--verbose is taken out"
        with plain_errors():
            ray.get(_raise.remote(KeyError("lost")))

    assert fail(["--x"]) == 1
    short = capsys.readouterr().err
    assert fail(["--x", "--verbose"]) == 1
    assert short.count("\n") == 1 and short in capsys.readouterr().err
