"""HRDA: where its detail crop lies, how both resolutions are blended, and what the loss reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.losses.segmentation import cross_entropy, output_cross_entropy
from udaseg.models.build import build_segmenter
from udaseg.models.hrda import HRDA
from udaseg.types import IGNORE, SegOutput

CLASSES = 3


def network(detail_crop: tuple[int, int] = (32, 48), **options: object) -> HRDA:
    torch.manual_seed(0)
    settings = {"backbone": "resnet10t", "head_channels": 16} | options
    made = build_segmenter(CLASSES, detail_crop=detail_crop, **settings)  # type: ignore[arg-type]
    assert isinstance(made, HRDA)
    return made.eval()


def images(count: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def blended(net: HRDA, image: Tensor, detail: Tensor, inside: Tensor) -> Tensor:
    """The published rule, pixel by pixel: up((1 - a) c) + up(a) d, with a = 0 outside the crop."""
    _, context, _, attention = net.run(F.interpolate(image, scale_factor=0.5, mode="bilinear"), "target")
    assert attention is not None
    a = attention.sigmoid() * inside[..., ::2, ::2]
    up = {"scale_factor": 2.0, "mode": "bilinear"}
    fused = F.interpolate((1 - a) * context, **up) + F.interpolate(a, **up) * detail  # type: ignore[arg-type]
    return F.interpolate(fused, size=image.shape[-2:], mode="bilinear")


def test_one_crop_is_blended_where_it_lies_and_nowhere_else() -> None:
    net, image = network(), images(4)
    out = net(image, "target", torch.arange(4))
    at = out.aux["detail_at"]
    assert out.logits.shape == (4, CLASSES, 64, 96) and out.aux["detail_logits"].shape == (4, CLASSES, 32, 48)
    detail, inside = torch.zeros(4, CLASSES, 16, 24), torch.zeros(4, 1, 16, 24)
    for n, (i, j) in enumerate(at.tolist()):
        crop = image[n : n + 1, :, i : i + 32, j : j + 48]
        logits = net.run(crop, "target")[1]
        detail[n, :, i // 4 : i // 4 + 8, j // 4 : j // 4 + 12] = logits[0]
        inside[n, :, i // 4 : i // 4 + 8, j // 4 : j // 4 + 12] = 1
        torch.testing.assert_close(
            out.aux["detail_logits"][n], F.interpolate(logits, size=(32, 48), mode="bilinear")[0], atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(out.logits, blended(net, image, detail, inside), atol=1e-5, rtol=1e-4)
    assert out.aux["detail_embedding"].shape[-2:] == (16, 24)
    assert torch.equal(out.aux["detail_embedding"].abs().sum(1) > 0, inside[:, 0] > 0)


def test_everywhere_crops_cover_the_image() -> None:
    net, image = network(), images()
    total, count = torch.zeros(2, CLASSES, 16, 24), torch.zeros(1, 1, 16, 24)
    for i in (0, 16, 32):
        for j in (0, 24, 48):
            here = (..., slice(i // 4, i // 4 + 8), slice(j // 4, j // 4 + 12))
            total[here] += net.run(image[..., i : i + 32, j : j + 48], "target")[1]
            count[here] += 1
    expected = blended(net, image, total / count, torch.ones(2, 1, 16, 24))
    torch.testing.assert_close(net(image, detail="everywhere").logits, expected, atol=1e-5, rtol=1e-4)


def test_places_are_keyed_by_sample_domain_and_seed_and_whole_cells() -> None:
    net, index = network(), torch.arange(60)
    image = images(1).expand(60, -1, -1, -1)

    def places(domain: str = "target", seed: int = 0, part: slice = slice(None)) -> Tensor:
        net.seed = seed
        with torch.no_grad():
            at: Tensor = net(image[part], domain, index[part]).aux["detail_at"]  # type: ignore[arg-type]
        return at

    at = places()
    assert not (at % 8).any() and set(at[:, 0].tolist()) == {0, 8, 16, 24, 32} and at[:, 1].max() == 48
    assert torch.equal(places(part=slice(7, 9)), at[7:9])
    assert not torch.equal(places("source"), at) and not torch.equal(places(seed=1), at)


def test_the_least_certain_crop_is_found() -> None:
    net = network()
    context = torch.zeros(2, CLASSES, 8, 12)
    context[:, 0] = 9  # certain, but for one corner each
    context[0, :, 4:, 6:], context[1, :, 2:6, :6] = 0, 0
    assert net._most_uncertain(context, (32, 48)).tolist() == [[32, 48], [16, 0]]
    out = net(images(), "target", detail="entropy")
    context = net.run(F.interpolate(images(), scale_factor=0.5, mode="bilinear"), "target")[1]
    assert torch.equal(out.aux["detail_at"], net._most_uncertain(context, (32, 48)))


def test_a_random_crop_without_the_sample_s_index_is_refused() -> None:
    with pytest.raises(ValueError, match=r'HRDA.*index.*detail="everywhere"'):
        network()(images())


@pytest.mark.parametrize("size", [(65, 71), (40, 30), (20, 24)])
def test_any_size_of_image_is_taken(size: tuple[int, int]) -> None:
    """Also one that is smaller than the detail crop."""
    net, image = network(), images(size=size)
    for detail in ("everywhere", "random", "entropy"):
        assert net(image, "target", torch.arange(2), detail).logits.shape == (2, CLASSES, *size)


def test_a_crop_of_broken_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"detail_crop.*multiples of 8"):
        network(detail_crop=(30, 48))


@pytest.mark.parametrize("head", ["aspp", "aspp_gn", "context_aware", "multilevel"])
def test_every_head_gives_logits_and_attention(head: str) -> None:
    net = network((64, 64), head=head, head_channels=32)
    out = net(images(2, (128, 128)), "target", torch.arange(2))
    assert out.logits.shape == (2, CLASSES, 128, 128)
    out.logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.net.attention.parameters() if p.ndim > 1)


def test_the_levels_are_the_context_s() -> None:
    net, image = network(), images()
    for mine, theirs in zip(net.levels(image, "target"), net(image, detail="everywhere").features, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_the_loss_is_nine_parts_blend_and_one_part_crop(reduction: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, detail = torch.randn(2, 3, 8, 8, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    label = torch.randint(0, 3, (2, 8, 8), generator=generator)
    label[0, :3] = IGNORE
    weight = torch.rand(2, 8, 8, generator=generator)
    at = torch.tensor([[0, 4], [2, 6]])  # the second one reaches over the border
    out = SegOutput(logits=logits, embedding=detail, aux={"detail_logits": detail, "detail_at": at})
    crop_label, crop_weight = torch.full((2, 4, 4), IGNORE), torch.zeros(2, 4, 4)
    crop_label[0], crop_weight[0] = label[0, :4, 4:], weight[0, :4, 4:]
    crop_label[1, :, :2], crop_weight[1, :, :2] = label[1, 2:6, 6:], weight[1, 2:6, 6:]
    options = {"reduction": reduction}
    expected = 0.9 * cross_entropy(logits, label, weight, **options)  # type: ignore[arg-type]
    expected = expected + 0.1 * cross_entropy(detail, crop_label, crop_weight, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(output_cross_entropy(out, label, weight, **options), expected)  # type: ignore[arg-type]
    plain = SegOutput(logits=logits, embedding=detail)
    torch.testing.assert_close(output_cross_entropy(plain, label), cross_entropy(logits, label))


@pytest.mark.parametrize("name", ["caffe", "align_corners"])
def test_a_network_whose_maps_are_no_whole_cells_is_refused(name: str) -> None:
    form = {"backbone": "resnet26", "output_stride": 8, "head": "aspp", "detail_crop": (64, 64), name: True}
    with pytest.raises(ValueError, match=rf"model\.{name}: HRDA .* leave it off"):
        build_segmenter(4, **form)  # type: ignore[arg-type]


def test_crops_are_one_batch_while_it_trains_and_come_one_by_one_otherwise() -> None:
    """Batch norm normalises all of them together, as its authors have it."""
    net, image, seen = network(), images(1), list[int]()
    net.net.backbone.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    net.train()(image, detail="everywhere")
    assert seen == [1, 9]
    seen.clear()
    net.eval()(image, detail="everywhere")
    assert seen == [1] * 10
