"""A model as one file that runs without udaseg, of torch.export or ONNX: image bytes to the class of every pixel."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from udaseg.checkpoints.directory import ModelCard
from udaseg.checkpoints.predictor import METADATA
from udaseg.data.strict_json import dump_json
from udaseg.errors import CheckpointError
from udaseg.extras import require_extra
from udaseg.models.hrda import HRDA
from udaseg.models.inference import predict
from udaseg.models.segmenter import Segmenter
from udaseg.rng import keyed

Format = Literal["torch-export", "onnx"]
Reader = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What a reader of the file computes of images, see `ImageToLabel`."""

_AXES = {0: "batch", 1: "height", 2: "width"}  # of images whose size is open
LARGEST_DIFFERENCE = 1e-3
"""Of a probability, between the exported network and the original; more is an error."""
LARGEST_SHARE = 0.01
"""Of the pixels, whose class may be another: where two are nearly as probable, rounding decides."""


class ImageToLabel(nn.Module):
    """(B, H, W, 3) uint8 RGB images -> (B, H, W) uint8 train ids and (B, H, W) float32 probabilities of these.

    The network's parameters get no gradients any more.
    """

    def __init__(self, network: Segmenter, card: ModelCard) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.size = card.size()
        self.probability = inspect.unwrap(predict)  # tensors of the inference mode cannot be traced

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.permute(0, 3, 1, 2).float() / 255
        confidence, label = self.probability(self.network, pixels, **self.size).max(1)
        return label.to(torch.uint8), confidence


class Exported(NamedTuple):
    """A file, and how it was checked."""

    content: bytes
    size: tuple[int, int] | None
    """Height and width of the images that it takes; None = any, in batches of any size. Of one size, one at a time."""
    difference: float
    """The largest between a probability of it and of the original."""
    pixels: int
    """That were compared."""
    other_classes: int
    """Of these, how many have another class."""


def export_network(
    network: Segmenter, card: ModelCard, size: tuple[int, int] | None = None, format: Format = "torch-export"
) -> Exported:
    """Export a network in evaluation mode, on the CPU, and compare what comes out with what went in.

    Args:
        network: in evaluation mode.
        card: its card; names and colours of the classes become metadata.
        size: height and width of the only images that it shall take; None = any, where that can be exported, else
            `card.short_side` and twice that.
        format: of the file.

    Raises CheckpointError where it cannot be exported, or differs from the original by more than LARGEST_DIFFERENCE,
    and ConfigError where what writes the format is not installed.
    """
    if format == "onnx":
        require_extra("onnx", "--format onnx")
    write = {"torch-export": _torch_export, "onnx": _onnx}[format]
    module = ImageToLabel(network, card).eval()
    traced = ImageToLabel(_of_whole_cells(network, card), card).eval()
    if size is None:
        # Neither side is such that nothing is resized or padded, which would be taken to be so of all images.
        height, width = card.short_side + 9, card.short_side * 3 // 2 + 23
        shapes = [(2, height, width), (1, width - 6, height + 4), (3, height * 2, width)]
        try:
            return _checked(module, traced, card, shapes, write, dynamic=True)
        except Exception:  # whatever tracing raises of a network that asks its tensors for their size
            size = (card.short_side, 2 * card.short_side)
    try:
        return _checked(module, traced, card, [(1, *size)], write, dynamic=False)
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"the network cannot be exported: {type(error).__name__}: {reason}") from error


class _PaddedConv(nn.Conv2d):
    pads: tuple[int, int, int, int]
    """Left, right, above, below."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.pads))


def _of_whole_cells(network: Segmenter, card: ModelCard) -> Segmenter:
    """The network, with TensorFlow's padding written as numbers where it sees whole cells, which every stride divides.

    It is a formula of the image's size otherwise; a tracer that compares these had not ended after four minutes."""
    if network.align_corners or isinstance(network, HRDA) or card.short_side < 4 * network.feature_stride:
        return network  # see `udaseg.models.inference.predict`
    network = copy.deepcopy(network)
    for conv in network.modules():
        if isinstance(conv, Conv2dSame):
            height, width = (
                max((kernel - 1) * dilation + 1 - stride, 0)
                for kernel, dilation, stride in zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
            )
            conv.__class__ = _PaddedConv
            conv.pads = (width // 2, width - width // 2, height // 2, height - height // 2)
    return network


Write = Callable[[torch.export.ExportedProgram, str], tuple[bytes, Reader]]
"""A traced network and the metadata -> the file's content, and what reads it."""


@torch.no_grad()
def _checked(
    module: ImageToLabel,
    traced: ImageToLabel,
    card: ModelCard,
    shapes: list[tuple[int, int, int]],
    write: Write,
    *,
    dynamic: bool,
) -> Exported:
    """Export `traced` by images of the first shape (batch, height, width), and compare it with `module` on all."""
    images = [torch.from_numpy(_image(shape)) for shape in shapes]
    dims = {axis: torch.export.Dim(name, min=1 if axis == 0 else 2) for axis, name in _AXES.items()}
    program = torch.export.export(traced, (images[0],), dynamic_shapes=(dims,) if dynamic else None)
    size = None if dynamic else shapes[0][1:]
    content, exported = write(program, metadata(card, size))
    differences, pixels, other = [], 0, 0
    for image in images:
        label, confidence = module(image)
        found, certain = exported(image)
        differences.append(float((certain - confidence).abs().max()))
        pixels, other = pixels + label.numel(), other + int((found != label).sum())
    difference = float(np.max(differences))  # NaN if one is
    if not difference <= LARGEST_DIFFERENCE:
        raise CheckpointError(f"the exported network differs from the original by {difference:.1e} in a probability")
    if other > LARGEST_SHARE * pixels:
        raise CheckpointError(
            f"the exported network finds another class than the original in {other} of {pixels} pixels"
        )
    return Exported(content, size, difference, pixels, other)


def _torch_export(program: torch.export.ExportedProgram, facts: str) -> tuple[bytes, Reader]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: facts})
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()


def _onnx(program: torch.export.ExportedProgram, facts: str) -> tuple[bytes, Reader]:
    """Input "image", outputs "label" and "confidence"."""
    import onnxruntime

    written = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["image"],
        output_names=["label", "confidence"],
        dynamic_shapes=(_AXES,) if program.range_constraints else None,  # for their names
    )
    assert written is not None
    written.model.metadata_props[METADATA] = facts
    content = written.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def read(image: Tensor) -> tuple[Tensor, Tensor]:
        label, confidence = session.run(["label", "confidence"], {"image": image.numpy()})
        return torch.from_numpy(label), torch.from_numpy(confidence)

    return content, read


def metadata(card: ModelCard, size: tuple[int, int] | None) -> str:
    """What a program must know to use the file, as JSON."""
    content: dict[str, Any] = {
        "names": card.classes.names,
        "palette": card.classes.palette,
        "input": "(B, H, W, 3) uint8 RGB",
        "output": ["(B, H, W) uint8 train ids", "(B, H, W) float32 probability of that class"],
        "size": size,
        "short_side": card.short_side,
        "depth_range": card.depth_range,
        "recipe": card.recipe,
        "torch": torch.__version__,
    }
    return dump_json(content, indent=1)


def _image(shape: tuple[int, int, int]) -> np.ndarray:
    """(B, H, W, 3) uint8 of gradients and noise, so that classes change within it."""
    batch, height, width = shape
    waves = np.sin(np.linspace(0, 9, height)[:, None] * np.linspace(1, 3, 3)) * 90 + 128
    noise = keyed(0, "export", batch, height, width).normal(0, 25, (batch, height, width, 3))
    return (waves[:, None] + noise).clip(0, 255).astype(np.uint8)
