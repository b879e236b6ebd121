"""Pages that the site has beside docs/*.md: the README and its neighbours, and what is made of the code.

index.md, contributing.md, changes.md  the files of the repository's root; beside them, to be fetched, examples/
reference/settings.md                  the sections of a run and of the commands, by the docstrings below their fields
reference/recipes/<name>.md            a method's settings, and what each of its recipes sets
reference/python.md                    the names of `import udaseg`, which mkdocstrings describes
reference/parts.md                     likewise losses, components, heads, the teacher and metrics, for other loops
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import udaseg
from udaseg import config as sections
from udaseg import job_config
from udaseg.components.equal_contrast import PNE
from udaseg.components.masked_consistency import MIC
from udaseg.components.relation_consistency import CRDA
from udaseg.ranges import Range
from udaseg.recipes import FAMILIES, RECIPES

ROOT = Path(__file__).parents[2]
OF_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
OF_A_RUN = (sections.Recipe, sections.Stage, sections.Model, sections.Data, sections.Stream, sections.Optim)
OF_JOBS = (sections.PseudoLabel, job_config.Cluster, job_config.Inference, job_config.Adapt, job_config.Sweep)
PARTS = (MIC, CRDA, PNE)
MODULES = [module for modules in FAMILIES.values() for module in modules]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that are not named one by one to the navigation."""
    pages = {title: entries for section in config.nav or [] for title, entries in section.items()}
    pages["Methods"] += [f"methods/{path.name}" for path in sorted((ROOT / "docs/methods").glob("[!R]*.md"))]
    pages["Reference"].append({"Recipes": [f"reference/recipes/{module}.md" for module in sorted(MODULES)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {page: of_root(name) for name, page in OF_ROOT.items()}
    made |= {"reference/settings.md": settings(), "reference/python.md": names(), "reference/parts.md": parts()}
    made |= {f"reference/recipes/{module}.md": recipes(module) for module in MODULES}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for path in (ROOT / "examples").iterdir():
        files.append(File.generated(config, f"examples/{path.name}", content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of docs/ to the files of the repository's root lead to their pages."""
    for name, uri in OF_ROOT.items():
        up = "../" * page.file.src_uri.count("/")
        markdown = markdown.replace(f"]({up}../{name}", f"]({up}{uri}")
    return markdown


def of_root(name: str) -> str:
    text = (ROOT / name).read_text().replace("](docs/", "](")
    for other, page in OF_ROOT.items():
        text = text.replace(f"]({other}", f"]({page}")
    return text


def names() -> str:
    """Of `import udaseg`, grouped by the module that each is from."""
    about = (udaseg.__doc__ or "").partition("\n")[2].strip()
    about = re.sub(
        r"\n\n((?:    .*\n|\n)+)", lambda found: f"\n\n```python\n{inspect.cleandoc(found[1])}\n```\n", f"{about}\n"
    )
    described = [
        f"::: udaseg.{module}.{name}" for module, names in udaseg._HOME.items() for name in names if name != "RECIPES"
    ]
    return "\n\n".join(
        ["# Python", about, "`udaseg.RECIPES` maps the name of each recipe to the function that makes it.", *described]
    )


def parts() -> str:
    """Of the modules that ask for no pipeline."""
    found = [
        f"udaseg.{folder}.{path.stem}"
        for folder in ("losses", "components")
        for path in sorted((ROOT / "udaseg" / folder).glob("[!_]*.py"))
    ]
    modules = [*found, "udaseg.models.heads", "udaseg.models.teacher", "udaseg.evaluation.metrics"]
    about = "What [a training loop of your own](../parts.md) can use."
    return "\n\n".join(["# Parts", about, *(f"::: {module}" for module in modules)])


def settings() -> str:
    text = [
        "# Settings",
        "What runs and commands are told. On the command line a field is `--section.name`, as `udaseg train RECIPE "
        "--help` shows. [Each recipe](recipes/dacs.md) sets some, and its method has settings of its own.",
        *(described(section) for section in (*OF_A_RUN, *OF_JOBS)),
        "## Parts of methods",
        *(described(part, level=3) for part in PARTS),
    ]
    return "\n\n".join(text)


def described(section: type, level: int = 2) -> str:
    """A heading, the docstring and a table of a dataclass' fields."""
    about = inspect.getdoc(section) or ""
    about = "" if about.startswith(f"{section.__name__}(") else about  # which a dataclass without one is given
    hints = typing.get_type_hints(section, include_extras=True)
    rows = [cells(field, hints[field.name], documented(section)) for field in dataclasses.fields(section)]
    table = ["| field | takes | default | what |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([f"{'#' * level} {section.__qualname__.removesuffix('.Config')}", "", about, "", *table])


def cells(field: dataclasses.Field[Any], hint: Any, of: griffe.Class) -> tuple[str, str, str, str]:
    docstring = of.all_members[field.name].docstring
    default = "" if field.default is dataclasses.MISSING else shown(field.default)
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        default = shown(made) if dataclasses.is_dataclass(made) else "as the machine has it"
    return f"`{field.name}`", in_a_cell(takes(hint)), default, in_a_cell(docstring.value if docstring else "")


def takes(hint: Any) -> str:
    """What a field's type is, for people."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        ranges = [str(note).removeprefix("be ").removeprefix("lie ") for note in parts[1:] if isinstance(note, Range)]
        return " ".join([takes(parts[0]), *ranges])
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(repr(part) for part in parts)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(takes(part) for part in parts)
    if typing.get_origin(hint) is tuple:
        several = [f"any number of {takes(parts[0])}"] if parts[-1] is ... else [takes(part) for part in parts]
        return ", ".join(several)
    return "None" if hint is types.NoneType else "" if hint is Any else hint.__name__


def documented(section: type) -> griffe.Class:
    """A class with the docstrings below its fields, which Python itself forgets."""
    return package()[f"{section.__module__}.{section.__qualname__}".removeprefix("udaseg.")]


@functools.cache
def package() -> griffe.Module:
    """udaseg as it is written."""
    return griffe.load("udaseg", search_paths=[ROOT], allow_inspection=False)


def recipes(module: str) -> str:
    """The page of a module of recipes: its methods' settings, then what each recipe sets."""
    of_module = {name: make for name, make in RECIPES.items() if make.__module__ == f"udaseg.recipes.{module}"}
    made = {name: make() for name, make in of_module.items()}
    configs = {type(stage.method): None for recipe in made.values() for stage in recipe.stages}
    text = [
        f"# Recipes: {module}",
        f"[The method](../../methods/{module}.md). All other fields are as [Settings](../settings.md) has them.",
        *(f"## `{name}`\n\n{inspect.getdoc(of_module[name])}\n\n{set_by(recipe)}" for name, recipe in made.items()),
        "## Methods",
        *(described(config, level=3) for config in configs),
    ]
    return "\n\n".join(text)


def set_by(recipe: sections.Recipe) -> str:
    """A table of a recipe's stages: every field that differs from its default in one of them."""
    stages = [dict(leaves(stage)) for stage in recipe.stages]
    plain = [defaults(stage) for stage in recipe.stages]
    names = [name for stage in stages for name in stage]
    differ = {
        name: None
        for name in names
        if any(name in s and (name not in d or s[name] != d[name]) for s, d in zip(stages, plain, strict=True))
    }
    methods = [f"`{type(stage.method).__qualname__.removesuffix('.Config')}`" for stage in recipe.stages]
    rows = [
        ["field", *(f"`{stage.name}`" for stage in recipe.stages)],
        ["---"] * (len(stages) + 1),
        ["method", *methods],
    ]
    rows += [[f"`{name}`", *(shown(stage[name]) if name in stage else "" for stage in stages)] for name in differ]
    whole = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in ("name", "stages")}
    of_run = ", ".join(f"`{name}` {shown(value)}" for name, value in whole.items())
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nOf the run: {of_run}."


def defaults(stage: sections.Stage) -> dict[str, Any]:
    """The fields of a stage of which only name, method and steps are told, with all streams on."""
    bare = dict(leaves(sections.Stage(name=stage.name, method=type(stage.method)(), steps=0)))
    streams = {
        f"data.{stream}.{name}": value
        for stream in sections.DOMAIN_OF
        for name, value in leaves(sections.Stream(labels="none"))
    }
    del bare["name"], bare["steps"]
    return {name: value for name, value in (streams | bare).items() if not name.endswith(".labels")} | {
        "name": stage.name
    }


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass and of those in it, by their dotted names."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", inner


def shown(value: Any) -> str:
    return "see its section" if dataclasses.is_dataclass(value) else f"`{value!r}`"


def in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
