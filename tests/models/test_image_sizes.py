"""Which image sizes backbones take: found by trial, padded in the mean colour where needed, cut off afterwards."""

from __future__ import annotations

import pytest
import torch
from networks import small_network
from torch import Tensor

from udaseg.models import image_sizes
from udaseg.models.hrda import HRDA
from udaseg.models.image_sizes import ImageSizes
from udaseg.models.inference import predict
from udaseg.models.segmenter import Segmenter

_ANY, _FROM_32 = ImageSizes(), ImageSizes(smallest=32)
FAMILIES: dict[str, ImageSizes] = {
    "resnet10t": _ANY,
    "convnext_atto": _FROM_32,
    "test_vit": ImageSizes(16, 16),
    "mit_b0": _FROM_32,
    "hrnet_w18_small": ImageSizes(32, 32),
    "deit_tiny_patch16_224:64x96": ImageSizes(only=(64, 96)),
}
MORE: dict[str, ImageSizes] = {
    "hiera_tiny_224:64x96": ImageSizes(only=(64, 96)),
    "mobilenetv3_small_050": _ANY,
    "efficientnet_lite0": _ANY,
    "regnetx_002": _ANY,
    "densenet121": _FROM_32,
    "dla34": ImageSizes(32, 32),
    "inception_v3": ImageSizes(smallest=128),
    "edgenext_xx_small": _FROM_32,
    "pvt_v2_b0": _FROM_32,
    "twins_svt_small": _FROM_32,
    "davit_tiny": _ANY,
    "tiny_vit_5m_224": _ANY,
    "swin_tiny_patch4_window7_224": ImageSizes(4, 4),
    "swinv2_tiny_window8_256": ImageSizes(4, 4),
    "swinv2_cr_tiny_224": _FROM_32,
    "maxvit_tiny_tf_224": ImageSizes(224, 224),
    "vit_small_patch14_dinov2": ImageSizes(14, 14),
    "vit_small_patch16_dinov3": ImageSizes(16, 16),
    "eva02_tiny_patch14_224": ImageSizes(14, 14),
    "vit_tiny_patch16_224:64x96": ImageSizes(only=(64, 96)),
    "beit_base_patch16_224:64x96": ImageSizes(only=(64, 96)),
}


def network_of(family: str, **options: object) -> Segmenter:
    name, _, size = family.partition(":")
    if size:
        height, width = map(int, size.split("x"))
        options["input_size"] = (height, width)
    return small_network(backbone=name, **options)


def image_of(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.full) for name in MORE)])
def test_a_backbone_trains_and_predicts_at_odd_sizes(family: str) -> None:
    network = network_of(family)
    expected = (FAMILIES | MORE)[family]
    assert network.image_sizes == expected
    fits = [(65, 71), (20, 24), (50, 131)] if expected.only is None else [(63, 71), (20, 24), (50, 96)]
    for size in fits:
        network.train()
        out = network(image_of(*size))
        assert out.logits.shape == (2, 5, *size)
        out.logits.square().mean().backward()
        network.eval()
        probability = predict(
            network, image_of(*size), short_side=size[0] + 7, scales=(0.5, 1.0, 1.3), flip=True, blend="taper"
        )
        assert probability.shape == (2, 5, *size)
        torch.testing.assert_close(probability.sum(1), torch.ones(2, *size))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.net.head.parameters())


@pytest.mark.parametrize(
    ("family", "size", "seen", "cells"),
    [
        ("resnet10t", (65, 71), (65, 71), (3, 3)),
        ("resnet10t", (20, 24), (20, 24), (1, 1)),
        ("mit_b0", (65, 71), (65, 71), (3, 3)),
        ("convnext_atto", (65, 71), (65, 71), (2, 2)),
        ("convnext_atto", (20, 71), (32, 71), (1, 2)),
        ("test_vit", (65, 64), (80, 64), (5, 4)),
        ("hrnet_w18_small", (65, 64), (96, 64), (3, 2)),
        ("deit_tiny_patch16_224:64x96", (20, 90), (64, 96), (2, 6)),
    ],
)
def test_images_are_padded_only_where_they_must_be(
    family: str, size: tuple[int, int], seen: tuple[int, int], cells: tuple[int, int]
) -> None:
    """The padding is 0 to the backbone, its mean colour, and its cells are cut off the coarsest level."""
    network, given = network_of(family).eval(), []
    network.net.backbone.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))  # type: ignore[operator]
    out = network(image_of(*size))
    (x,) = given
    assert x.shape[-2:] == seen
    assert not x[..., size[0] :, :].any() and not x[..., size[1] :].any()
    assert out.features[-1].shape[2:] == cells


def test_padding_does_not_move_what_is_predicted() -> None:
    network, image = network_of("hrnet_w18_small").eval(), image_of(65, 71)
    whole = network.mean.expand(2, 3, 96, 96).clone()
    whole[..., :65, :71] = image
    by_hand = network(whole)
    torch.testing.assert_close(network(image).logits[..., :64, :70], by_hand.logits[..., :64, :70])
    assert torch.equal(network(image).embedding, by_hand.embedding[..., :17, :18])


def test_a_trial_draws_nothing_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sizes, "_FOUND", {})
    tried = []
    monkeypatch.setattr(image_sizes, "_takes", lambda *a, takes=image_sizes._takes: tried.append(a[1]) or takes(*a))
    first = small_network(backbone="test_vit")
    after_first, trials = torch.rand(3), len(tried)
    second = small_network(backbone="test_vit")
    assert trials and len(tried) == trials
    assert torch.equal(after_first, torch.rand(3)) and second.image_sizes == first.image_sizes
    third = small_network(backbone="test_vit", image_sizes=ImageSizes(32, 32))
    assert len(tried) == trials and third.image_sizes == ImageSizes(32, 32)
    assert first.net.backbone.training, "as it was before the trial"


def test_a_backbone_whose_tensors_cannot_do_without_memory_is_tried_with_it() -> None:
    class Mixes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.ones(1, 3, 1, 1)  # no buffer

        def forward(self, x: Tensor) -> list[Tensor]:
            assert x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0
            return [x * self.table]

    assert image_sizes.find_image_sizes(Mixes(), [4], None, key="mixes") == ImageSizes(4, 4)


def test_a_backbone_that_takes_nothing_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"hiera_tiny_224.*\(65, 97\).*model\.input_size"):
        network_of("hiera_tiny_224:65x97")


def test_larger_images_than_the_only_size_are_predicted_in_windows_and_not_trained_on() -> None:
    network = network_of("deit_tiny_patch16_224:64x96").eval()
    image = image_of(100, 150)
    with pytest.raises(ValueError, match=r"64 x 96 pixels alone.*100 x 150: set model\.input_size"):
        network(image)
    windows = predict(network, image, short_side=100)
    assert torch.equal(windows, predict(network, image, short_side=100, window=(64, 96)))
    assert torch.equal(windows, predict(network, image, short_side=100, window=(500, 500)))
    both = network_of("deit_tiny_patch16_224:64x96", detail_crop=(64, 96)).eval()
    assert both.largest == (128, 192) and predict(both, image_of(140, 200), short_side=140).shape == (2, 5, 140, 200)
    with pytest.raises(ValueError, match="64 x 96 pixels alone"):
        network_of("deit_tiny_patch16_224:64x96", detail_crop=(128, 96))


@pytest.mark.parametrize(
    ("family", "unit"), [("mit_b0", 8), ("hrnet_w18_small", 64), ("test_vit", 32), ("resnet10t", 8)]
)
def test_detail_crops_fall_on_whole_cells(family: str, unit: int) -> None:
    network = network_of(family, detail_crop=(64, 64))
    assert isinstance(network, HRDA) and network.unit == unit
    for size in ((97, 131), (40, 50)):
        for index, detail in ((None, "everywhere"), (torch.arange(2), "random")):
            out = network(image_of(*size), "target", index, detail)
            assert out.logits.shape == (2, 5, *size) and out.logits.isfinite().all()
    with pytest.raises(ValueError, match=rf"model\.detail_crop.*multiples of {unit}"):
        network_of(family, detail_crop=(unit // 2 * 3, 64))


@pytest.mark.parametrize(
    "sizes",
    [ImageSizes(0, 1), ImageSizes(-4, 4), ImageSizes(1 << 20, 1 << 20), ImageSizes(4, 6), ImageSizes(only=(0, 4))],
)
def test_sizes_of_no_backbone_are_refused(sizes: ImageSizes) -> None:
    with pytest.raises(ValueError, match="image_sizes"):
        sizes.check()
