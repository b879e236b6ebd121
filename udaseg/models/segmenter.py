"""The segmentation network: a backbone, a head, and where a method asks for it a part of its own per domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.growth import grown
from udaseg.models.heads import Head, HeadPair
from udaseg.models.image_sizes import ImageSizes, crop, pad
from udaseg.types import Detail, Domain, PerDomain, SegOutput


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
        head: Head | HeadPair,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        projection: nn.Module | None = None,
        per_domain: PerDomain = "nothing",
        stem_end: str = "",
        skip_levels: int = 0,
        feature_channels: Sequence[int] = (),
        feature_stride: int = 32,
        stride: int = 4,
        image_sizes: ImageSizes | None = None,
        align_corners: bool = False,
        bgr: bool = False,
        attention: Head | None = None,
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.bf16 = bf16  # autocast to bfloat16, which needs no loss scaling
        self.seed = seed  # key of the run and stage for what the network draws
        self.stride = stride  # pixels of an image in a cell of the head's output
        self.image_sizes = image_sizes or ImageSizes()
        self.align_corners = align_corners  # of the upsampling of logits
        self.bgr = bgr  # the order of the channels that the backbone reads
        self.net = _Net(backbone, head, projection, skip_levels, attention)
        self.embedding_channels: int = (projection or head).embedding_channels  # type: ignore[assignment]
        self.feature_channels = tuple(feature_channels)
        self.feature_stride = feature_stride  # pixels of an image in a cell of the last level
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

    def forward(
        self,
        image: Tensor,
        domain: Domain = "target",
        index: Tensor | None = None,
        detail: Detail = "random",
    ) -> SegOutput:
        """The output for images of one domain.

        Args:
            image: (B, 3, H, W) in [0, 1].
            domain: whose parts of the network are used.
            index: (B,) global sample indices, keys of what the network draws for a sample; only `HRDA` draws.
            detail: what `HRDA` sees in full detail: one crop a sample, at random or where the prediction is least
                certain, as a student does in training; or everything, for labels and evaluation.
        """
        features, coarse, embedding, _ = self.run(image, domain)
        aux = {"coarse_logits": coarse}
        return SegOutput(logits=self.upsampled(coarse, image), embedding=embedding, features=features, aux=aux)

    def run(self, image: Tensor, domain: Domain) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor | None]:
        """(levels, logits, embedding, attention) at their own resolutions."""
        maps = self._maps(image, domain)
        attention = None if self.net.attention is None else maps.pop()
        *levels, logits, embedding = maps
        return tuple(levels), logits, embedding, attention

    def _maps(self, image: Tensor, domain: Domain, *, levels_alone: bool = False) -> list[Tensor]:
        """What `_Net` makes of images, in single precision.

        Images of sizes that the backbone does not take are padded in its mean colour, and the padding's cells cut off.
        """
        own = {**self.target_parameters, **dict(self.target_buffers.named_buffers())} if domain == "target" else {}
        replaced = {_name(key): tensor for key, tensor in own.items()}
        size = image.shape[-2:]
        padded = self.image_sizes.padded(size[0], size[1])
        image = pad(image, padded, self.mean)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            x = (image - self.mean) / self.std
            x = x.flip(1) if self.bgr else x
            maps: list[Tensor] = torch.func.functional_call(self.net, replaced, (x, levels_alone))
        if self.bf16:
            maps = [one.float() for one in maps]
        return maps if padded == size else [crop(one, padded, size) for one in maps]

    def upsampled(self, coarse: Tensor, image: Tensor) -> Tensor:
        """Logits of `run` at the size of the image."""
        size = height, width = tuple(image.shape[-2:])
        if self.image_sizes.padded(height, width) != size:  # whole cells, the last of which reach beyond the image
            size = (max(height, coarse.shape[2] * self.stride), max(width, coarse.shape[3] * self.stride))
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=self.align_corners)[..., :height, :width]

    @property
    def largest(self) -> tuple[int, int] | None:
        """Height and width of the largest image that is taken, where the backbone takes images of one size alone."""
        return self.image_sizes.only

    def levels(self, image: Tensor, domain: Domain) -> tuple[Tensor, ...]:
        """What `features` of the output is; the head is not run."""
        return tuple(self._maps(image, domain, levels_alone=True))

    def source_buffers(self) -> set[str]:
        """Names of the buffers that are the source's alone, as the target has its own."""
        return {f"net.{_name(key)}" for key, _ in self.target_buffers.named_buffers()}

    def load_network(self, state: Mapping[str, Tensor], *, background: int | None = None) -> None:
        """Load another `Segmenter`'s state, see `matched`, whose ValueErrors it raises."""
        self.load_state_dict(self.matched(state, background=background))

    def matched(self, state: Mapping[str, Tensor], *, background: int | None = None) -> dict[str, Tensor]:
        """Another `Segmenter`'s state as one of this. Parts that it does not have per domain are the shared ones.

        A state that does have target parts becomes, for a network without, that of its target. Values are not read.

        Args:
            state: of the other one, which may lie on the meta device.
            background: where it may have fewer classes, the one that pixels of new classes had: the head grows, see
                `udaseg.models.growth.grown`.

        Raises ValueError, naming a tensor, where the networks differ otherwise.
        """
        mine = self.state_dict()
        if background is not None:
            state = grown(state, self.net, self.net.head, self.net.attention, background)
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
        return state

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters of (backbone with its target copies, head and projection)."""
        backbone = [*self.net.backbone.parameters(), *self.target_parameters.values()]
        head = [p for name, part in self.net.named_children() if name != "backbone" for p in part.parameters()]
        return [p for p in backbone if p.requires_grad], [p for p in head if p.requires_grad]


class _Net(nn.Module):
    """Backbone, head and projection: the module whose tensors `functional_call` replaces by name."""

    def __init__(
        self,
        backbone: nn.Module,
        head: Head | HeadPair,
        projection: nn.Module | None,
        skip_levels: int,
        attention: Head | None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.projection, self.attention = backbone, head, projection, attention
        self.skip_levels = skip_levels

    def forward(self, x: Tensor, levels_alone: bool = False) -> list[Tensor]:
        """Levels, logits, embedding and, where there is one, attention; or the levels alone."""
        levels = list(self.backbone(x))[self.skip_levels :]
        if levels_alone:
            return levels
        logits, embedding = self.head(levels)
        attention = [] if self.attention is None else [self.attention(levels)[0]]
        return [*levels, logits, embedding if self.projection is None else self.projection(embedding), *attention]


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
