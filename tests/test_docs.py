"""What the documentation says of files, folders, methods, fields and recipes is so."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from toy import METHODS

from udaseg.components.equal_contrast import PNE
from udaseg.components.masked_consistency import MIC
from udaseg.components.relation_consistency import CRDA
from udaseg.recipes import FAMILIES, RECIPES

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in (ROOT / "docs").rglob("*.md") if p.stem != "log")]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs/methods").glob("*.md") if path.stem != "README"}
PAPERS = [path.stem for path in (ROOT / "udaseg/methods").glob("*.py") if path.stem not in ("__init__", "base")]
PARTS = {"mic": MIC(), "crda": CRDA(), "pne": PNE()}
TOP = ("udaseg", "pipelines", "tune_spaces", "benchmarks", "tests", "examples", "docs")


def folders_drawn(text: str) -> set[str]:
    """The folders of the tree that a text draws, by their path."""
    tree = next(block for block in text.split("```") if block.startswith("\nudaseg/"))
    found, above = set(), [""]
    for line in tree.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above[depth + 1 :] = [above[depth] + name]
        if name.endswith("/"):
            found.add(above[depth + 1].removesuffix("/"))
    return found


def test_the_tree_has_a_line_for_every_folder() -> None:
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "udaseg").rglob("*.py")}
    assert folders_drawn((ROOT / "CONTRIBUTING.md").read_text()) == packages | set(TOP)


def anchors(text: str) -> set[str]:
    """Of a page's headings, as both GitHub and the site make them."""
    prose = "".join(text.split("```")[::2])
    headings = (re.sub(r"[^\w\- ]", "", line).strip() for line in re.findall(r"^#+ (.+)$", prose, re.MULTILINE))
    return {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_heading_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    named = re.findall(rf"`((?:{'|'.join(TOP)})/[\w./-]*)`", text)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [name for name in named if not (ROOT / name).exists()]
    for link in links:
        file, _, anchor = link.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), link
        assert not anchor or anchor in anchors(to.read_text()), link


def _modules() -> set[str]:
    """Of recipes."""
    return {module for modules in FAMILIES.values() for module in modules}


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_one_name_in_four_folders(name: str) -> None:
    files = [f"udaseg/recipes/{name}.py", f"tests/methods/test_{name}.py", f"docs/methods/{name}.md"]
    assert not [file for file in files if not (ROOT / file).exists()]
    assert name in _modules()


def test_every_module_of_recipes_has_a_page_that_the_index_names() -> None:
    assert PAGES.keys() == _modules()
    index = (ROOT / "docs/methods/README.md").read_text()
    assert not [name for name in PAGES if f"[{name}]({name}.md)" not in index]


@pytest.mark.parametrize("name", [*PAPERS, *sorted(PAGES.keys() - set(PAPERS))])
def test_the_overview_says_of_each_method_what_its_page_says_is_exact_read_or_ours(name: str) -> None:
    index = (ROOT / "docs/methods/README.md").read_text()
    found = re.findall(rf"^\| \[{name}\]\({name}\.md\) \| .+? \| (.*?) \| (.*?) \| (.*?) \|$", index, re.MULTILINE)
    table = PAGES[name].partition("## Exact, read, ours")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| ([\w, ]+) \|", table, re.MULTILINE)
    of_page = tuple(
        "; ".join(what for what, how in rows if word in how.split(", ")) for word in ("exact", "read", "ours")
    )
    assert any(of_page) and found == [of_page], f"{name}: its row in docs/methods/README.md"
    assert ("our reconstruction" in index.partition(f"| [{name}]")[2].partition(" | ")[2].partition(" | ")[0]) == PAGES[
        name
    ].partition("\n\n")[2].startswith("Our reconstruction"), f"{name}: whether it is a reconstruction"


def test_the_page_of_pne_names_every_method_that_it_is_a_part_of() -> None:
    having = {type(c).__module__.split(".")[-1] for c in METHODS.values() if hasattr(c, "pne")}
    named = set(re.findall(r"\]\((\w+)\.md\)", PAGES["pne"].partition("```")[0]))
    assert having == named & set(PAPERS)


def test_every_recipe_is_on_its_page() -> None:
    missing = [name for name, make in RECIPES.items() if f"- `{name}`" not in PAGES[make.__module__.split(".")[-1]]]
    assert not missing


def test_every_published_recipe_is_in_the_table() -> None:
    published = [name for name in RECIPES if not name.endswith(("_small", "_demo"))]
    table = (ROOT / "docs/recipes.md").read_text()
    assert not [name for name in published if f"| `{name}` |" not in table]


def test_the_readme_says_of_a_recipe_what_the_table_of_all_says() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 5
    assert set(rows) <= set((ROOT / "docs/recipes.md").read_text().splitlines())


@pytest.mark.parametrize("name", [*PAPERS, *PARTS])
def test_a_page_lists_the_fields_with_their_defaults(name: str) -> None:
    if name in PARTS:
        config: object = PARTS[name]
    else:
        of_paper = (c for c in METHODS.values() if type(c).__module__ == f"udaseg.methods.{name}")
        config = type(next(of_paper))()
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGES[name].partition("## Fields")[2], re.MULTILINE)
    assert dict(rows) == {field: shown(value) for field, value in fields.items()}


def shown(value: object) -> str:
    if isinstance(value, MIC | CRDA | PNE):
        return "on" if value.weight else "off"
    return "`" + repr(value).replace("'", '"') + "`"


def test_no_two_test_files_share_a_name() -> None:
    """They lie in no packages, so that pytest tells them by their names."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) == len(set(names))
