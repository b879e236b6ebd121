"""The documentation as a site: it builds without a warning and without a network, and has what the code has."""

from __future__ import annotations

import dataclasses
import re
import socket
from pathlib import Path

import pytest

import udaseg
from udaseg import config
from udaseg.recipes import RECIPES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: strictly, so that a link to nothing ends it."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def no_network(*_: object) -> None:
        raise AssertionError("the site fetches something")

    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr(socket.socket, "connect", no_network)
        loaded = load_config(str(ROOT / "docs/site/mkdocs.yml"), site_dir=str(out), strict=True)
        loaded.plugins.on_startup(command="build", dirty=False)
        build(loaded)
        loaded.plugins.on_shutdown()
    return out


def test_every_recipe_and_its_settings_are_in_the_reference(site: Path) -> None:
    for name, make in RECIPES.items():
        page = (site / f"reference/recipes/{make.__module__.split('.')[-1]}.html").read_text()
        assert f'id="{name}"' in page
        for stage in make().stages:
            fields = [field.name for field in dataclasses.fields(stage.method)]
            assert not [field for field in fields if f"<td><code>{field}</code></td>" not in page]
    settings = (site / "reference/settings.html").read_text()
    for section in (config.Model, config.Data, config.Stream, config.Optim, config.PseudoLabel):
        assert f'id="{section.__name__.lower()}"' in settings
        assert not [f.name for f in dataclasses.fields(section) if f"<td><code>{f.name}</code></td>" not in settings]
    assert "Base learning rate, of the backbone." in settings, "the docstring below a field"


def test_every_public_name_is_described(site: Path) -> None:
    page = (site / "reference/python.html").read_text()
    missing = [
        name
        for module, names in udaseg._HOME.items()
        for name in names
        if name != "RECIPES" and f'id="udaseg.{module}.{name}"' not in page
    ]
    assert not missing


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 70
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\s\">]+)", page.read_text())
        assert not [uri for uri in loaded if "//" in uri], page
