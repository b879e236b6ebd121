"""Files of backbone weights, as torch, timm and the field's repositories have them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import safetensors
import timm.models
from torch import Tensor, nn

_CAFFE_SCALE = "Scale."
"""Before every name in the files of Caffe's networks that the DeepLabV2 line starts from."""


def read_backbone_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a local safetensors or torch file by name, without wrappers; no code in it is executed.

    Raises ValueError, naming the file, where it cannot be read or holds anything but tensors.
    """
    try:
        content = timm.models.load_state_dict(path, weights_only=True)
    except (
        AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
        pickle.UnpicklingError, safetensors.SafetensorError,
    ) as error:  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.weights: {path} is no file of tensors: {reason}") from error
    if wrong := [name for name, tensor in content.items() if not isinstance(tensor, Tensor)]:
        raise ValueError(f"model.weights: {path} has {str(wrong[0])[:60]!r}, which is no tensor")
    if all(name.startswith(_CAFFE_SCALE) for name in content):
        content = {name.removeprefix(_CAFFE_SCALE): tensor for name, tensor in content.items()}
    return dict(content)


def load_backbone(body: nn.Module, tensors: Mapping[str, Tensor], path: str, name: str) -> None:
    """Load the tensors that a backbone has; others, such as a classifier's, are left out.

    Raises ValueError, naming the first tensor of backbone `name` that the file at `path` lacks or has in another shape.
    """
    mine = body.state_dict()
    for key, tensor in mine.items():
        if key not in tensors:
            raise ValueError(f"model.weights: {path} has no tensor for {key} of {name}")
        if tensors[key].shape != tensor.shape:
            shapes = tuple(tensors[key].shape), tuple(tensor.shape)
            raise ValueError(f"model.weights: {path} has {key} of shape {shapes[0]}, but {name} of {shapes[1]}")
    body.load_state_dict({key: tensors[key] for key in mine})
