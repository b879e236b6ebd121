"""A GPU that computes nothing: tensors that say they are on it, and errors where the host would wait for them.

Shapes, types and devices are worked out by torch's fake tensors. What lies on the CPU is computed as ever. Refused are
reading a value (`item`, `bool`, `tolist`, a copy to the CPU), shapes that depend on values (`nonzero`, `masked_select`,
indexing by a mask, `bincount`, `unique`), copies to the device that wait (`torch.tensor(..., device=...)`, `to` without
`non_blocking`), and operations on tensors of both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)


class Waits(RuntimeError):
    """The host would wait for the device."""


_IN_PLACE = (torch.ops.aten._fused_sgd_, torch.ops.aten._fused_adam_, torch.ops.aten._fused_adamw_)


class _Refuse(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = any(isinstance(x, FakeTensor) for x in tensors)
        to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if not on_gpu and to != GPU.type:
            with no_dispatch():
                return func(*args, **kwargs)
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if on_gpu and to == "cpu":
            raise Waits(f"{func} copies to the CPU")
        if tensors and not on_gpu and not kwargs.get("non_blocking"):
            raise Waits(f"{func} copies from the CPU without non_blocking")
        if on_gpu and not copies and any(x.ndim and not isinstance(x, FakeTensor) for x in tensors):
            raise Waits(f"{func} takes tensors of both CPU and GPU")
        if func.overloadpacket in _IN_PLACE:  # has no fake, and returns nothing
            return None
        if func is torch.ops.aten.cudnn_grid_sampler.default:  # has no fake
            func, args = torch.ops.aten.grid_sampler_2d.default, (*args, 0, 0, True)
        try:
            return func(*args, **kwargs)
        except (torch._subclasses.fake_tensor.DataDependentOutputException,
                torch._subclasses.fake_tensor.DynamicOutputShapeException) as error:  # fmt: skip
            raise Waits(f"{func} depends on values") from error


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Within it `GPU` is a device. The backward pass, for which autograd needs a real one, leaves zeros."""

    def backward(loss: Tensor, *_: Any, **__: Any) -> None:
        assert loss.requires_grad and loss.device == GPU

    def grad(outputs: Tensor, inputs: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        return (torch.zeros_like(inputs),)

    with (
        mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(Tensor, "record_stream", lambda tensor, stream: None),
        mock.patch.multiple(torch.cuda, Stream=mock.Mock(), current_stream=mock.Mock(), stream=contextlib.nullcontext),
        mock.patch.object(Tensor, "backward", backward),
        mock.patch.object(torch.autograd, "grad", grad),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Refuse(),
    ):
        yield


def move(module: nn.Module) -> None:
    """Put a module's parameters and buffers on the `GPU`, as `Module.to` does, which fake tensors do not take."""
    moved: dict[int, Tensor] = {}

    def there(tensor: Tensor) -> Tensor:
        return moved.setdefault(id(tensor), tensor.detach().to(GPU, non_blocking=True))

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(there(parameter), requires_grad=parameter.requires_grad)
        kept = {"updates"} if type(part).__name__ == "EMATeacher" else set()  # it stays on the CPU
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in kept:
                part._buffers[name] = there(buffer)
