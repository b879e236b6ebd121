"""Stages and batches small enough to train a method for some steps within a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from udaseg.components.equal_contrast import PNE
from udaseg.components.masked_consistency import MIC
from udaseg.components.relation_consistency import CRDA
from udaseg.config import Data, Model, Optim, Stage, Stream
from udaseg.data.confidence import encode_distribution
from udaseg.methods.adabn import AdaBN
from udaseg.methods.advent import ADVENT
from udaseg.methods.base import MethodConfig
from udaseg.methods.bcl import BCL
from udaseg.methods.cada import CADA
from udaseg.methods.camix import CAMix
from udaseg.methods.clan import CLAN
from udaseg.methods.classwise import Classwise
from udaseg.methods.cluda import CLUDA
from udaseg.methods.dacs import DACS
from udaseg.methods.daformer import DAFormer
from udaseg.methods.drsl import DRSL
from udaseg.methods.dsp import DSP
from udaseg.methods.ehtdi import EHTDI
from udaseg.methods.i2i_cr import I2ICR
from udaseg.methods.ldbe import LDBE
from udaseg.methods.proca import ProCA
from udaseg.methods.proda import ProDA
from udaseg.methods.rccr import RCCR
from udaseg.methods.sdca import SDCA
from udaseg.methods.sepico import SePiCo
from udaseg.methods.spcl import SPCL
from udaseg.methods.stvm import STvM
from udaseg.methods.supervised import Supervised
from udaseg.methods.tada import TADA
from udaseg.methods.ucd import UCD
from udaseg.methods.ucda import UCDA
from udaseg.methods.vfm import VFM
from udaseg.models.segmenter import Segmenter
from udaseg.recipes import RECIPES
from udaseg.training.batches import to_batches
from udaseg.training.step import RunState, build_state
from udaseg.types import IGNORE, Batch, Loss

CLASSES = 4
CPU = torch.device("cpu")
SEED = 11

_TRUE = Stream(labels="true")
_PAPER = BCL.Config(variant="paper", transfer_threshold=0.3, calibration_momentum=0.5, teacher_momentum=0.9)
_CLUDA = CLUDA.Config(
    things=(1, 2),
    threshold=0.3,
    feature_weight=0.1,
    ignore_top=0,
    ignore_bottom=5,
    contrast_size=9,
    attention_channels=16,
    seek_from=2,
)
_SEPICO = SePiCo.Config(
    threshold=0.3,
    temperature=1.0,
    min_share=0.5,
    contrast_from=0,
    projection_channels=8,
    ignore_top=3,
    ignore_bottom=5,
)
_EHTDI = EHTDI.Config(
    things=(1, 2, 3),
    threshold=0.3,
    target_weight=1.0,
    mixed_weight=0.5,
    contrast_weight=0.1,
    auxiliary_branches=(1,),
    crop=(32, 32),
)
_UCDA = UCDA.Config(
    projection_channels=8,
    bank_length=6,
    bank_cells=2,
    temperature=0.5,
    hard=(1, 2),
    neighbours=2,
    agreeing=2,
    expand_from=0,
)
_TADA = TADA.Config(threshold=0.3, keep=0.8, anchors=64, anchors_per_class=4, projection_channels=8, group_size=2)
_TEMPLATES: dict[str, Stream | None] = {"template": _TRUE, "rare": _TRUE}
DATA: dict[type[MethodConfig], dict[str, Stream | None]] = {
    LDBE.Config: {"source": None},
    STvM.Config: {"source": None},
    DSP.Config: _TEMPLATES,
    ProDA.Config: {"target": Stream(labels="distribution")},
    CAMix.Config: {"target": Stream(labels="none", prior=True)},
    UCD.Config: {"target": None},
    TADA.Config: {"source": Stream(labels="candidates"), "fewshot": _TRUE},
}
"""Streams that a method reads beside or in place of source and target."""
METHODS: dict[str, MethodConfig] = {
    "supervised": Supervised.Config(),
    "oracle": Supervised.Config(stream="target"),
    "pne": Supervised.Config(pne=PNE(weight=0.5, anchors=4, keys=4)),
    "adabn": AdaBN.Config(),
    "dacs": DACS.Config(threshold=0.3),
    "classwise": Classwise.Config(),
    "crda": DACS.Config(threshold=0.3, crda=CRDA(weight=0.5, pixels=64)),
    "bcl": BCL.Config(),
    "bcl_teacher": BCL.Config(teacher_momentum=0.9),
    "bcl_paper": _PAPER,
    "bcl_mix": replace(_PAPER, target_ce="hybrid", teacher_momentum=0.9, mix=True),
    "bcl_hybrid_ce": replace(_PAPER, target_ce="hybrid", temperature=0.05),
    "daformer": DAFormer.Config(things=(1, 2), threshold=0.3, feature_weight=0.1, ignore_top=3, ignore_bottom=5),
    "mic": DAFormer.Config(things=(1,), threshold=0.3, feature_weight=0.0, mic=MIC(weight=1.0, block=16)),
    "mic_both": DACS.Config(threshold=0.3, mic=MIC(weight=1.0, block=16, blur_probability=0.0, images="both")),
    "cluda": replace(_CLUDA, attention_channels=8),
    "cluda_hrda": _CLUDA,
    "cluda_released_hrda": replace(_CLUDA, variant="released", seek_from=0),
    "vfm": VFM.Config(threshold=0.3, mic=MIC(weight=1.0, block=16)),
    "ldbe_denoising": LDBE.Config(place_spread=1),
    "ldbe_enhancement": LDBE.Config(phase="boundary_enhancement", threshold=0.3, group_size=2),
    "stvm": STvM.Config(metric_channels=8, metric_threshold=0.3, teacher_momentum=0.9),
    "dsp": DSP.Config(long_tail=(2, 3), threshold=0.3, mmd_channels=8, mmd_weight=0.05),
    "dsp_released": DSP.Config(long_tail=(0,), keep_soft_term=False, mmd_mask="first", mmd_channels=8, mmd_weight=0.1),
    "camix": CAMix.Config(
        threshold=0.3,
        context_from=0,
        companions=((1, 2), (2, 3)),
        passes=2,
        ramp_steps=10,
        feature_weight=0.1,
        things=(1, 2),
    ),
    "rccr": RCCR.Config(
        threshold=0.3,
        contrast_threshold=0.3,
        contrast_weight=10.0,
        projection_channels=8,
        bank_length=40,
        bank_cells=3,
    ),
    "ehtdi": _EHTDI,
    "ehtdi_edges": replace(_EHTDI, edges=True, samples="first", group_size=2),
    "sdca": SDCA.Config(temperature=1.0, threshold=0.3),
    "proda": ProDA.Config(fill_steps=1, min_cells=2, prototype_momentum=0.9, teacher_momentum=0.9),
    "proda_warm_up": ProDA.Config(phase="warm_up", discriminator_channels=8, adversarial_weight=0.1),
    "proda_distil": ProDA.Config(phase="distil"),
    "advent": ADVENT.Config(auxiliary_branches=(1, 2), target_weight=0.1, discriminator_channels=4),
    "clan": CLAN.Config(preheat_steps=0, adversarial_weight=0.1, discriminator_channels=4),
    "cada": CADA.Config(
        attention_channels=8, context_branches=(1, 2), adversarial_weight=0.1, discriminator_channels=4
    ),
    "i2i_cr": I2ICR.Config(phase="consistency", threshold=0.3, group_size=2),
    "i2i_cr_translation": I2ICR.Config(
        generator_channels=4, generator_blocks=1, discriminator_channels=4, teacher_momentum=0.9
    ),
    "ucd": UCD.Config(old_classes=2, group_size=2),
    "tada": _TADA,
    "tada_released": replace(_TADA, variant="released", temperature=0.5),
    "spcl": SPCL.Config(temperature=1.0),
    "proca": ProCA.Config(temperature=0.5, threshold=0.3),
    "ucda": _UCDA,
    "drsl": DRSL.Config(modes=2, metric_channels=8),
    "sepico": _SEPICO,
    "sepico_bank": replace(_SEPICO, contrast="bank", bank_length=2, levels="last", crop=(64, 64)),
}
TWO_RESOLUTIONS = ("cluda_hrda", "cluda_released_hrda")


def make_stage(method: str, /, **optim: object) -> Stage:
    """A stage with the named method on a small network, per domain where the method is BCL."""
    config = METHODS[method]
    return Stage(
        name=method,
        method=config,
        steps=40,
        model=Model(
            backbone="resnet10t",
            head_channels=16,
            output_stride=8 if isinstance(config, TADA.Config) else 32,
            per_domain="stem+statistics" if isinstance(config, BCL.Config) else "nothing",
            head_pair=isinstance(config, CLAN.Config),
            detail_crop=(32, 32) if method in TWO_RESOLUTIONS else None,
        ),
        data=Data(
            crop=(64, 64),
            batch_size=4,
            group_size=config.group_size or 1,
            **({"source": _TRUE, "target": Stream(labels="pseudo")} | DATA.get(type(config), {})),
        ),
        optim=Optim(**({"name": "sgd", "lr": 5e-3, "head_lr_factor": 2.0} | optim)),  # type: ignore[arg-type]
    )


def recipe_stages(name: str) -> list[Stage]:
    """A small recipe's stages, for batches of `make_batches`: fewer classes, smaller crops, lower thresholds."""
    stages = []
    for stage in RECIPES[name]().stages:
        own = {
            "threshold": 0.3,
            "mix_threshold": 0.3,
            "things": (1, 2),
            "long_tail": (2,),
            "hard": (2,),
            "expand_from": 1,
            "fill_steps": 2,
        }
        own |= {
            "contrast_size": 9,
            "group_size": 2,
            "place_spread": 1,
            "preheat_steps": 0,
            "contrast_from": 2,
            "old_classes": 2,
            "metric_threshold": 0.3,
            "anchors_per_class": 4,
            "relabel_from": 2,
        }
        method = replace(stage.method, **{k: v for k, v in own.items() if k in stage.method.__dataclass_fields__})
        model = replace(stage.model, detail_crop=stage.model.detail_crop and (32, 32))
        if model.backbone == "test_byobnet":
            stride = 8 if isinstance(method, TADA.Config) else model.output_stride  # of the cells that it contrasts
            model = replace(model, backbone="resnet10t", head_channels=16, output_stride=stride)
        data = replace(stage.data, crop=(64, 64), batch_size=4, group_size=method.group_size or 1, scale=(1.0, 1.0))
        optim = Optim(name="adamw", lr=3e-3, head_lr_factor=1.0)
        stages.append(replace(stage, method=method, model=model, data=data, optim=optim, steps=14))
    return stages


def adapting_stage(name: str) -> Stage:
    """The last of `recipe_stages` whose method is one of adaptation, if any is."""
    stages = recipe_stages(name)
    return next((s for s in reversed(stages) if not isinstance(s.method, Supervised.Config)), stages[-1])


def make_state(stage: Stage, seed: int = SEED) -> RunState:
    return build_state(stage, CLASSES, seed=seed, init=None, device=CPU, bf16=False)


def make_batches(stage: Stage, step: int = 0, size: int = 2, first: int = 0) -> dict[str, Batch]:
    """Samples [first, first + size) of a step on the CPU."""
    return to_batches(make_columns(step, size, first), stage.data, seed=SEED, device=CPU)


def make_columns(step: int = 0, size: int = 2, first: int = 0) -> dict[str, np.ndarray]:
    """Those samples as they are streamed: blocks of classes, each of a colour, more or less of them unlabelled."""
    columns: dict[str, np.ndarray] = {"index": np.arange(first, first + size) + step * 1000}
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 60]])
    for domain, shift in (("source", 0), ("target", 40), ("template", 1), ("rare", 2), ("fewshot", 41)):
        images, labels = [], []
        for index in columns["index"].tolist():
            rng = np.random.default_rng([index, shift])
            label = rng.integers(0, CLASSES, (4, 4)).repeat(16, 0).repeat(16, 1)
            image = colours[label] + rng.integers(0, 40, (64, 64, 3)) - shift
            label[: 16 * (index % 4)] = IGNORE  # ranks hold different numbers of labelled pixels
            images.append(image.clip(0, 255))
            labels.append(label)
        columns |= {f"{domain}_image": np.stack(images).astype(np.uint8), f"{domain}_label": np.stack(labels)}
        if domain == "target":  # what labelled it is sure of the label, of nothing where there is none
            here = np.stack(labels)[:, None, ::8, ::8] == np.arange(CLASSES)[:, None, None]
            probability = np.where(here.any(1, keepdims=True), np.where(here, 0.7, 0.1), 0.25)
            columns["target_distribution"] = encode_distribution(probability)
            rows = np.linspace(0.1, 0.9, 8)[:, None] + 0 * np.arange(8)  # classes 0 and 1 above, 2 and 3 below
            prior = np.stack([1 - rows, 1 - rows, rows, rows]) / 2
            columns["target_prior"] = encode_distribution(np.broadcast_to(prior, (size, *prior.shape)))
    # the source may take what is of class 1 or 2 for one class, and class 3 for unknown
    columns["source_candidates"] = np.array([[0, 1, 1, 0], [0, 0, 0, 1]], np.uint8)[None].repeat(size, 0)
    return columns


def warm_up(network: Segmenter) -> None:
    """Give every batch norm statistics that images like these have."""
    generator = torch.Generator().manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(8):
            image = torch.rand(2, 3, 64, 64, generator=generator)
            network(image, "source", detail="everywhere")
            network(image, "target", detail="everywhere")


def flat(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy().copy() for name, tensor in tensors.items()}


def collect(state: RunState, batches: dict[str, Batch]) -> dict[str, Loss]:
    """The losses of step 0 by name."""
    state.method.train()
    found = [loss for losses in state.method.losses(batches, 0, 10) for loss in losses]
    assert len({loss.name for loss in found}) == len(found)
    return {loss.name: loss for loss in found}


def collect_frozen(state: RunState, batches: dict[str, Batch]) -> dict[str, Loss]:
    """Without dropout, and with batch norms that use their running statistics."""
    state.method.eval()
    return {loss.name: loss for losses in state.method.losses(batches, 0, 10) for loss in losses}


def losses_where_all_is_known(name: str, weight: Tensor | None) -> dict[str, Loss]:
    """Of a target whose every pixel has a label of the round, with that weight."""
    stage = make_stage(name)
    batches = make_batches(stage)
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    return collect_frozen(
        make_state(stage), batches | {"target": replace(batches["target"], label=label, weight=weight)}
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of what differs from a `snapshot`."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
