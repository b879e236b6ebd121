"""Adapts semantic segmentation networks to a new domain without target labels.

From Python as from the command line, with paths as text, URIs or pathlib's; each name loads what it needs when it is
first used:

    import udaseg

    outcome = udaseg.adapt(udaseg.Adapt(source="gta", target="fleet/images", out="runs/fleet"))

    recipe = udaseg.override(udaseg.RECIPES["bcl"](), {"method.temperature": 0.07})
    model = udaseg.train(recipe, source="data/source", target="data/target", out="runs/bcl")
    (confusion,) = udaseg.evaluate([model], "data/target_val")
    udaseg.pseudo_label(checkpoint=model, images="fleet/images", out="data/fleet_labels")

    label, confidence = udaseg.load(model).predict("fleet/images/000.jpg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.checkpoints.directory import load_model
    from udaseg.checkpoints.predictor import OnnxPredictor, Prediction, Predictor, load
    from udaseg.config import PseudoLabel, Recipe
    from udaseg.errors import CheckpointError, ConfigError, DatasetError, LostWorkError, TrainingError, UnreachableError
    from udaseg.job_config import Adapt, Cluster, Inference
    from udaseg.jobs.adapt.job import adapt
    from udaseg.jobs.evaluate import evaluate
    from udaseg.jobs.export import export_model
    from udaseg.jobs.import_ import import_model
    from udaseg.jobs.join_datasets import join_datasets
    from udaseg.jobs.prepare import prepare
    from udaseg.jobs.pseudo_label.job import pseudo_label
    from udaseg.jobs.train import train
    from udaseg.models.inference import predict
    from udaseg.overrides import override
    from udaseg.recipes import RECIPES

__all__ = [
    "RECIPES",
    "Adapt",
    "CheckpointError",
    "Cluster",
    "ConfigError",
    "DatasetError",
    "Inference",
    "LostWorkError",
    "OnnxPredictor",
    "Prediction",
    "Predictor",
    "PseudoLabel",
    "Recipe",
    "TrainingError",
    "UnreachableError",
    "adapt",
    "evaluate",
    "export_model",
    "import_model",
    "join_datasets",
    "load",
    "load_model",
    "override",
    "predict",
    "prepare",
    "pseudo_label",
    "train",
]

_HOME = {
    "checkpoints.directory": ("load_model",),
    "checkpoints.predictor": ("OnnxPredictor", "Prediction", "Predictor", "load"),
    "config": ("PseudoLabel", "Recipe"),
    "errors": ("CheckpointError", "ConfigError", "DatasetError", "LostWorkError", "TrainingError", "UnreachableError"),
    "job_config": ("Adapt", "Cluster", "Inference"),
    "jobs.adapt.job": ("adapt",),
    "jobs.evaluate": ("evaluate",),
    "jobs.export": ("export_model",),
    "jobs.import_": ("import_model",),
    "jobs.join_datasets": ("join_datasets",),
    "jobs.prepare": ("prepare",),
    "jobs.pseudo_label.job": ("pseudo_label",),
    "jobs.train": ("train",),
    "models.inference": ("predict",),
    "overrides": ("override",),
    "recipes": ("RECIPES",),
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"udaseg.{module}"), name)
    raise AttributeError(f"module 'udaseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
