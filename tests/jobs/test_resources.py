"""What asks for more than there is goes on with less, is refused, or says what it waits for."""

from __future__ import annotations

import time

import pytest
import ray

from udaseg.errors import ConfigError
from udaseg.job_config import Inference
from udaseg.jobs import resources
from udaseg.jobs.resources import actor_pool, require_gpu, usable_cores, waits_told
from udaseg.jobs.trials import concurrency

FOUR = {"CPU": 4.0}


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: FOUR)


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("address", "asked", "sizes"),
    [
        ("local", Inference(gpu=False, actors=3), (3, 3)),
        ("local", Inference(gpu=False, actors=4), (3, 3)),  # a CPU is left to tasks
        ("local", Inference(gpu=False, actors=100, min_actors=100), (3, 3)),
        ("local", Inference(gpu=False, actors=100, min_actors=2), (2, 3)),
        ("10.0.0.1:6379", Inference(gpu=False, actors=100), (3, 100)),  # nodes may come
        ("10.0.0.1:6379", Inference(gpu=True, actors=2), (1, 2)),
    ],
)
def test_a_pool_leaves_a_cpu_to_the_tasks_that_feed_it(
    address: str,
    asked: Inference,
    sizes: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    pool = actor_pool(asked)[0]["compute"]
    assert (pool.min_size, pool.max_size) == sizes
    lacks = (asked.min_actors or asked.actors or 1) > sizes[0]
    assert capsys.readouterr().out.count("\n") == lacks, "one line where less is had than is asked for"


def test_trials_at_a_time_are_no_more_than_fit_a_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need = {"CPU": 2.0, "GPU": 0}
    assert concurrency(FOUR, need) == concurrency(FOUR, need, 2) == concurrency(FOUR, need, 100) == 2
    assert capsys.readouterr().out.count("--concurrent 100") == 1
    with pytest.raises(ConfigError, match="a trial takes 8 CPU"):
        concurrency(FOUR, {"CPU": 8.0}, 3)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert concurrency(FOUR, {"CPU": 8.0}, 3) == 3, "a cluster may grow"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "has_gpu", lambda: False)
    with pytest.raises(ConfigError, match=r"--inference\.gpu.*--inference\.no-gpu"):
        require_gpu("--inference.gpu")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    require_gpu("--inference.gpu")


@pytest.mark.usefixtures("ray_session")
def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resources, "SECONDS_OF_SILENCE", 1.0)

    @ray.remote(num_cpus=100)
    def never() -> None: ...

    with waits_told("labels"):
        task = never.remote()
        deadline, said = time.monotonic() + 20, ""
        while "labels" not in said and time.monotonic() < deadline:
            time.sleep(0.2)
            said += capsys.readouterr().out
        ray.cancel(task)
    assert "waiting for 1 x 100 CPU; the cluster has 4 CPU" in said


def test_actors_share_the_cores() -> None:
    assert actor_pool(Inference(actors=2))[1] == max(1, usable_cores() // 2)
