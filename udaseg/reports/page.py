"""What all reports are made with: pages from templates, pictures, numbers in percent."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import Any

import jinja2
import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib.figure import Figure


def percent(value: float) -> str:
    """A share in percent, with one decimal and no sign; "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def render(template: str, **values: Any) -> str:
    """A page from a template of `templates/`; every value is escaped, and one that is missing is an error."""
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files("udaseg.reports").joinpath("templates", f"{template}.html").read_text(encoding="utf-8")
    return jinja.from_string(text).render(values)


def clear(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebee", lw=0.8)
    axes.set_axisbelow(True)


def to_image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return Image.open(buffer)


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
