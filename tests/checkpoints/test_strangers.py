"""Model directories that are damaged, or by strangers: refused in one line, without code run or memory spent."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from equal_ranks import narrow_stage
from tiny import make_checkpoint, make_dataset
from torch import Tensor
from toy import make_state

from pipelines.evaluate import main as evaluate
from pipelines.pseudo_label import main as pseudo_label
from pipelines.train import main as train
from udaseg.checkpoints.directory import check_checkpoint, load_model, read_card, read_weights
from udaseg.checkpoints.tensor_files import read_header, read_state
from udaseg.data.classes import Classes
from udaseg.data.storage import write_bytes
from udaseg.errors import CheckpointError
from udaseg.jobs.preflight import check_resumable
from udaseg.models import image_sizes
from udaseg.training.step import RunState

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "half": lambda whole: whole[: len(whole) // 2],
    "all but one byte": lambda whole: whole[:-1],
    "pickle": lambda whole: pickle.dumps({"method": {"a": 1}}),
    "text": lambda whole: b"These are not the weights\nthat you are looking for",
    "number": lambda whole: b"3",
    "nested": lambda whole: b"[" * 100_000,
    "gigabytes": lambda whole: struct.pack("<Q", 1 << 40) + whole[8:],
    "nested header": lambda whole: struct.pack("<Q", 100_000) + b"[" * 100_000,
    "not UTF-8": lambda whole: b"\xff\xfe\x80" * 30,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all its files."""
    folder = tmp_path_factory.mktemp("original") / "model"
    make_checkpoint(folder, 0)
    network, _ = load_model(str(folder))
    state = {f"teacher.network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"method": state, "optimizers": [], "step": 0}, folder / "state.pt")
    return folder


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A copy, in whose card no digest keeps the weights from being changed."""
    copy = Path(shutil.copytree(original, tmp_path / "model"))
    change_card(copy, "weights_sha256", None)
    return copy


def refused(checkpoint: Path, part: Any = "predictor", *, file: str = "", reason: str = "") -> None:
    """`check_checkpoint` and `load_model` end with one line that names the file."""
    for use in (check_checkpoint, load_model):
        with pytest.raises(CheckpointError) as caught:
            use(str(checkpoint), part)
        text = str(caught.value)
        assert text.startswith(str(checkpoint / file)) and reason in text and "\n" not in text, text


@pytest.mark.parametrize("damage", [*DAMAGES, "folder"])
@pytest.mark.parametrize(
    ("file", "part"), [("model.safetensors", "predictor"), ("state.pt", "teacher"), ("model.json", "predictor")]
)
def test_a_damaged_or_foreign_file_is_named(file: str, part: str, damage: str, checkpoint: Path) -> None:
    path = checkpoint / file
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[damage](whole))
    refused(checkpoint, part, file=file)


def test_one_line_also_where_an_error_has_more(checkpoint: Path) -> None:
    change_card(checkpoint, "model.backbone", "no\nsuch\nnetwork")
    refused(checkpoint, file="model.json")


def change_card(checkpoint: Path, field: str, value: object) -> None:
    card = json.loads((checkpoint / "model.json").read_text())
    *sections, name = field.split(".")
    section = card
    for key in sections:
        section = section[key]
    section[name] = value
    (checkpoint / "model.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("model.backbone", "resnet10tt", "timm has no model"),
        ("model.backbone", "mit_b9", "mit_b0 to mit_b5"),
        ("model.backbone", "", "timm has no model"),
        ("model.head", "crystal_ball", "not a model card"),
        ("model.head_channels", -16, "model.head_channels is -16"),
        ("model.head_channels", 0, "model.head_channels is 0"),
        ("model.head_channels", 10_000_000, "has shape"),
        ("model.head_channels", 10**30, "model.json"),
        ("model.head_branches", [1] * 100_000, "head_branches"),
        ("model.head_branches", [0, -3], "head_branches"),
        ("model.head_branches", [[1]], "not a model card"),
        ("model.projection", 100_000_000, "lacks net.projection"),
        ("model.projection", -1, "model.projection is -1"),
        ("model.drop_path", 1.5, "model.drop_path is 1.5"),
        ("model.input_size", [-1, 4], "model.input_size is (-1, 4)"),
        ("model.input_size", [1, 2, 3], "not a model card"),
        ("model.output_stride", 7, "not a model card"),
        ("model.detail_crop", [30, 48], "model.detail_crop"),
        ("model.detail_crop", [0, 0], "model.detail_crop"),
        ("model.detail_crop", [32, 32], "lacks net.attention"),
        ("model.per_domain", 3, "not a model card"),
        ("image_sizes", {"multiple": 1 << 40, "smallest": 1 << 40}, "image_sizes"),
        ("image_sizes", {"multiple": "4"}, "not a model card"),
        ("image_sizes", [4], "not a model card"),
        ("classes", {"names": ["a"], "palette": [[0, 0, 0]]}, "number of classes"),
        ("classes", ["a"], "not a class list"),
        ("short_side", 0, "short_side is 0; 1 to"),
        ("window", [0, 64], "window is (0, 64)"),
        ("window", [64], "not a model card"),
        ("overlap", 1.0, "overlap is 1.0"),
        ("model", None, "not a model card"),
    ],
)
def test_a_card_that_describes_another_network_is_refused_before_that_is_built(
    field: str, value: object, reason: str, checkpoint: Path
) -> None:
    change_card(checkpoint, field, value)
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refused(checkpoint, reason=reason)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000, "KiB; these networks would need GiB"
    assert time.monotonic() - began < 20, "seconds, on a busy machine"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["predictor", "teacher"])
def test_a_weight_that_is_not_finite_is_named(part: str, value: float, checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    tensors["net.head.classify.weight"][0, 0] = value
    file = "model.safetensors" if part == "predictor" else "state.pt"
    if part == "predictor":
        safetensors.torch.save_file(tensors, checkpoint / file)
    else:
        torch.save({"method": {f"teacher.network.{k}": v for k, v in tensors.items()}}, checkpoint / file)
    refused(checkpoint, part, file=file, reason="net.head.classify.weight holds NaN or infinite values")


@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "another shape"])
def test_other_tensors_than_the_card_s_are_named(change: str, checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    bias = tensors["net.head.classify.bias"]
    if change in ("missing", "renamed"):
        del tensors["net.head.classify.bias"]
    if change in ("extra", "renamed"):
        tensors["net.head.surprise"] = bias.clone()
    if change == "another shape":
        tensors["net.head.classify.bias"] = bias.repeat(2)
    safetensors.torch.save_file(tensors, checkpoint / "model.safetensors")
    refused(checkpoint, reason="surprise" if change == "extra" else "net.head.classify.bias")


def test_a_bit_that_tipped_in_the_weights_is_found(original: Path, tmp_path: Path) -> None:
    """A card without a digest, as all were once, is as good as before."""
    copy = Path(shutil.copytree(original, tmp_path / "model"))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    refused(copy, file="model.safetensors", reason="other bytes than were saved")
    with pytest.raises(CheckpointError, match="other bytes than were saved"):
        read_weights(str(copy))
    card = json.loads((copy / "model.json").read_text())
    del card["weights_sha256"]
    (copy / "model.json").write_text(json.dumps(card))
    load_model(str(copy))


def test_half_precision_weights_are_taken(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    safetensors.torch.save_file(halves, checkpoint / "model.safetensors")
    network, _ = load_model(str(checkpoint))
    assert torch.equal(network.net.head.classify.weight, halves["net.head.classify.weight"].float())  # type: ignore[union-attr]


def test_only_the_header_of_a_file_is_read_to_know_its_shapes(tmp_path: Path) -> None:
    """20 GB, of which the disk holds the header alone."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [5_000_000_000], "data_offsets": [0, 20_000_000_000]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 20_000_000_000)
    assert read_header(str(tmp_path / "model.safetensors"))["x"].shape == (5_000_000_000,)


def test_a_header_is_read_from_an_object_store(original: Path, s3: Callable[[str, str], str]) -> None:
    uri = s3("strangers", "model.safetensors")
    content = (original / "model.safetensors").read_bytes()
    write_bytes(uri, content)
    local = read_header(str(original / "model.safetensors"))
    assert {k: v.shape for k, v in read_header(uri).items()} == {k: v.shape for k, v in local.items()}
    write_bytes(uri, content[:-1])
    with pytest.raises(CheckpointError, match="bytes, not"):
        read_header(uri)


# --- states ---------------------------------------------------------------------------------------------------------

STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list": lambda state: [state],
    "no method": lambda state: {"optimizers": [], "step": 1},
    "a method that is a list": lambda state: state | {"method": [torch.ones(2)]},
    "a number in the method": lambda state: state | {"method": state["method"] | {"x": 3}},
    "a nested method": lambda state: state | {"method": {"student": state["method"]}},
    "a missing tensor": lambda state: state | {"method": dict(list(state["method"].items())[1:])},
    "an extra tensor": lambda state: state | {"method": state["method"] | {"x": torch.ones(2)}},
    "a sparse tensor": lambda state: state | {"method": _first(state, lambda t: torch.zeros(t.shape).to_sparse())},
    "a quantised tensor": lambda state: (
        state
        | {"method": _first(state, lambda t: torch.quantize_per_tensor(torch.zeros(t.shape), 0.1, 0, torch.qint8))}
    ),
    "a tensor that swells": lambda state: state | {"method": _first(state, lambda t: torch.zeros(1).expand(10**12))},
    "another shape": lambda state: state | {"method": _first(state, lambda t: torch.zeros(7))},
    "no optimisers": lambda state: state | {"optimizers": []},
    "optimisers of numbers": lambda state: state | {"optimizers": [3]},
    "optimisers of another kind": lambda state: state | {"optimizers": [{"state": {}, "param_groups": []}]},
    "moments of another shape": lambda state: state | {"optimizers": [_moments(state["optimizers"][0])]},
    "moments that swell": lambda state: (
        state | {"optimizers": [state["optimizers"][0] | {"extra": torch.zeros(1).expand(10**12)}]}
    ),
    "a step that is a text": lambda state: state | {"step": "1"},
    "a negative step": lambda state: state | {"step": -1},
    "no step": lambda state: {k: v for k, v in state.items() if k != "step"},
}


def _first(state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    name = next(iter(state["method"]))
    return state["method"] | {name: change(state["method"][name])}


def _moments(optimizer: dict[str, Any]) -> dict[str, Any]:
    return optimizer | {"state": {0: {"momentum_buffer": torch.zeros(7)}}}


@pytest.fixture(scope="module")
def run() -> RunState:
    return make_state(narrow_stage("dacs"))


@pytest.mark.parametrize("kind", STATES)
def test_a_state_of_other_things_is_not_resumed_from(kind: str, run: RunState, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run.save(path)
    run.load(path)
    torch.save(STATES[kind](torch.load(path, weights_only=True)), path)
    with pytest.raises(CheckpointError) as caught:
        run.load(path)
    run.optimizers[0].state.clear()
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_found_before_a_run_is_resumed(damage: str, checkpoint: Path) -> None:
    registered = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_0000002"}]}
    folder = checkpoint.parent / "stages" / "0-x"
    shutil.copytree(checkpoint, folder / "checkpoint_0000002")
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(registered))
    check_resumable([str(folder)])
    state = folder / "checkpoint_0000002" / "state.pt"
    state.write_bytes(DAMAGES[damage](state.read_bytes()))
    with pytest.raises(CheckpointError, match=str(state)):
        check_resumable([str(folder)])
    with pytest.raises(CheckpointError, match=str(state)):
        read_state(str(state))


# --- what the card remembers ----------------------------------------------------------------------------------------


def test_the_card_remembers_what_sizes_the_backbone_takes(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sizes, "_FOUND", {})
    with monkeypatch.context() as patch:
        patch.setattr(image_sizes, "_takes", lambda *_: pytest.fail("searched again"))
        assert read_card(str(checkpoint)).image_sizes == load_model(str(checkpoint))[0].image_sizes
    card = json.loads((checkpoint / "model.json").read_text())
    del card["image_sizes"]  # an older one
    (checkpoint / "model.json").write_text(json.dumps(card))
    assert load_model(str(checkpoint))[0].image_sizes == image_sizes.ImageSizes()


# --- jobs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("evaluate", "train", "pseudo_label.job"):
        monkeypatch.setattr(f"udaseg.jobs.{module}.ensure_ray", lambda **_: pytest.fail("Ray was started"))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("job", ["evaluate", "pseudo-label", "agree-with", "init_from", "by"])
def test_jobs_refuse_a_checkpoint_before_they_start(
    job: str, checkpoint: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    data, out = make_dataset(tmp_path / "data", "source", train=4, val=2), str(tmp_path / "out")
    broken, whole = str(checkpoint), str(original)
    label = ["--images", data, "--out", out]
    small = ["--model.backbone", "test_byobnet", "--model.head-channels", "16", "--source", data, "--target", data]
    run: dict[str, Callable[[], int]] = {
        "evaluate": lambda: evaluate(["--checkpoint", broken, "--dataset", data]),
        "pseudo-label": lambda: pseudo_label(["--checkpoint", broken, *label]),
        "agree-with": lambda: pseudo_label(["--checkpoint", whole, "--agree-with", broken, *label]),
        "init_from": lambda: train(["dacs_small", *small, "--init-from", broken, "--out", out]),
        "by": lambda: train(["bcl_small", *small, "--out", out, "--pseudo-label.by", broken]),
    }
    assert run[job]() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {weights}: ") and error.count("\n") == 1
    assert not Path(out).exists()


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("names", [("ground", "sky"), ("ground", "sky", "tree")])
def test_a_source_of_other_classes_is_refused_before_an_image_is_labelled(
    names: tuple[str, ...], original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_dataset(tmp_path / "images", "target", train=2, val=0)
    source = make_dataset(tmp_path / "source", "source", train=2, val=0)
    palette = tuple((n, n, n) for n in range(len(names)))
    (tmp_path / "source" / "classes.json").write_text(Classes(names=names, palette=palette).to_json())
    words = ["--checkpoint", str(original), "--images", images, "--out", str(tmp_path / "out"), "--source", source]
    assert pseudo_label(words) == 2
    assert f"{source}: its classes are {', '.join(map(repr, names))}; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_ray")
def test_prototypes_need_a_source_with_labels(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_dataset(tmp_path / "images", "target", train=2, val=0)
    source = make_dataset(tmp_path / "source", "source", train=2, val=0, labelled=False)
    words = ["--checkpoint", str(original), "--images", images, "--out", str(tmp_path / "out"), "--source", source]
    assert pseudo_label([*words, "--rules.measure", "prototype"]) == 2
    assert f"{source}: none of its train images has a label" in capsys.readouterr().err


def test_a_list_of_checkpoints_that_was_cut_off_is_named(tmp_path: Path) -> None:
    """Ray writes it in place, so that a full disk leaves half of it."""
    (tmp_path / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{"checkpoint_di')
    with pytest.raises(CheckpointError, match=r"snapshot\.json: not a whole list of checkpoints"):
        check_resumable([str(tmp_path)])
