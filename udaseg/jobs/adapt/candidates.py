"""The recipes that an adaptation tries, with the network, crops and steps that were chosen for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from udaseg.config import Data, Model, Recipe, Stage, Stream
from udaseg.errors import ConfigError
from udaseg.jobs.adapt.choice import Choice
from udaseg.methods.adabn import AdaBN
from udaseg.methods.supervised import Supervised
from udaseg.recipes import RECIPES
from udaseg.recipes.common import SMALL

RECOMMENDED = "classwise_small"
SOURCE_FREE = "ldbe_small"
"""What is tried where the user names no candidate, with and without a source."""

WARM = "source"
"""The stage of the warm start."""


def recipe_names(asked: Sequence[str], *, source: bool) -> list[str]:
    """The recipes of candidates, which may lack their `_small`; the recommended one where none is asked for.

    Raises ConfigError for one that there is not, that needs a warm start of its own, or reads what there is not.
    """
    if not asked:
        return [RECOMMENDED if source else SOURCE_FREE]
    possible = [name for name in RECIPES if name.endswith("_small") and _is_candidate(RECIPES[name](), source)]
    names = [name if name.endswith("_small") else f"{name}_small" for name in asked]
    if unknown := [given for given, name in zip(asked, names, strict=True) if name not in possible]:
        without = "" if source else " without a source"
        raise ConfigError(f"--candidates: no {unknown[0]!r}{without}; there are {', '.join(possible)}")
    return list(dict.fromkeys(names))


def _adapting(recipe: Recipe) -> list[Stage]:
    """The stages after the warm start."""
    return [stage for stage in recipe.stages if stage.data.domains() != ["source"]]


def _is_candidate(recipe: Recipe, source: bool) -> bool:
    """Whether a recipe adapts to a target without labels, from any warm start, and reads no more than there is.

    HRDA's attention and CLAN's second head must have learnt in the warm start, and VFM has a network of its own.
    """
    stages = _adapting(recipe)
    reads = {domain for stage in stages for domain in stage.data.domains()}
    streams = [stream for stage in stages for stream in (stage.data.target, stage.data.fewshot)]
    return bool(
        stages
        and all(stream is None or stream.labels != "true" for stream in streams)
        and all(stage.model == SMALL for stage in stages)
        and (source or "source" not in reads)
    )


def warm_start(choice: Choice, seed: int) -> Recipe:
    """The network on the source alone, its images drawn by rare classes."""
    return _recipe("source_only_small", (_warm_stage(choice),), seed)


def _warm_stage(choice: Choice) -> Stage:
    data = Data(
        batch_size=choice.batch_size,
        short_side=choice.short_side,
        scale=(1.0, 1.3),
        crop=choice.crop,
        source=_rare_source(choice, Stream(labels="true")),
        target=None,
    )
    method = Supervised.Config(stream="source")
    return Stage(name=WARM, method=method, steps=choice.warm_steps, model=choice.model, data=data, optim=choice.optim)


def source_only(choice: Choice, seed: int, checkpoint: str | None) -> Recipe:
    """What candidates are compared with: what they start from, trained on the source as long as they adapt.

    The warm start itself would be no fair measure: more steps on the source alone improve a network on the target too.
    """
    warm = _warm_stage(choice)
    more = replace(warm, name="more", steps=choice.steps, init_from=checkpoint or WARM)
    return _recipe("source_only_small", (more,) if checkpoint else (warm, more), seed)


def candidate(name: str, choice: Choice, class_pixels: np.ndarray | None, seed: int, checkpoint: str | None) -> Recipe:
    """A recipe at the chosen network, crops and steps; what it has of its own stays.

    Args:
        name: of `RECIPES`.
        choice: what is trained.
        class_pixels: (K,) pixels of each class in the source; None without one.
        seed: of the run.
        checkpoint: model directory to start from; None = a warm start, which becomes the first stage.
    """
    recipe = RECIPES[name]()
    stages = _adapting(recipe)
    rare = () if class_pixels is None else _rare(class_pixels)
    # of the recipe's own classes there may be none here; a milder view than from nothing
    own = {"things": rare, "long_tail": rare, "hard": rare, "mix_jitter": 0.25}
    fitted = []
    for i, stage in enumerate(stages):
        earlier = [other.name for other in stages[:i]]
        method = stage.method
        names = {field.name for field in fields(method)}
        method = replace(method, **{field: value for field, value in own.items() if field in names})
        group = stage.data.group_size
        data = replace(
            stage.data,
            short_side=choice.short_side,
            crop=choice.crop,
            scale=(1.0, 1.3),
            batch_size=-(-choice.batch_size // group) * group,
            source=_rare_source(choice, stage.data.source),
            rare=_rare_source(choice, stage.data.rare),
        )
        fitted.append(
            replace(
                stage,
                method=method,
                steps=stage.steps if isinstance(method, AdaBN.Config) else max(1, choice.steps // len(stages)),
                model=_model(stage.model, choice.model),
                data=data,
                optim=choice.optim,
                init_from=stage.init_from if stage.init_from in earlier else checkpoint or WARM,
            )
        )
    return _recipe(name, (*([] if checkpoint else [_warm_stage(choice)]), *fitted), seed)


def _rare(class_pixels: np.ndarray) -> tuple[int, ...]:
    """Classes that have fewer pixels than the median one, of those that have any."""
    present = class_pixels > 0
    if not present.any():
        return ()
    return tuple(np.flatnonzero(present & (class_pixels < np.median(class_pixels[present]))).tolist())


def _recipe(name: str, stages: tuple[Stage, ...], seed: int) -> Recipe:
    every = max(1, max(stage.steps for stage in stages) // 4)
    return Recipe(name=name, stages=stages, seed=seed, checkpoint_every=every)


def _model(of_recipe: Model, chosen: Model) -> Model:
    """The chosen network, with what the recipe itself changes of the small one."""
    own: Mapping[str, Any] = {
        field.name: getattr(of_recipe, field.name)
        for field in fields(Model)
        if getattr(of_recipe, field.name) != getattr(SMALL, field.name)
    }
    return replace(chosen, **own)


def _rare_source(choice: Choice, stream: Stream | None) -> Stream | None:
    """A stream whose images are drawn by rare classes, which need a share of the crop's pixels."""
    if stream is None:
        return None
    return replace(
        stream,
        sampling="rare_class",
        rare_temperature=0.1,
        rare_min_pixels=choice.rare_min_pixels,
        rare_min_crop_pixels=choice.rare_min_pixels // 3,
    )
