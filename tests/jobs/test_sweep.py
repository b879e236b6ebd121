"""Sweeps: the spaces, their tables and pages, and whole sweeps on a real Ray of their own."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune
from rich.console import Console
from tiny import make_dataset, tiny_recipe

from pipelines.sweep import Arguments, main
from pipelines.train import parse
from udaseg.checkpoints.directory import CARD_FILE
from udaseg.config import Recipe
from udaseg.data.strict_json import parse_json
from udaseg.errors import ConfigError, DatasetError, LostWorkError, TrainingError
from udaseg.evaluation.checkpoint_scores import Scoring
from udaseg.evaluation.model_selection import SCORES
from udaseg.job_config import Cluster
from udaseg.jobs import sweep as job
from udaseg.jobs import trials as trials_module
from udaseg.jobs.monitor import Monitor
from udaseg.jobs.output import mark
from udaseg.jobs.resources import ray_address
from udaseg.jobs.spaces import Space, load_space, shared_stages, spaces
from udaseg.jobs.trials import concurrency, read_curve, trial_resources
from udaseg.overrides import full_names, override
from udaseg.recipes import RECIPES
from udaseg.reports.sweep import Trial, rank_correlations, sweep_page, trial_table

ROOT = Path(__file__).parents[2]
ONE = Cluster(gpu=False, threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    return {
        "source": make_dataset(folder / "source", "source"),
        "target": make_dataset(folder / "target", "target"),
        "unlabelled": make_dataset(folder / "unlabelled", "target", labelled=False),
    }


# --- spaces ---------------------------------------------------------------------------------------------------------


def test_all_the_spaces_are_there() -> None:
    assert {"temperature", "thresholds", "prototype_momentum", "joint"} <= set(spaces())


@pytest.mark.parametrize("name", spaces())
def test_a_space_fits_its_recipe(name: str) -> None:
    space = load_space(name)
    recipe = RECIPES[space.recipe]()
    assert space.recipe.endswith("_small"), "it works on a CPU"
    assert (importlib.import_module(f"tune_spaces.{name}").__doc__ or "").strip()
    for seed in range(20):
        values = {field: domain.sample(random_state=seed) for field, domain in space.values.items()}
        override(recipe, values).check()
    assert shared_stages(recipe, space.values) == 1, "the warm start is trained once"


def test_stages_before_the_first_that_is_touched_are_shared() -> None:
    recipe = RECIPES["bcl_small"]()
    assert shared_stages(recipe, ["stages.2.method.temperature"]) == 2
    assert shared_stages(recipe, ["stages.2.method.temperature", "pseudo_label.share"]) == 1
    assert shared_stages(recipe, ["method.temperature", "optim.lr"]) == 0
    assert shared_stages(recipe, ["seed"]) == 0
    recipe = RECIPES["i2i_cr_small"]()  # its second stage translates for the third, which a trial has to itself
    assert shared_stages(recipe, ["stages.2.method.threshold"]) == 1
    assert shared_stages(recipe, ["stages.1.method.cycle_weight"]) == 1


def test_concurrency_comes_from_the_resources() -> None:
    one = trial_resources(Cluster(workers=1, gpu=False))
    assert concurrency({"CPU": 3.0}, one) == 1
    assert concurrency({"CPU": 11.0, "memory": 1e9}, one) == 3
    four = trial_resources(Cluster(workers=4, gpu=True, cpus_per_worker=2))
    assert four == {"CPU": 10, "GPU": 4}
    assert concurrency({"CPU": 64.0, "GPU": 8.0}, four) == 2
    assert concurrency({"CPU": 19.0, "GPU": 8.0}, four) == 1
    with pytest.raises(ConfigError, match=r"4 GPU, the cluster has 2.*--cluster\.workers"):
        concurrency({"CPU": 64.0, "GPU": 2.0}, four)


# --- results --------------------------------------------------------------------------------------------------------

MODES = {"miou": "max", "entropy": "min", "information": "max"}
TRIALS = [
    Trial(
        id=f"t{i}",
        values={"method.temperature": 0.1 * (i + 1), "method.<kind>": ("a", "b")[i % 2]},
        state="finished" if i < 2 else "stopped",
        curve=[
            (10 * s, {"miou": 0.1 * i + 0.01 * s, "entropy": 1 - 0.1 * i, "information": (i - 1.4) ** 2})
            for s in range(1, 4 if i < 2 else 2)
        ],
    )
    for i in range(3)
]
FAILED = Trial("t9", {"method.temperature": 9.0, "method.<kind>": "a"}, "failed", [], "a loss is not <finite>")


def test_rankings_are_compared_at_the_last_step_that_all_reached() -> None:
    found = rank_correlations([*TRIALS, FAILED], MODES)  # type: ignore[arg-type]
    assert found["entropy"] == (pytest.approx(1), 10, 3)  # small where mIoU is large
    assert found["information"] == (pytest.approx(-0.5), 10, 3)
    lost = Trial("t8", {}, "stopped", [(10, {"miou": 0.0, "entropy": float("nan"), "information": 2.0})])
    assert rank_correlations([*TRIALS, lost], MODES)["entropy"] == found["entropy"], (
        "NaN has no rank, and is not counted"
    )
    assert rank_correlations([*TRIALS, lost], MODES)["information"][2] == 4  # type: ignore[arg-type]
    unlabelled = [replace(t, curve=[(s, {"entropy": 1.0}) for s, _ in t.curve]) for t in TRIALS]
    assert rank_correlations(unlabelled, MODES) == {}  # type: ignore[arg-type]


def test_a_score_that_could_not_be_taken_is_null_in_the_file(tmp_path: Path) -> None:
    monitor = Monitor(str(tmp_path), None)
    scores = {"entropy": math.nan, "information": 0.5, "agreement": 0.25, "snd": 0.1}
    of = {"stage": 1, "name": "adapt"}
    ldbe = {"loss": 0.5, "entropy": 0.7}  # a loss of this name is no score
    monitor._rows = [{**of, "step": 2, **ldbe}, {**of, "step": 4, **scores}, {**of, "step": 5, **ldbe}]
    monitor._write()
    rows = [parse_json(line, "") for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert [row["entropy"] for row in rows] == [0.7, None, 0.7]
    ((step, found),) = read_curve(str(tmp_path), [0, 10])
    assert step == 14 and math.isnan(found["entropy"]) and found["agreement"] == 0.25


def test_table_names_every_trial() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(trial_table([*TRIALS, FAILED], TRIALS[1], "entropy"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines() if "│" in line]
    assert ["t1", "0.2", "b", "finished", "30", "0.9", "0.13"] in rows
    assert ["t2", "0.3", "a", "stopped", "10", "0.8", "0.21"] in rows
    assert ["t9", "9", "a", "failed", "0", "nan", "nan"] in rows


def test_page_is_whole() -> None:
    page = sweep_page(
        title="a & b",
        trials=[*TRIALS, FAILED],
        best=TRIALS[1],
        metric="entropy",
        mode="min",
        logarithmic={"method.temperature"},
        correlations=rank_correlations(TRIALS, MODES),  # type: ignore[arg-type]
        settings='{"name": "<x>"}',
    )
    assert all(f'id="{s}"' in page for s in ("headline", "parameters", "effects", "curves", "ranking", "trials"))
    assert "method.&lt;kind&gt;" in page and "a loss is not &lt;finite&gt;" in page and "&lt;x&gt;" in page
    assert page.count("data:image/png;base64,") == 3
    assert (
        'src="http' not in page
        and "The chosen trial has mIoU 13.0 %; the highest of a finished trial is 13.0 %" in page
    )


# --- refused before anything runs -----------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(job, "ensure_ray", fail)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["temprature"], "no space 'temprature'; there are joint, prototype_momentum, temperature, thresholds"),
        (["temperature", "--recipe", "blc"], "no recipe 'blc'"),
        (["temperature", "--method.temperatur", "1"], "no field 'method.temperatur'; did you mean method.temperature"),
        (["temperature", "--recipe", "dacs_small"], "no field 'method.temperature'"),
        (["temperature", "--metric", "miou", "--target", "unlabelled"], "--metric miou needs labels"),
        (["temperature", "--split", "dusk"], "no rows of split 'dusk'"),
        (["temperature", "--trials", "0"], "trials is 0"),
        (["temperature", "--data.batch-size", "3", "--cluster.workers", "2"], "cannot be split among 2 workers"),
        (["temperature", "--target", "/nowhere"], "no such directory"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    words: list[str],
    message: str,
    no_ray: None,
    pair: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [pair.get(word, word) for word in words]
    target = [] if "--target" in words else ["--target", pair["target"]]
    data = ["--source", pair["source"], *target, "--out", str(tmp_path / "out")]
    assert main([words[0], *data, *words[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def arguments(pair: dict[str, str], out: Path, **more: object) -> Arguments:
    recipe = tiny_recipe("bcl_demo")
    fields = {"recipe": recipe, "metric": "entropy", "cluster": ONE, "out": str(out)} | more
    return Arguments(source=pair["source"], target=pair["target"], **fields)  # type: ignore[arg-type]


def test_a_space_that_does_not_fit_is_refused(no_ray: None, pair: dict[str, str], tmp_path: Path) -> None:
    def space(name: str, domain: object) -> Space:
        return Space("mine", "bcl_demo", "entropy", {name: domain})  # type: ignore[dict-item]

    for wrong, match in (
        (space("method.temprature", tune.uniform(0, 1)), "did you mean method.temperature"),
        (space("method.temperature", tune.choice(["hot"])), "must be float"),
        (space("method.teacher_momentum", tune.choice([1.0])), r"teacher_momentum is 1\.0; it must lie in \[0, 1\)"),
        (space("method.temperature", tune.choice([*[0.1] * 20, "hot"])), "must be float"),  # whichever is drawn first
    ):
        with pytest.raises(ConfigError, match=match):
            job.sweep(wrong, arguments(pair, tmp_path / "out"))
    normal = space("method.temperature", tune.randn(0.5, 0.1))
    with pytest.raises(ConfigError, match=r"space mine: .*_Normal.*choose --search random"):
        job.sweep(normal, arguments(pair, tmp_path / "out"))
    with pytest.raises(AssertionError, match="work has begun"):
        job.sweep(normal, arguments(pair, tmp_path / "out", search="random"))
    with pytest.raises(DatasetError, match="needs labels"):
        a = replace(arguments(pair, tmp_path / "out", metric="miou"), target=pair["unlabelled"])
        job.sweep(load_space("temperature"), a)
    assert not (tmp_path / "out").exists()


def test_a_range_in_steps_is_told_by_its_numbers(pair: dict[str, str], tmp_path: Path) -> None:
    """Ray's own text has an address of memory, so that no such sweep could be resumed."""
    found = set()
    for step in (0.05, 0.05, 0.1):
        space = Space("mine", "bcl_demo", "entropy", {"method.temperature": tune.quniform(0.1, 0.9, step)})
        found.add(str(job._settings(space, arguments(pair, tmp_path / "out"), str(tmp_path / "out"))))
    assert len(found) == 2 and all(" at 0x" not in text for text in found)


def test_other_directories_are_refused(no_ray: None, pair: dict[str, str], tmp_path: Path) -> None:
    space = load_space("temperature")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="is no sweep's directory"):
            job.sweep(space, arguments(pair, tmp_path / "mine", resume=resume))
    with pytest.raises(AssertionError, match="work has begun"):
        job.sweep(space, arguments(pair, tmp_path / "out"))
    a = arguments(pair, tmp_path / "out")
    mark(a.out, "sweep")
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(job._settings(space, a, a.out)))
    with pytest.raises(ConfigError, match="--resume"):
        job.sweep(space, arguments(pair, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"other settings \(metric, trials\)"):
        job.sweep(space, arguments(pair, tmp_path / "out", resume=True, metric="snd", trials=3))


def test_a_sweep_goes_on_with_as_many_trials_at_a_time_as_it_began_with(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tune keeps the number; more trials than fit would hold what their workers wait for."""
    space, has = load_space("temperature"), {"CPU": 9.0}
    monkeypatch.setattr(job, "ensure_ray", lambda num_cpus, **_: has.update(asked=float(num_cpus)))
    monkeypatch.setattr(job.ray, "cluster_resources", lambda: has)
    monkeypatch.setattr(job, "train", lambda *_, **__: pytest.fail("work has begun"))
    began = arguments(pair, tmp_path / "out", concurrent=3)
    with pytest.raises(pytest.fail.Exception, match="work has begun"):
        job.sweep(space, began)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["concurrent"] == 3
    with pytest.raises(pytest.fail.Exception, match="work has begun"):
        job.sweep(space, replace(began, concurrent=2, resume=True))
    assert has["asked"] >= 9 and "--concurrent 2: it was begun with 3 trials" in capsys.readouterr().out
    has["CPU"] = 8.0
    with pytest.raises(ConfigError, match="begun with 3 trials at a time, each of which takes 3 CPU, and there are 8"):
        job.sweep(space, replace(began, resume=True))


def test_trials_that_fail_and_trials_whose_workers_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """On Ray Tune: its own fault ends a trial for good, that of its workers until it is resumed."""

    def run_of_one_step(recipe: Recipe, *, out: str, **_: object) -> None:
        folder, lr = Path(out), recipe.stages[0].optim.lr
        with (folder / "tries").open("a") as file:
            file.write("x")
        if lr == 2.0:
            raise TrainingError("a loss is not finite")
        if lr == 3.0 and len((folder / "tries").read_text()) < 3:
            raise LostWorkError("stage 0-source failed: its workers were lost")
        (folder / "model").mkdir()
        (folder / "model" / CARD_FILE).write_text("{}")
        (folder / "metrics.jsonl").write_text(json.dumps({"stage": 0, "step": 4, **dict.fromkeys(SCORES, lr)}))
        (folder / "address").write_text(ray_address())

    monkeypatch.setattr(trials_module, "train", run_of_one_step)
    recipe = tiny_recipe("source_only_small", steps=4)
    domain = tune.grid_search([1.0, 2.0, 3.0, "hot"])
    space = Space("mine", "source_only_small", "entropy", {"optim.lr": domain})  # type: ignore[dict-item]
    cluster = Cluster(gpu=False, threads=1, max_failures=1)
    a = Arguments(recipe=recipe, out=str(tmp_path), target="", metric="entropy", trials=1, search="random")
    a = replace(a, scheduler="none", cluster=cluster)
    scoring = Scoring(directory="", split="val", images=1, window=None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # which `ray job submit` sets in the driver's environment alone
    trial = trials_module.trainable(recipe, 0, {"source": "", "target": ""}, a.out, cluster, scoring, a.metric)
    monkeypatch.delenv("RAY_ADDRESS")

    def run(again: bool) -> tuple[dict[object, tuple[str, str | None]], dict[object, int]]:
        trials_module.run_trials(trial, space, replace(a, resume=again), a.out, 2, 0)
        trials = trials_module.read_trials(a.out, recipe, 0)
        tries = {t.values["optim.lr"]: tmp_path / "trials" / t.id / "tries" for t in trials}
        how = {t.values["optim.lr"]: (t.state, t.error) for t in trials}
        return how, {lr: len(path.read_text()) for lr, path in tries.items() if path.exists()}

    how, tries = run(again=False)
    assert how[1.0] == ("finished", None) and how[2.0] == ("failed", "a loss is not finite")
    assert how[3.0] == ("failed", "stage 0-source failed: its workers were lost")
    assert how["hot"][0] == "failed" and "must be float" in str(how["hot"][1])
    assert tries == {1.0: 1, 2.0: 1, 3.0: 2}
    newest = tmp_path / "tune" / "experiment_state-9999-01-01_00-00-00.json"  # of a sweep that was killed as it wrote
    newest.write_text('{"trial_data": [')
    how, tries = run(again=True)
    assert tries == {1.0: 1, 2.0: 1, 3.0: 3} and len(how) == 4
    assert how[3.0] == ("finished", None) and how[2.0][0] == how["hot"][0] == "failed"
    assert not newest.exists()
    assert {path.read_text() for path in tmp_path.glob("trials/*/address")} == {"10.0.0.1:6379"}


# --- whole sweeps ---------------------------------------------------------------------------------------------------

DRIVER = """
import sys
from udaseg.jobs.ray_session import ensure_ray
from pipelines.sweep import main
ensure_ray(num_cpus=int(sys.argv[1]), dashboard=True)
sys.exit(main(sys.argv[2:]))
"""
ONE_STAGE = """
import ray.tune
from udaseg.jobs import spaces
space = spaces.Space("rate", "source_only_small", "information", {"optim.lr": ray.tune.loguniform(1e-4, 1e-2)})
spaces.load_space = lambda name: space
"""
SMALL = (
    *("--checkpoint-every", "2", "--log-every", "1"),
    *("--model.backbone", "resnet10t", "--model.head-channels", "16", "--data.batch-size", "4"),
    *("--data.short-side", "40", "--data.crop", "32", "32", "--cluster.no-gpu", "--cluster.threads", "1"),
)
TINY = (
    *("temperature", "--recipe", "bcl_demo", *SMALL),
    *("--data.source.rare-min-pixels", "1", "--data.source.rare-min-crop-pixels", "1"),
)


def start(
    pair: dict[str, str], out: Path, *more: str, cpus: int = 6, setup: str = "", tiny: tuple[str, ...] = TINY
) -> subprocess.Popen[bytes]:
    """A sweep in a process group of its own, on a Ray of its own, whose dashboard the session's Ray lacks."""
    words = (*tiny, "--source", pair["source"], "--target", pair["target"], "--out", str(out), *more)
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", setup + DRIVER, str(cpus), *words],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(run: subprocess.Popen[bytes], out: Path, seconds: float = 400) -> str:
    try:
        code = run.wait(seconds)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    printed = out.with_suffix(".log").read_text()
    assert code == 0, printed[-6000:]
    return printed


def curves(out: Path) -> dict[str, list[tuple[int, int]]]:
    """Per trial the (stage, step) of its scores."""
    found = {}
    for path in sorted((out / "trials").glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [(row["stage"], row["step"]) for row in rows if "entropy" in row]
    return found


@pytest.mark.full  # two minutes
def test_a_sweep_of_two_trials_side_by_side(pair: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--steps", "2", "--trials", "2", "--scheduler", "none")
    printed = finish(start(pair, out, *words, setup=ONE_STAGE, tiny=("rate", *SMALL)), out)
    trials = json.loads((out / "trials.json").read_text())
    assert [(t["state"], [step for step, _ in t["curve"]]) for t in trials] == [("finished", [2])] * 2
    best = max(trials, key=lambda t: t["curve"][-1][1]["information"])
    again = parse(["--config", str(out / "best.json"), "--out", str(tmp_path / "again")]).recipe
    assert again.stages[0].optim.lr == best["values"]["optim.lr"]
    assert best["id"] in (out / "report.html").read_text() and "information ranks 2 trials at step 2" in printed


@pytest.mark.full  # two minutes: `make test` has 12 for everything
def test_two_trials_share_the_cluster_and_the_warm_start(pair: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = finish(start(pair, out, "--steps", "4", "--trials", "2", "--scheduler", "none"), out)
    assert sorted(curves(out).values()) == [[(1, 2), (1, 4)]] * 2  # each checkpoint of their own stage, and no other
    trials = json.loads((out / "trials.json").read_text())
    assert [t["state"] for t in trials] == ["finished", "finished"]
    assert [step for step, _ in trials[0]["curve"]] == [2, 4]
    assert {"miou", *SCORES} == set(trials[0]["curve"][0][1])

    warm = (out / "shared" / "stages" / "0-source" / "model" / "model.safetensors").read_bytes()
    first, second = (out / "trials" / t["id"] for t in trials)
    for own in (first, second):
        assert (own / "stages" / "0-source" / "model" / "model.safetensors").read_bytes() == warm
    assert (first / "model" / "model.safetensors").read_bytes() != (second / "model" / "model.safetensors").read_bytes()
    began = json.loads((second / "trial.json").read_text())["began"]
    assert began < (first / "model" / "model.json").stat().st_mtime, "they ran at the same time"

    best = max(trials, key=lambda t: t["curve"][-1][1]["information"])
    again = parse(["--config", str(out / "best.json"), "--out", str(tmp_path / "again")]).recipe
    (path,) = full_names(again, "method.temperature")
    assert path.startswith("stages.1.") and again.stages[1].method.temperature == best["values"]["method.temperature"]
    assert json.loads((first / "config.json").read_text())["recipe"]["stages"][0]["steps"] == 4
    with (out / "trials.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == [t["id"] for t in trials]
    assert best["id"] in (out / "report.html").read_text() and "information ranks 2 trials at step 4" in printed
    assert str(tmp_path) not in (out / "report.html").read_text()


@pytest.mark.full
def test_a_stopped_trial_gives_back_what_it_held(pair: dict[str, str], tmp_path: Path) -> None:
    """One trial fits at a time. By this metric the second is worse than the first, so that ASHA stops it."""
    out = tmp_path / "out"
    words = ("--steps", "4", "--trials", "3", "--metric", "snd")
    finish(start(pair, out, *words, cpus=3), out)
    trials = json.loads((out / "trials.json").read_text())
    assert "stopped" in [t["state"] for t in trials[:2]] and len(trials) == 3
    ends = {t["state"]: [step for step, _ in t["curve"]] for t in trials}
    assert ends["finished"] == [2, 4] and ends["stopped"] == [2]
    best = json.loads((out / "best.json").read_text())["trial"]
    assert next(t["state"] for t in trials if t["id"] == best) == "finished"


@pytest.mark.full
def test_a_killed_sweep_goes_on_in_the_midst_of_its_trials(pair: dict[str, str], tmp_path: Path) -> None:
    """One trial at a time; the driver is killed when the second has a checkpoint and the third has not begun."""
    out = tmp_path / "out"
    words = ("--steps", "30", "--trials", "3", "--search", "random", "--scheduler", "none", "--cluster.workers", "2")
    run = start(pair, out, *words, cpus=4)
    try:
        while not (snapshots := _half_way(out)):
            assert run.poll() is None, out.with_suffix(".log").read_text()[-6000:]
            time.sleep(0.05)
    finally:
        os.kill(run.pid, signal.SIGKILL)  # Ray dies of it
        run.wait()
    before = {path: path.read_text() for path in out.glob("trials/*/trial.json")}
    assert len(before) == 2
    kept = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*/stages/*/model/model.safetensors")}
    step = max(int(entry["checkpoint_dir_name"].rpartition("_")[2]) for entry in snapshots["checkpoint_results"])
    time.sleep(8)  # until the last of the killed sweep's processes has noticed

    printed = finish(start(pair, out, *words, "--resume", cpus=4), out)
    trials = json.loads((out / "trials.json").read_text())
    assert [t["state"] for t in trials] == ["finished"] * 3
    assert {path.parent.name for path in before} == {t["id"] for t in trials[:2]}, "no trial was begun anew"
    assert all(path.read_text() == note for path, note in before.items())
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in kept.items()), "what was finished was left alone"
    assert list(curves(out).values()) == [[(1, s) for s in range(2, 31, 2)]] * 3
    scored = [line for line in printed.splitlines() if f"trial {trials[1]['id']}  step " in line]
    steps = [int(line.split("step ")[1].split("/")[0]) for line in scored]
    assert steps.count(2) == 1 and steps[-1] == 30, f"it went on from step {step}, not from the beginning"


def _half_way(out: Path) -> dict:
    """The state of the training of a second trial that has a checkpoint after step 6, once there is one."""
    trials = sorted((out / "trials").glob("*/trial.json"), key=lambda path: json.loads(path.read_text())["began"])
    if len(trials) == 2:
        for snapshot in trials[1].parent.glob("stages/1-*/checkpoint_manager_snapshot.json"):
            if "checkpoint_0000006" in (text := snapshot.read_text()):
                return json.loads(text)
    return {}
