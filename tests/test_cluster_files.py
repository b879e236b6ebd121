"""The files that launch a cluster: Ray's own schema and readers, and what these do not know. Nothing is launched."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomllib
import yaml  # as jsonschema, it comes with ray[default]
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.train import parse

ROOT = Path(__file__).parents[1]
CLOUDS = {name: yaml.safe_load((ROOT / name).read_text()) for name in ("cluster.yaml", "docs/cluster/gcp.yaml")}
RAY_UP = {**CLOUDS, "docs/cluster/local.yaml": yaml.safe_load((ROOT / "docs/cluster/local.yaml").read_text())}
RAY_CLUSTER = yaml.safe_load((ROOT / "docs/cluster/kuberay-raycluster.yaml").read_text())
RAY_JOB = yaml.safe_load((ROOT / "docs/cluster/kuberay-rayjob.yaml").read_text())
TOKEN = "~/.ray/auth_token"


def ray_version() -> str:
    found = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def workers(config: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def commands(config: dict[str, Any]) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


# --- ray up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(copy.deepcopy(RAY_UP[name])))


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_refuses_an_unknown_key(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**copy.deepcopy(RAY_UP[name]), "idle_timeout": 10}))
    if name in CLOUDS:
        config = copy.deepcopy(CLOUDS[name])
        config["available_node_types"]["train"]["max_worker"] = 8
        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config(config))


@pytest.mark.parametrize("config", RAY_UP.values(), ids=RAY_UP)
def test_mounts_hold_what_is_installed(config: dict[str, Any]) -> None:
    mounts = dict(config["file_mounts"])
    assert mounts.pop(TOKEN) == TOKEN  # `ray get-auth-token --generate` makes it
    assert all((ROOT / local).exists() for local in mounts.values())
    assert all(remote == f"~/udaseg/{local}" for remote, local in mounts.items())
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "udaseg", "pipelines", "tune_spaces"}
    assert set(mounts.values()) == needed


@pytest.mark.parametrize("config", RAY_UP.values(), ids=RAY_UP)
def test_commands_are_of_bash_and_install_within_the_constraints(config: dict[str, Any]) -> None:
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert "pip install" not in command or "~/venv/bin/pip install" in command
        assert "pip install" not in command or "--constraint ~/udaseg/constraints.txt" in command
    assert sum("~/udaseg'[mit]'" in command for command in config["setup_commands"]) == 1


def test_all_set_up_alike() -> None:
    aws, gcp, local = (config["setup_commands"] for config in RAY_UP.values())
    assert aws == gcp
    assert local == [command for command in aws if "apt-get" not in command]


@pytest.mark.parametrize("config", RAY_UP.values(), ids=RAY_UP)
def test_a_job_finds_the_venv_and_the_token(config: dict[str, Any], tmp_path: Path) -> None:
    """The lines of set-up that prepare the shell, run twice in an empty home, and then a command as Ray runs it."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to("/bin/true")
    lines = [command for command in config["setup_commands"] if "env.sh" in command]
    assert len(lines) == 2

    def shell(command: str) -> str:
        as_ray = ["bash", "--login", "-c", "-i", f"source ~/.bashrc; {command}"]
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        # not our terminal, which bash -i would take over
        result = subprocess.run(as_ray, env=environment, capture_output=True, text=True, start_new_session=True)
        return result.stdout

    for command in lines * 2:
        shell(command)
    grows = f"RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_{'OBJECT_STORE_MEMORY_UTIL_THRESHOLD'}"
    found = shell(f"command -v python; echo $RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH ${grows}").split()
    assert found == [f"{tmp_path}/venv/bin/python", "token", f"{tmp_path}/.ray/auth_token", "10"]
    assert (tmp_path / ".bashrc").read_text().count("env.sh") == 1
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("config", RAY_UP.values(), ids=RAY_UP)
def test_start_commands_are_explicit(config: dict[str, Any]) -> None:
    head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    assert head[0] == worker[0] == "ray stop"
    assert "ray start --head" in head[1] and "--autoscaling-config=~/ray_bootstrap_config.yaml" in head[1]
    assert "ray start --address=$RAY_HEAD_IP:6379" in worker[1]
    assert config["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("config", CLOUDS.values(), ids=CLOUDS)
def test_groups_of_workers(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert set(workers(config)) == {"train", "data"}
    for kind in workers(config).values():
        assert kind["min_workers"] == 0 < kind["max_workers"]
    assert config["max_workers"] == sum(kind["max_workers"] for kind in workers(config).values())


def is_spot(node: dict[str, Any]) -> bool:
    of_aws = node.get("InstanceMarketOptions", {}).get("MarketType")
    return "spot" in (of_aws, node.get("scheduling", {}).get("provisioningModel", "").lower())


@pytest.mark.parametrize("config", CLOUDS.values(), ids=CLOUDS)
def test_workers_are_spot_and_the_head_is_not(config: dict[str, Any]) -> None:
    assert not is_spot(config["available_node_types"][config["head_node_type"]]["node_config"])
    assert all(is_spot(kind["node_config"]) for kind in workers(config).values())


@pytest.mark.parametrize("config", CLOUDS.values(), ids=CLOUDS)
def test_nothing_is_of_one_account(config: dict[str, Any]) -> None:
    text = yaml.safe_dump(config)
    assert not re.search(r"\b(ami|subnet|sg)-[0-9a-f]{8}|arn:|\b\d{12}\b", text)
    assert config["provider"].get("project_id") is None


# --- Kubernetes -------------------------------------------------------------------------------------------------------

# Fields of KubeRay's v1 API, which no package brings as a schema; those of pods are Kubernetes' own.
CLUSTER_FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
GROUP_FIELDS = {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}
JOB_FIELDS = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
POD_FIELDS = {"serviceAccountName", "tolerations", "containers"}
CONTAINER_FIELDS = {"name", "image", "resources"}


def test_kuberay_objects() -> None:
    for manifest, kind in ((RAY_CLUSTER, "RayCluster"), (RAY_JOB, "RayJob")):
        assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    spec = RAY_CLUSTER["spec"]
    assert RAY_JOB["spec"].keys() == JOB_FIELDS
    assert RAY_JOB["spec"]["rayClusterSpec"] == spec
    assert spec.keys() == CLUSTER_FIELDS
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group.keys() <= GROUP_FIELDS
        pod = group["template"]["spec"]
        assert pod.keys() <= POD_FIELDS
        assert [container.keys() == CONTAINER_FIELDS for container in pod["containers"]] == [True]


def test_rays_autoscaler_reads_the_kuberay_cluster() -> None:
    """It validates what it derives by the schema of `ray up`."""
    resource = {"metadata": {"name": "udaseg", "namespace": "default"}, "spec": RAY_CLUSTER["spec"]}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    kinds = config["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert kinds["train"]["resources"]["GPU"] == 1
    assert "GPU" not in kinds["data"]["resources"]
    assert [(kinds[n]["min_workers"], kinds[n]["max_workers"]) for n in ("train", "data")] == [(0, 8), (0, 4)]
    assert config["idle_timeout_minutes"] == 10


def test_images_have_the_ray_of_the_constraints() -> None:
    assert RAY_CLUSTER["spec"]["rayVersion"] == ray_version()
    dockerfile = (ROOT / "docs/cluster/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{ray_version()}-" in dockerfile
    copied = [
        word for line in re.findall(r"^COPY --chown=ray (.+) \S+$", dockerfile, re.MULTILINE) for word in line.split()
    ]
    assert copied == [local for remote, local in CLOUDS["cluster.yaml"]["file_mounts"].items() if remote != TOKEN]


def test_the_image_installs_what_there_is() -> None:
    """What can be told of the Dockerfile without building it: its files, its Python and its extras."""
    lines = (ROOT / "docs/cluster/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [name for name, _ in steps[:4]] == ["FROM", "ENV", "RUN", "WORKDIR"]
    assert {name for name, _ in steps} == {"FROM", "ENV", "RUN", "WORKDIR", "COPY"}
    # WORKDIR would create it as root, where pip, which runs as `ray`, builds the package.
    assert shlex.split(steps[2][1]) == ["mkdir", "-p", steps[3][1]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for _, words in (step for step in steps if step[0] == "COPY"):
        *local, there = [word for word in shlex.split(words) if not word.startswith("--")]
        assert all((ROOT / name).exists() for name in local)
        assert there == "./" or local == [there]
    major, minor = re.findall(r"-py(\d)(\d+)$", steps[0][1])[0]
    assert SpecifierSet(project["requires-python"]).contains(f"{major}.{minor}.0")
    assert (int(major), int(minor)) >= (3, 11)  # which the pinned versions need
    (command,) = [words for name, words in steps[4:] if name == "RUN"]
    subprocess.run(["bash", "-n", "-c", command], check=True)
    extras = re.findall(r"'\.\[(.+)\]'", command)[0].split(",")
    assert extras and set(extras) <= project["optional-dependencies"].keys()
    assert "--constraint constraints.txt" in command


# --- what users are told to run ---------------------------------------------------------------------------------------


def documented() -> list[list[str]]:
    """Arguments of every `python -m pipelines.train` of the guide, and of the RayJob."""
    text = (ROOT / "docs/cluster.md").read_text().replace("\\\n", " ")
    lines = [*re.findall(r"python -m pipelines\.train (?!\.\.\.)(.+)", text), RAY_JOB["spec"]["entrypoint"]]
    return [shlex.split(line.removeprefix("python -m pipelines.train ")) for line in lines]


def test_documented_runs_are_understood() -> None:
    assert len(documented()) >= 2
    for argv in documented():
        arguments = parse(argv)
        assert arguments.cluster.gpu
        assert all(str(uri).startswith("s3://") for uri in (arguments.source, arguments.target, arguments.out))
        for stage in arguments.recipe.stages:
            assert stage.data.batch_size % (arguments.cluster.workers * stage.data.group_size) == 0
