"""The segmentation network: a timm backbone, a head, and where a method asks for it a part of its own per domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.heads import ASPPGroupNormHead, ASPPHead, MultiLevelHead, ProjectionHead
from udaseg.types import SegOutput

Domain = Literal["source", "target"]
HeadName = Literal["aspp", "aspp_gn", "multilevel"]
PerDomain = Literal["nothing", "stem", "stem+statistics"]


class Segmenter(nn.Module):
    """(B, 3, H, W) images in [0, 1] -> `SegOutput` with (B, K, H, W) logits.

    With `per_domain="stem"` everything up to the first stage of the backbone (reduction 4) exists twice, as in BCL;
    with "stem+statistics" so do the running statistics of every batch norm, which then describe one domain each.
    `forward(image, domain)` picks. Target copies stand in `target_parameters` and `target_buffers` under the name of
    the tensor that they replace.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        projection: nn.Module | None = None,
        per_domain: PerDomain = "nothing",
        stem_end: str = "",
        skip_levels: int = 0,
        feature_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.bf16 = False  # autocast to bfloat16, which needs no loss scaling
        self.net = _Net(backbone, head, projection, skip_levels)
        self.embedding_channels: int = (projection or head).embedding_channels  # type: ignore[assignment]
        self.feature_channels = tuple(feature_channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.target_parameters = nn.ParameterDict()
        self.target_buffers = _BufferDict()
        if per_domain != "nothing":
            stem = _names_until(backbone, stem_end)
            for name, parameter in backbone.named_parameters():
                if name in stem:
                    self.target_parameters[_key(f"backbone.{name}")] = nn.Parameter(
                        parameter.detach().clone(), requires_grad=parameter.requires_grad
                    )
            for name, buffer in self.net.named_buffers():
                if per_domain == "stem+statistics" or name.removeprefix("backbone.") in stem:
                    self.target_buffers.register_buffer(_key(name), buffer.detach().clone())

    def forward(self, image: Tensor, domain: Domain = "target") -> SegOutput:
        own = {**self.target_parameters, **dict(self.target_buffers.named_buffers())} if domain == "target" else {}
        replaced = {_name(key): tensor for key, tensor in own.items()}
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            x = (image - self.mean) / self.std
            features, logits, embedding = torch.func.functional_call(self.net, replaced, (x,))
        coarse = logits.float()
        logits = F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)
        aux = {"coarse_logits": coarse}
        return SegOutput(logits=logits, embedding=embedding.float(), features=tuple(features), aux=aux)

    def load_network(self, state: Mapping[str, Tensor]) -> None:
        """Load another `Segmenter`'s state. Parts that it does not have per domain start from the shared ones.

        A state that does have target parts, loaded into a network without, becomes the network of its target.

        Raises ValueError, naming a tensor, where the networks differ otherwise.
        """
        mine = self.state_dict()
        state = dict(state)
        theirs_only = [name for name in state if name.startswith(("target_parameters.", "target_buffers."))]
        for name in theirs_only:
            if name not in mine:
                state[f"net.{_name(name.split('.', 1)[1])}"] = state.pop(name)
        own = [name for name in mine if name.startswith(("target_parameters.", "target_buffers."))]
        for name in own:
            state.setdefault(name, state.get(f"net.{_name(name.split('.', 1)[1])}", mine[name]))
        for name, tensor in mine.items():
            if name not in state:
                raise ValueError(f"checkpoint lacks {name}: it is of another network; use the model settings it has")
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"checkpoint's {name} has shape {tuple(state[name].shape)}, the network's {tuple(tensor.shape)}: "
                    "it is of another network or another number of classes"
                )
        if extra := sorted(set(state) - set(mine)):
            raise ValueError(f"checkpoint has {extra[0]}, which the network lacks: it is of another network")
        self.load_state_dict(state)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters of (backbone with its target copies, head and projection)."""
        backbone = [*self.net.backbone.parameters(), *self.target_parameters.values()]
        head = [p for name, part in self.net.named_children() if name != "backbone" for p in part.parameters()]
        return [p for p in backbone if p.requires_grad], [p for p in head if p.requires_grad]


class _Net(nn.Module):
    """Backbone, head and projection: the module whose tensors `functional_call` replaces by name."""

    def __init__(self, backbone: nn.Module, head: nn.Module, projection: nn.Module | None, skip_levels: int) -> None:
        super().__init__()
        self.backbone, self.head, self.projection = backbone, head, projection
        self.skip_levels = skip_levels

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        features = list(self.backbone(x))[self.skip_levels :]
        logits, embedding = self.head(features)
        return features, logits, embedding if self.projection is None else self.projection(embedding)


class _BufferDict(nn.Module):
    """Buffers under names that attribute access would not take."""


def _key(name: str) -> str:
    return name.replace(".", "/")  # module and buffer names may not hold dots


def _name(key: str) -> str:
    return key.replace("/", ".")


def _names_until(backbone: nn.Module, stem_end: str) -> set[str]:
    """Names of the tensors of all modules up to and including `stem_end`, in the order they are registered."""
    modules = [name for name, _ in backbone.named_modules() if name]
    inside = [i for i, name in enumerate(modules) if name == stem_end or name.startswith(f"{stem_end}.")]
    if not inside:
        raise ValueError(f"this backbone has no module {stem_end!r}, so no stem of its own per domain can be made")
    stem = set(modules[: inside[-1] + 1])
    names = [name for name, _ in [*backbone.named_parameters(), *backbone.named_buffers()]]
    return {name for name in names if name.rpartition(".")[0] in stem}


def _first_not_loaded(body: nn.Module, backbone: str, options: Mapping[str, Any], random_state: Tensor) -> str | None:
    """The first matrix of `body` that still is as it was initialised: timm passes over what a file lacks."""
    blank_options = {name: value for name, value in options.items() if not name.startswith("pretrained")}
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        blank = timm.create_model(backbone, features_only=True, **blank_options)
    pairs = zip(body.named_parameters(), blank.parameters(), strict=True)
    return next((name for (name, loaded), new in pairs if new.ndim > 1 and torch.equal(loaded, new)), None)


def build_segmenter(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    pretrained: bool = False,
    weights: str | None = None,
    same_padding: bool = False,
    output_stride: int = 32,
    head: HeadName = "multilevel",
    head_branches: Sequence[int] = (6, 12, 18, 24),
    head_channels: int = 64,
    projection: int = 0,
    per_domain: PerDomain = "nothing",
    frozen_norm_affine: bool = False,
) -> Segmenter:
    """A `Segmenter` on any timm backbone that has `features_only`.

    Args:
        num_classes: K.
        backbone: a timm model name.
        pretrained: fetch the weights that timm names, from the hub.
        weights: a local safetensors or torch file of backbone weights in timm's key order; overrides `pretrained`.
        same_padding: TensorFlow-style padding, which weights converted from TensorFlow need.
        output_stride: 8, 16 or 32, where the backbone can be dilated.
        head: "aspp" (DeepLabV2), "aspp_gn" (ProDA, LDBE) or "multilevel".
        head_branches: dilations of the ASPP heads.
        head_channels: width of the "aspp_gn" and "multilevel" heads.
        projection: channels of a projection head for the embedding; 0 = none.
        per_domain: see `Segmenter`.
        frozen_norm_affine: keep the scale and shift of the backbone's batch norms as they are.

    Raises:
        ValueError: unknown backbone, one that cannot be built like this, or missing weights; it says which.
    """
    if not timm.is_model(backbone):
        close = timm.list_models(f"*{backbone.split('_')[0]}*")[:5]
        raise ValueError(f"timm has no model {backbone!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    options: dict[str, Any] = {"pad_type": "same"} if same_padding else {}
    if weights is not None:
        if not Path(weights).is_file():
            raise ValueError(f"model.weights: there is no file {weights}")
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights}}
    elif pretrained:
        options["pretrained"] = True
    if output_stride != 32:
        options["output_stride"] = output_stride
    random_state = torch.get_rng_state()
    try:
        body = timm.create_model(backbone, features_only=True, **options)
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"backbone {backbone!r} cannot be built with {options}: {error}") from error
    if weights is not None and (name := _first_not_loaded(body, backbone, options, random_state)):
        raise ValueError(f"model.weights: {weights} has no tensor for {name} of {backbone}")
    info = body.feature_info
    skip = sum(1 for r in info.reduction() if r < 4)  # stride 2 is too fine and too shallow to help a head
    channels = info.channels()[skip:]
    made: ASPPHead | ASPPGroupNormHead | MultiLevelHead
    if head == "aspp":
        made = ASPPHead(channels, num_classes, branches=head_branches)
    elif head == "aspp_gn":
        made = ASPPGroupNormHead(channels, num_classes, branches=head_branches, channels=head_channels)
    else:
        made = MultiLevelHead(channels, num_classes, channels=head_channels)
    if frozen_norm_affine:
        for module in body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
    stem_end = info.module_name()[skip]
    if stem_end not in dict(body.named_modules()):
        stem_end = stem_end.replace(".", "_")  # timm flattens sequential containers under such names
    config = timm.get_pretrained_cfg(backbone)
    return Segmenter(
        body,
        made,
        num_classes=num_classes,
        mean=config.mean if config else (0.485, 0.456, 0.406),
        std=config.std if config else (0.229, 0.224, 0.225),
        projection=ProjectionHead(made.embedding_channels, projection) if projection else None,
        per_domain=per_domain,
        stem_end=stem_end,
        skip_levels=skip,
        feature_channels=channels,
    )
