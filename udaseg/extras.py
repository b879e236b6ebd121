"""Packages that only some commands need, and that `pip install udaseg` leaves out."""

from __future__ import annotations

import importlib.util
import sys

from udaseg.errors import ConfigError

EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "video": ("av",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
"""The modules of each extra of pyproject.toml that is named here."""


def require_extra(extra: str, what: str) -> None:
    """Raise ConfigError, with the command that mends it, where modules that `what` needs are not installed."""
    missing = [name for name in EXTRAS[extra] if not _is_installed(name)]
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(missing)}: pip install 'udaseg[{extra}]'")


def _is_installed(module: str) -> bool:
    if module in sys.modules:  # None where an import is to fail
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
