"""A module imports only from floors below its own, and only the top floors know of Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS: list[tuple[str, ...]] = [
    ("udaseg.types", "udaseg.rng", "udaseg.distributed", "udaseg.models.windows"),
    (
        "udaseg.losses",
        "udaseg.components.pseudo_label",
        "udaseg.components.thresholds",
        "udaseg.components.mixing",
        "udaseg.components.augment",
        "udaseg.components.prototypes",
        "udaseg.models.teacher",
        "udaseg.components.cross_domain_mix",
        "udaseg.evaluation.metrics",
        "udaseg.models",
        "udaseg.data",
    ),
    ("udaseg.methods.base", "udaseg.models.inference", "udaseg.evaluation.model_selection"),
    ("udaseg.methods",),
    ("udaseg.config",),
    ("udaseg.recipes", "udaseg.checkpoints.directory", "udaseg.reports.adaptation"),
    ("udaseg.evaluation.checkpoint_scores", "udaseg.reports.sweep", "udaseg.reports.pseudo_label"),
    ("udaseg.jobs.worker",),
    ("pipelines", "tune_spaces"),
]
KNOWS_RAY = ("udaseg.jobs.stream", "udaseg.jobs.worker", "pipelines", "tune_spaces")


def _within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def _modules() -> dict[str, Path]:
    files = [p for room in ("udaseg", "pipelines", "tune_spaces") for p in (ROOT / room).rglob("*.py")]
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}
    return {name: path for name, path in names.items() if name != "udaseg"}


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, at whatever depth; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _ours(path: Path) -> set[str]:
    return {name for name in _imports(path) if name in MODULES}


def _floor(module: str) -> int:
    floors = [i for i, rooms in enumerate(FLOORS) if any(_within(module, room) for room in rooms)]
    assert len(floors) == 1, f"{module} stands on no floor: add it to FLOORS"
    return floors[0]


def _room(module: str) -> str:
    return next(room for room in FLOORS[_floor(module)] if _within(module, room))


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_floors_below(module: str) -> None:
    for imported in _ours(MODULES[module]):
        same_room = _room(imported) == _room(module) or _floor(module) == len(FLOORS) - 1
        beside = _floor(imported) == _floor(module) == 1 and "udaseg.data" not in (_room(imported), _room(module))
        below = _floor(imported) < _floor(module)
        assert below or same_room or beside, f"{module} imports {imported}, which is not below it"


def test_methods_never_import_one_another() -> None:
    methods = [name for name in MODULES if name.startswith("udaseg.methods.")]
    assert len(methods) >= 4
    for name in methods:
        assert not [other for other in _ours(MODULES[name]) if other.startswith("udaseg.methods") and other != name]


@pytest.mark.parametrize("module", MODULES)
def test_ray_lives_at_the_edge(module: str) -> None:
    imports_ray = any(_within(name, "ray") for name in _imports(MODULES[module]))
    assert not imports_ray or any(_within(module, room) for room in KNOWS_RAY)


def test_tasks_that_need_no_network_start_without_torch() -> None:
    """It takes five seconds, of each process that a cluster starts for them."""
    light = ("udaseg.jobs.stream", "pipelines.prepare", "pipelines.label_blocks")
    code = f"import sys, {', '.join(light)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_config_objects_stop_at_the_methods() -> None:
    """Below the methods there are plain keyword arguments."""
    for name, path in MODULES.items():
        if _floor(name) < 4:
            assert "udaseg.config" not in _ours(path), name
