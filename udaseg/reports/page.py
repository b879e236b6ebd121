"""What all reports are made with: pages from templates, pictures, numbers in percent."""

from __future__ import annotations

import base64
import functools
import io
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Any, ParamSpec

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from udaseg.reports.tables import printable

P = ParamSpec("P")


def percent(value: float) -> str:
    """A share in percent, with one decimal and no sign; "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def render(template: str, **values: Any) -> str:
    """A page from a template of `templates/`; every value is escaped, and one that is missing is an error."""
    jinja = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    text = files("udaseg.reports").joinpath("templates", f"{template}.html").read_text(encoding="utf-8")
    return jinja.from_string(text).render(values)


def clear(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebee", lw=0.8)
    axes.set_axisbelow(True)


def picture(draw: Callable[P, Figure]) -> Callable[P, Image.Image]:
    """A function that draws a figure, as one that returns the picture; no text in it is read as mathematics."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Image.Image:
        buffer = io.BytesIO()
        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is shown in place of it
            draw(*args, **kwargs).savefig(buffer, format="png", dpi=150)
        return Image.open(buffer)

    return drawn


def short(text: str, most: int = 40) -> str:
    """A name as it stands in a picture: in one line, its middle left out where it is long."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else f"{line[: most // 2]}…{line[-(most // 2) :]}"


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
