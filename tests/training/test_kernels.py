"""How networks compute on a device: one graph each when compiled, the same results, and settings of GPUs alone."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import small_network
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from toy import CPU, SEED, changed, make_batches, make_stage, make_state, snapshot

from udaseg.errors import ConfigError
from udaseg.job_config import Cluster
from udaseg.models.backbones import attend_fused
from udaseg.training import kernels
from udaseg.training.kernels import blocks_of, checkpoint_networks, compile_networks, set_precision
from udaseg.training.step import train_step

KINDS: dict[str, dict[str, Any]] = {
    "DeepLabV2": {"backbone": "resnet10t", "head": "aspp"},
    "ProDA": {"backbone": "resnet10t", "head": "aspp_gn", "head_channels": 32},
    "mobilenet": {"backbone": "mobilenetv3_small_050"},
    "ViT": {"backbone": "test_vit", "head": "context_aware"},
    "DAFormer": {"backbone": "mit_b0", "head": "context_aware", "drop_path": 0.1},
    "HRDA": {"backbone": "resnet10t", "head": "context_aware", "detail_crop": (32, 32)},
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "ViT" else pytest.mark.full) for k in KINDS])
def test_backbone_and_head_are_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    network = small_network(**KINDS[kind]).train()
    if kind in ("ViT", "DAFormer"):
        checkpoint_networks(nn.ModuleList([network]))
    found = torch._dynamo.explain(network.net)(torch.rand(2, 3, 64, 64))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.full
@pytest.mark.parametrize("method", ["dacs", "bcl_teacher", "cluda_hrda"])
def test_compiled_networks_learn_the_same_and_are_compiled_in_the_first_steps_alone(method: str) -> None:
    """With a compiler that runs a graph as it is: student and teacher, both domains' own parts, both resolutions."""
    torch._dynamo.reset()
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    stage = make_stage(method)
    plain, fast = make_state(stage), make_state(stage)
    compile_networks(fast.method, backend)
    counts = []
    for step in range(4):
        batches = make_batches(stage, step)
        values = train_step(plain, batches, stage, seed=SEED)
        assert train_step(fast, batches, stage, seed=SEED) == pytest.approx(values, rel=1e-4, abs=1e-7)
        counts.append(compiled)
    assert counts[0] > 0 and counts[1] == counts[3] <= 8, counts  # 8 forms of a network are kept


def test_a_compiled_network_is_saved_and_evaluated_as_any_other() -> None:
    network = small_network().eval()
    image, before = torch.rand(1, 3, 64, 96), snapshot(network)

    def refuses(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise AssertionError("an image of evaluation was compiled for")

    compile_networks(nn.ModuleList([network]), refuses)
    assert not changed(before, network)
    with torch.compiler.set_stance("force_eager"):
        assert network(image).logits.shape == (1, 5, 64, 96)


def test_fused_attention_is_that_of_the_package() -> None:
    network = small_network(backbone="mit_b0").double().eval()
    attentions = [m for m in network.modules() if type(m).__name__ == "Attention"]
    assert {m.sr_ratio for m in attentions} == {1, 2, 4, 8}
    for attention in attentions:
        x = torch.randn(2, 16 * 24, attention.dim, dtype=torch.float64)
        x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        mine, theirs = attend_fused(attention, x, 16, 24), attention(other, 16, 24)
        torch.testing.assert_close(mine, theirs)
        for out in (mine, theirs):
            (out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
        torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize("method", ["dacs", "cluda_hrda"])
@pytest.mark.parametrize("backbone", ["mit_b0", "test_vit"])
def test_checkpointed_networks_learn_the_same(method: str, backbone: str) -> None:
    """To the bit, with paths that are dropped at random."""
    stage = make_stage(method)
    dropped = 0.3 if backbone == "mit_b0" else 0.0
    stage = replace(stage, model=replace(stage.model, backbone=backbone, drop_path=dropped))
    plain, less = make_state(stage), make_state(stage)
    kernels.prepare(less.method, Cluster(gpu=False, grad_checkpointing=True), CPU)
    for step in range(3):
        batches = make_batches(stage, step)
        assert train_step(plain, batches, stage, seed=SEED) == train_step(less, batches, stage, seed=SEED)
    assert not changed(snapshot(plain.method), less.method)


@pytest.mark.parametrize(("backbone", "share"), [("mit_b0", 0.75), ("test_vit", 0.5), ("convnext_atto", 0.5)])
def test_checkpointed_networks_keep_less(backbone: str, share: float) -> None:
    network, image = small_network(backbone=backbone).train(), torch.rand(2, 3, 96, 96)
    whole = kept_for_backward(network, image)
    checkpoint_networks(nn.ModuleList([network]))
    assert kept_for_backward(network, image) < share * whole


def kept_for_backward(network: nn.Module, image: Tensor) -> int:
    """Bytes of the tensors that are alive after a forward pass and were not before."""

    def alive() -> dict[int, int]:
        gc.collect()
        found = [x.untyped_storage() for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
        return {storage.data_ptr(): storage.nbytes() for storage in found}

    held: list[Tensor] = []  # what autograd saves is no Python object otherwise

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    before = alive()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(image, "source").logits
    after = alive()
    assert out.requires_grad
    return sum(size for pointer, size in after.items() if pointer not in before)


def test_blocks_of_a_list_that_grows_are_computed_again_of_what_it_held() -> None:
    network = small_network(backbone="rdnet_tiny")
    checkpoint_networks(network)
    network(torch.rand(1, 3, 32, 32)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.net.backbone.parameters())


def test_a_copy_of_a_checkpointed_network_is_one_of_its_own() -> None:
    """As pictures and scores of checkpoints make."""
    network = small_network(backbone="test_vit").train()
    checkpoint_networks(nn.ModuleList([network]))
    image, twin = torch.rand(1, 3, 64, 64), copy.deepcopy(network)
    before = twin(image).logits
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(twin(image).logits, before) and not torch.equal(network(image).logits, before)
    twin(image).logits.sum().backward()
    assert all(p.grad is None for p in network.parameters()) and any(p.grad is not None for p in twin.parameters())


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({"backbone": "resnet10t"}, "block layer1.0 of this one has batch norms"),
        ({"backbone": "mobilenetv3_small_050"}, "this one has no blocks"),
    ],
)
def test_networks_that_cannot_be_checkpointed_are_refused(network: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^cluster.grad_checkpointing is for .*{reason}"):
        blocks_of(small_network(**network))


def test_blocks_of_which_the_target_has_its_own_are_not_checkpointed() -> None:
    """The second pass would use the source's."""
    assert len(blocks_of(small_network(backbone="convnext_atto"))) == 12
    with pytest.raises(ConfigError, match=r"block stages_0\.blocks\.0 .*of the target's own"):
        blocks_of(small_network("stem", backbone="convnext_atto"))


def test_precision_is_of_gpus_alone() -> None:
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark

    def now() -> tuple[str, bool, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark

    try:
        set_precision(Cluster(gpu=True), CPU)
        assert now() == kept
        set_precision(Cluster(gpu=True), torch.device("cuda"))
        assert now() == ("high", True, True)
        set_precision(Cluster(gpu=True, tf32=False, cudnn_benchmark=False), torch.device("cuda"))
        assert now() == ("highest", False, False)
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = kept[1:]


def test_batch_norms_over_ranks_keep_tensors_activations_and_names() -> None:
    network = small_network(backbone="mobilenetv3_small_050", head="multilevel").eval()
    assert any(isinstance(m, BatchNormAct2d) for m in network.modules())
    image, before = torch.rand(2, 3, 64, 64), snapshot(network)
    parameters, expected = dict(network.named_parameters()), network(image).logits
    made = convert_sync_batchnorm(network)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in made.modules()) > 10
    assert not any(type(m) in (nn.BatchNorm2d, BatchNormAct2d) for m in made.modules())
    assert not changed(before, made) and all(p is parameters[name] for name, p in made.named_parameters())
    assert torch.equal(made(image).logits, expected)


def test_batch_norms_over_ranks_are_refused_on_cpus() -> None:
    with pytest.raises(ConfigError, match="sync_batch_norm"):
        Cluster(gpu=False, sync_batch_norm=True).check()
    replace(Cluster(gpu=False), sync_batch_norm=False).check()


@pytest.mark.parametrize(
    ("asked", "device", "over_ranks"), [(None, "cuda", 1), (None, "cpu", 0), (False, "cuda", 0), (True, "cpu", 1)]
)
def test_batch_norm_is_over_ranks_on_a_gpu_or_as_asked(
    asked: bool | None, device: str, over_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[nn.Module] = []
    monkeypatch.setattr(kernels, "world_size", lambda: 2)
    monkeypatch.setattr(kernels, "convert_sync_batchnorm", converted.append)
    cluster = replace(Cluster(gpu=False), sync_batch_norm=asked)
    kernels.prepare(nn.Identity(), cluster, torch.device(device))
    assert len(converted) == over_ranks
