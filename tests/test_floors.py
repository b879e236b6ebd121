"""The house: imports go down only, Ray is at the top, and no module grows beyond what one reads in a sitting."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS: list[tuple[str, ...]] = [
    ("types", "errors", "rng", "distributed", "extras"),
    ("data", "losses", "models", "ranges"),
    ("components",),
    ("config", "overrides", "job_config"),
    ("methods",),
    ("evaluation",),
    ("recipes", "training", "checkpoints", "reports"),
    ("jobs",),
]
"""The folders and files of udaseg/, the ground floor first; pipelines/ and tune_spaces/ stand above them."""
LOOK_ASIDE = {
    "extras": {"errors"},
    "job_config": {"config"},
    "overrides": {"config"},
    "reports": {"checkpoints"},
    "training": {"checkpoints"},
}
"""Neighbours on a floor that may be imported."""
KNOWS_RAY = ("udaseg.jobs", "pipelines", "tune_spaces")
MOST_LINES = 350


def _modules() -> dict[str, Path]:
    files = [p for folder in ("udaseg", "pipelines", "tune_spaces") for p in (ROOT / folder).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


MODULES = _modules()


def _within(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


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


def _ours(module: str) -> set[str]:
    return {name for name in _imports(MODULES[module]) if name in MODULES and name != "udaseg"}


def _floor(module: str) -> int:
    """Which floor a module stands on, by the folder or file of udaseg/ that it is in."""
    top, _, rest = module.partition(".")
    if top != "udaseg" or not rest:  # the jobs read the spaces, which know of Ray Tune alone
        return len(FLOORS) if top != "tune_spaces" else 0
    floors = [i for i, names in enumerate(FLOORS) if rest.partition(".")[0] in names]
    assert len(floors) == 1, f"{module} stands on no floor: put it into the folder of what it makes"
    return floors[0]


def _folder(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("udaseg.") else 1])


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_go_up(module: str) -> None:
    for imported in _ours(module):
        aside = LOOK_ASIDE.get(_folder(module).removeprefix("udaseg."), set())
        beside = _folder(imported) == _folder(module) or _folder(imported).removeprefix("udaseg.") in aside
        same = _floor(imported) == _floor(module) and (beside or _floor(module) == len(FLOORS))
        assert same or _floor(imported) < _floor(module), f"{module} imports {imported}, which is not below it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above[above.index(module) :], module])
        if module not in done:
            for imported in sorted(_ours(module) - {module}):
                if not imported.endswith("recipes"):  # whose __init__ imports its modules by name alone
                    walk(imported, (*above, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


@pytest.mark.parametrize("folder", ["udaseg.methods"])
def test_methods_never_import_one_another(folder: str) -> None:
    methods = [name for name in MODULES if name.startswith(f"{folder}.")]
    assert len(methods) >= 10
    for name in methods:
        others = {other for other in _ours(name) if _within(other, folder)}
        assert others <= {folder, f"{folder}.base", name}, name


@pytest.mark.parametrize("module", MODULES)
def test_ray_lives_at_the_top(module: str) -> None:
    imports_ray = any(_within(name, "ray") for name in _imports(MODULES[module]))
    assert not imports_ray or any(_within(module, folder) for folder in KNOWS_RAY)


@pytest.mark.parametrize("module", ["udaseg.jobs.predict", "udaseg.jobs.export", "udaseg.checkpoints.predictor"])
def test_one_image_is_predicted_without_ray(module: str) -> None:
    """Nor with what takes seconds to load and is of training and reports alone, at whatever depth."""
    found, left = set(), {module}
    while left:
        name = left.pop()
        found.add(name)
        left |= _ours(name) - found
    heavy = {f"{name} imports {other}" for name in found for other in _imports(MODULES[name])
             if other.partition(".")[0] in ("ray", "kornia", "matplotlib", "jinja2", "tyro")}  # fmt: skip
    assert len(found) > 10 and not heavy


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_in_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("module", MODULES)
def test_what_others_read_is_json_for_everybody(module: str) -> None:
    """`dump_json` writes null where `json.dumps` would write NaN, which is no JSON."""
    for call in ast.walk(ast.parse(MODULES[module].read_text())):
        name = ast.unparse(call.func).rpartition(".")[2] if isinstance(call, ast.Call) else ""
        assert name != "dump", f"{module}: json.dump"
        if name in ("print", "write", "write_bytes", "write_text"):
            assert "json.dumps(" not in ast.unparse(call), f"{module}: {ast.unparse(call)}"


def test_commands_only_parse_arguments() -> None:
    lines = [len(path.read_text().splitlines()) for name, path in MODULES.items() if _within(name, "pipelines")]
    assert sum(lines) < 850


def _loaded(code: str, *names: str) -> list[str]:
    """Which of these modules are loaded after the code has run in a process of its own."""
    shown = f"{code}; import sys; print([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True)
    found: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return found


def test_tasks_that_need_no_network_start_without_torch() -> None:
    """It takes five seconds, of each process that a cluster starts for them."""
    light = "import udaseg.jobs.stream, udaseg.jobs.prepare, udaseg.jobs.pseudo_label.tasks"
    assert _loaded(light, "torch") == []


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "no_such_recipe"],
        ["demo", "--help"],
        ["adapt", "--help"],
        ["import", "--help"],
        ["predict", "--help"],
        ["export", "--help"],
        ["inspect", "--help"],
        ["join", "--help"],
    ],
)
def test_help_loads_neither_torch_nor_ray(words: list[str]) -> None:
    code = f"import sys; sys.argv = ['udaseg', *{words!r}]; from pipelines.__main__ import main\ntry: main()\n"
    code += "except SystemExit: pass\nimport sys"
    assert _loaded(code, "torch", "ray", "timm", "matplotlib") == []


def test_the_package_loads_neither_torch_nor_ray() -> None:
    assert _loaded("import udaseg", "torch", "ray", "numpy") == []


def test_config_objects_stop_at_the_methods() -> None:
    """Below the methods there are plain keyword arguments."""
    for name in MODULES:
        if _floor(name) < 3:
            assert "udaseg.config" not in _ours(name), name
