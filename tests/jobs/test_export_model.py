"""An exported model runs without udaseg, from bytes of images to classes, and is the original's."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import small_network
from PIL import Image
from tiny import CLASSES, draw, make_checkpoint

import udaseg
from pipelines.export import main
from udaseg.checkpoints import exporting
from udaseg.checkpoints.directory import ModelCard, load_model, save_model
from udaseg.checkpoints.exporting import LARGEST_DIFFERENCE, _of_whole_cells, _PaddedConv, export_network
from udaseg.checkpoints.predictor import METADATA, Prediction
from udaseg.config import Model
from udaseg.errors import CheckpointError, ConfigError, DatasetError
from udaseg.jobs.export import FILES
from udaseg.types import PerDomain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model", 0)


def loaded(file: Path) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], dict[str, object]]:
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == ["image"]
        assert [made.name for made in session.get_outputs()] == ["label", "confidence"]
        facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
        return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()}))), facts
    extra = {METADATA: ""}
    program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra[METADATA])


def test_a_file_sees_whole_images_where_its_model_has_windows(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, card = load_model(model)
    save_model(tmp_path / "windows", network, replace(card, window=(16, 20)))
    assert main([str(tmp_path / "windows"), "--out", str(tmp_path / "out"), "--size", "30", "41"]) == 0
    assert "predicts in windows of 16 x 20; the file sees whole images" in capsys.readouterr().err
    program, _ = loaded(tmp_path / "out" / "model.pt2")
    image = torch.arange(30 * 41 * 3).reshape(1, 30, 41, 3).remainder(251).byte()
    whole = udaseg.load(model).predict(image[0].numpy())
    torch.testing.assert_close(program(image)[1][0], torch.from_numpy(whole.confidence))


@pytest.mark.full
@pytest.mark.parametrize("form", FILES)
def test_of_any_size(form: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [model, "--out", str(tmp_path / "out"), "--format", form]
    assert main(words) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "takes batches of images of any size" in first
    difference = float(second.split()[5])
    assert second.startswith("max difference to the original: ") and difference < 1e-5 and "; 0 of " in second
    exported, facts = loaded(tmp_path / "out" / FILES[form])
    assert facts["names"] == list(CLASSES.names) and facts["palette"] == [list(c) for c in CLASSES.palette]
    assert facts["size"] is None
    predictor = udaseg.load(model, device="cpu")
    for size in ((40, 56), (56, 40), (40, 40), (97, 61), (32, 128), (300, 301)):
        images = np.stack([draw("target", n, size)[0] if min(size) >= 40 else noise(size) for n in range(2)])
        for batch in (images, images[:1]):
            labels, confidences = exported(torch.from_numpy(batch))
            for image, label, confidence in zip(batch, labels.numpy(), confidences.numpy(), strict=True):
                wanted = predictor.predict(image)
                assert label.dtype == np.uint8 and (label != wanted.label).mean() < 1e-3
                np.testing.assert_allclose(confidence, wanted.confidence, atol=1e-4)
    assert main(words) == 2
    assert "holds an exported model already" in capsys.readouterr().err


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_of_one_size(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, traced = torch.export.export, []

    def trace_once(*given: object, **how: object) -> object:  # what is written in either format is the same
        traced[:] = traced or [trace(*given, **how)]
        return traced[0]

    monkeypatch.setattr(torch.export, "export", trace_once)
    image = draw("target", 0, (48, 64))[0]
    wanted = udaseg.load(model, device="cpu").predict(image)
    for form, file in FILES.items():
        assert main([model, "--out", str(tmp_path / "out"), "--format", form, "--size", "48", "64"]) == 0
        assert "takes one image of 48 x 64 pixels" in capsys.readouterr().out
        exported, facts = loaded(tmp_path / "out" / file)
        assert facts["size"] == [48, 64] and facts["names"] == list(CLASSES.names)
        label, confidence = exported(torch.from_numpy(image)[None])
        assert np.array_equal(label[0].numpy(), wanted.label) and len(np.unique(wanted.label)) > 1
        np.testing.assert_allclose(confidence[0].numpy(), wanted.confidence, atol=1e-5)
    is_predicted_without_torch(tmp_path, image, wanted)


def is_predicted_without_torch(folder: Path, image: np.ndarray, wanted: Prediction) -> None:
    """`udaseg.load` and `udaseg predict` of a folder's out/model.onnx, which takes images of 48 x 64 pixels alone."""
    file = folder / "out" / "model.onnx"
    predictor = udaseg.load(file)
    assert (predictor.classes.names, predictor.classes.palette) == (CLASSES.names, CLASSES.palette)
    found = predictor.predict(image)
    assert found.label.dtype == np.uint8 and np.array_equal(found.label, wanted.label)
    np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-5)
    with pytest.raises(DatasetError, match="the image: 40 x 56 pixels, and the network was exported for 48 x 64 alone"):
        predictor.predict(draw("target", 0, (40, 56))[0])
    with pytest.raises(DatasetError, match="60000 x 1 pixels are too long and narrow"):
        predictor.predict(np.zeros((1, 60_000, 3), np.uint8))
    Image.fromarray(image).save(folder / "a.png")
    words = [str(file), str(folder / "a.png"), "--out", str(folder / "predictions"), "--overlay"]
    code = f"import sys; from pipelines.predict import main; print(main({words}), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 False" and not run.stderr
    assert np.array_equal(np.asarray(Image.open(folder / "predictions/labels/a.png")), wanted.label)
    assert (folder / "predictions/overlays/a.png").exists()


def test_other_files_are_no_exported_network(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    node = onnx.helper.make_node("Identity", ["image"], ["label"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1]) for name in ("image", "label")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]), ir_version=10)
    onnx.save(model, tmp_path / "others.onnx")
    onnx.helper.set_model_props(model, {METADATA: '{"names": ["road"], "palette": [[0, 0, 0]], "size": null}'})
    onnx.save(model, tmp_path / "old.onnx")
    for name, said in (
        ("none.onnx", "none.onnx: no such file"),
        ("text.onnx", "text.onnx: not a network that ONNX Runtime can read"),
        ("others.onnx", "others.onnx: not written by `udaseg export`"),
        ("old.onnx", r"old.onnx: its metadata are not those of this version \('short_side'\)"),
    ):
        with pytest.raises(CheckpointError, match=said):
            udaseg.load(tmp_path / name)
    for wish in ({"network": "teacher"}, {"device": "cuda"}):
        with pytest.raises(ConfigError, match="holds one network, which runs on the CPU"):
            udaseg.load(tmp_path / "others.onnx", **wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("per_domain", ["nothing", "stem"])
def test_tensorflow_s_padding_of_whole_cells_is_written_as_numbers(per_domain: PerDomain) -> None:
    network = small_network(per_domain, backbone="tf_mobilenetv3_small_minimal_100", head="aspp").eval()
    written = _of_whole_cells(network, card(short_side=128))
    padded = [conv.pads for conv in written.modules() if isinstance(conv, _PaddedConv)]
    assert padded == [(0, 1, 0, 1)] * 5 and not any(isinstance(conv, _PaddedConv) for conv in network.modules())
    image = torch.rand(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(written(image, "target").logits, network(image, "target").logits)
    assert _of_whole_cells(network, card(short_side=96)) is network  # such images keep their sides


@pytest.mark.full
@pytest.mark.parametrize("form", FILES)
def test_tensorflow_s_padding_of_any_size(form: exporting.Format) -> None:
    network = small_network(classes=3, backbone="tf_mobilenetv3_small_minimal_100").eval()
    done = export_network(network, card(short_side=128), format=form)
    assert done.size is None and done.difference < LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda label, sure: (label, sure - 0.002), r"differs from the original by 2\.0e-03 in a probability"),
        (lambda label, sure: (label, sure * math.nan), r"differs from the original by nan in a probability"),
        (lambda label, sure: ((label + 1) % 3, sure), r"another class than the original in 1600 of 1600 pixels"),
    ],
    ids=["probabilities", "nan", "labels"],
)
def test_one_that_differs_is_refused(spoil: Any, said: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be where tracing or writing lost something."""
    network, card = load_model(model)
    original = exporting.ImageToLabel(network, card)

    class Spoilt:
        def __init__(self, file: io.BytesIO) -> None: ...

        def module(self) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
            return lambda image: spoil(*original(image))

    monkeypatch.setattr(exporting.torch.export, "export", lambda *args, **kwargs: None)
    monkeypatch.setattr(exporting.torch.export, "save", lambda *args, **kwargs: None)
    monkeypatch.setattr(exporting.torch.export, "load", Spoilt)
    with pytest.raises(CheckpointError, match=said):
        export_network(network, card, (40, 40))


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"backbone": "mit_b0", "head": "context_aware"}, None),
        ({"backbone": "resnet26", "head": "aspp", "output_stride": 8}, None),
        ({"backbone": "test_vit"}, None),
        ({"backbone": "mit_b0", "head": "context_aware", "detail_crop": (64, 64)}, (64, 128)),
    ],
    ids=["mit", "deeplabv2", "vit", "hrda"],
)
def test_families_as_onnx(options: dict[str, object], size: tuple[int, int] | None) -> None:
    """Of any size, or where that cannot be, of one."""
    done = export_network(small_network(classes=3, **options).eval(), card(short_side=64), format="onnx")
    assert done.size == size and done.difference < LARGEST_DIFFERENCE and done.pixels > 8000


def card(short_side: int) -> ModelCard:
    return ModelCard(model=Model(), classes=CLASSES, short_side=short_side, recipe="none", stage="none", step=0)


def test_onnx_that_is_not_installed_is_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main([model, "--out", str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert capsys.readouterr().err == "error: --format onnx needs onnxscript: pip install 'udaseg[onnx]'\n"
    assert not (tmp_path / "out" / "model.onnx").exists()
