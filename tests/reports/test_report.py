"""The pictures, tables and HTML report."""

from __future__ import annotations

import html
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from udaseg.data.classes import Classes
from udaseg.data.taxonomies import CITYSCAPES_CLASSES, SYNTHIA_16
from udaseg.reports.adaptation import Example, gap_text, html_report, loss_picture, miou_picture, sheet_picture
from udaseg.reports.pseudo_label import Shares, share_table
from udaseg.reports.scores import confusion_picture, iou_table, summary

NAMES = ("road", "<b>sky</b> & co", "a $x_1$ b")
CLASSES = Classes(names=NAMES, palette=((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SOURCE_ONLY = np.array([[60, 40, 0], [50, 50, 0], [0, 0, 0]])
ADAPTED = np.array([[80, 20, 0], [20, 80, 0], [0, 0, 0]])
ORACLE = np.array([[95, 5, 0], [5, 95, 0], [0, 0, 0]])
SHARES = Shares(kept=np.array([30, 0, 10]), predicted=np.array([60, 0, 40]), thresholds=np.array([0.91, 1.0, 0.5]))
LOSSES = {
    "source-only": [{"stage": 0, "name": "s", "step": i, "ce": 1 / i, "lr": 0.1, "data_wait": 0.0} for i in (1, 2, 3)],
    "adapted": [{"stage": i // 2, "name": f"s{i // 2}", "step": i + 1, "ce": 1.0, "coverage": 0.5} for i in range(4)],
    "oracle": [],
}
CURVES = {
    "source-only": [(2, ADAPTED), (4, SOURCE_ONLY)],  # the last counts, not the best
    "adapted": [(4, ADAPTED)],
    "oracle": [(4, ORACLE)],
}


def examples(count: int = 2, height: int = 24, width: int = 48) -> list[Example]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(CLASSES), (count, 3, height, width)).astype(np.uint8)
    labels[:, 0, :4] = 255
    images = rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    return [Example(i, *label, rng.random((height, width))) for i, label in zip(images, labels, strict=True)]


def test_images_of_a_sheet_keep_their_shapes() -> None:
    wide, high = examples(1), examples(1, height=48, width=24)
    heights = [(picture := sheet_picture(rows, CLASSES)).height / picture.width for rows in (wide, high, wide + high)]
    cells, rest = 5, 0.75 / 12  # columns; title and scale
    assert heights == pytest.approx([0.5 / cells + rest, 2 / cells + rest, 2.5 / cells + rest], rel=0.02)


def test_a_sheet_of_high_narrow_images_is_no_larger_than_others() -> None:
    picture = sheet_picture(examples(6, height=900, width=3), CLASSES)
    assert picture.height < 8 * picture.width
    pixels = np.asarray(picture.convert("RGB"))
    assert (pixels < 250).any(2).any(1).mean() > 0.8, "each row shows its image, narrower"


@pytest.fixture(scope="module")
def page() -> str:
    return html_report(
        classes=CLASSES,
        about="from <here> to there",
        curves=CURVES,
        begins={"warm": 0, "round": 2},
        losses=LOSSES,
        examples=examples(),
        shares=SHARES,
        settings={"adapted: bcl": '{"name": "</pre><script>"}'},
        facts={"seed": "7", "torch": "2.6"},
        seconds={"render": 1.25, "train adapted": 100.0},
    )


def cells(page: str, section: str) -> list[list[str]]:
    """The text of a section's table, row by row."""
    part = page.split(f'<section id="{section}">')[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part)
    return [[html.unescape(re.sub(r"<[^>]*>", "", c)) for c in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", r)] for r in rows]


def test_page_needs_no_other_file(page: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_page_escapes_names(page: str) -> None:
    assert "<b>sky" not in page and "&lt;b&gt;sky&lt;/b&gt; &amp; co" in page
    assert "<here>" not in page and "</pre><script>" not in page


def test_page_has_every_row(page: str) -> None:
    assert cells(page, "classes") == [
        ["class", "source-only", "adapted", "oracle", "change"],
        ["road", "40.0", "66.7", "90.5", "+26.7"],
        ["<b>sky</b> & co", "35.7", "66.7", "90.5", "+31.0"],
        ["a $x_1$ b", "-", "-", "-", "-"],
        ["mIoU", "37.9", "66.7", "90.5", "+28.8"],
        ["pixel accuracy", "55.0", "80.0", "95.0", "+25.0"],
    ]
    assert cells(page, "pseudo-labels")[1:] == [
        ["road", "0.9100", "50.0", "75.0"],
        ["<b>sky</b> & co", "never predicted", "0.0", "0.0"],
        ["a $x_1$ b", "0.5000", "25.0", "25.0"],
        ["all", "", "40.0", "100.0"],
    ]
    assert cells(page, "time") == [["phase", ""], ["render", "1.2 s"], ["train adapted", "100.0 s"], ["all", "101.2 s"]]
    assert cells(page, "settings") == [["seed", "7"], ["torch", "2.6"]]
    assert "<h1>gap closed 0.55</h1>" in page and "width: 54.8%" in page


def test_page_says_where_there_is_no_gap() -> None:
    same = {network: [(1, ADAPTED)] for network in CURVES}
    page = html_report(
        classes=CLASSES,
        about="",
        curves=same,
        begins={},
        losses={network: [] for network in CURVES},
        examples=examples(1),
        shares=SHARES,
        settings={},
        facts={},
        seconds={},
    )
    assert "<h1>gap closed nan</h1>" in page and "no gap to close" in page


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ((0.4, 0.5, 0.6), "gap closed 0.50"),
        ((0.4, 0.7, 0.6), "gap closed 1.50"),
        ((0.4, 0.3, 0.6), "gap closed -0.50"),
        ((0.4, 0.3999, 0.6), "gap closed 0.00"),
        ((0.4, 0.5, 0.4), "gap closed nan"),
        ((0.4, float("nan"), 0.6), "gap closed nan"),
    ],
)
def test_gap_text(results: tuple[float, float, float], text: str) -> None:
    assert gap_text(*results) == text


PICTURES = {
    "confusion": lambda: confusion_picture(ADAPTED, NAMES),
    "losses": lambda: loss_picture(LOSSES),
    "miou": lambda: miou_picture({n: [(1, 0.1), (2, 0.3)] for n in CURVES}, {"warm": 0, "a $x_1$ b": 1}),
    "sheet": lambda: sheet_picture(examples(), CLASSES),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_shows_something(name: str) -> None:
    picture = PICTURES[name]()
    assert isinstance(picture, Image.Image) and min(picture.size) > 100
    assert np.asarray(picture.convert("L")).std() > 1


def test_sheet_shows_the_palette_and_leaves_unlabelled_pixels_white() -> None:
    flat = Example(
        image=np.zeros((40, 40, 3), np.uint8),
        truth=np.vstack([np.zeros((1, 40), np.uint8), np.full((39, 40), 255, np.uint8)]),
        before=np.full((40, 40), 1, np.uint8),
        after=np.full((40, 40), 2, np.uint8),
        confidence=np.ones((40, 40)),
    )
    sheet = np.asarray(sheet_picture([flat], CLASSES).convert("RGB"))
    middle = sheet[sheet.shape[0] // 2]
    columns = [tuple(int(v) for v in middle[int((i + 0.5) / 5 * len(middle))]) for i in range(4)]
    assert columns == [(0, 0, 0), (255, 255, 255), CLASSES.palette[1], CLASSES.palette[2]]


def test_tables_have_every_class() -> None:
    text = io.StringIO()
    console = Console(file=text, width=120, markup=False)
    console.print(iou_table({"before": SOURCE_ONLY, "after": ADAPTED}, NAMES))
    console.print(share_table(NAMES, SHARES))
    assert all(text.getvalue().count(name) == 2 for name in NAMES)
    assert "66.7" in text.getvalue() and "never predicted" in text.getvalue()


def test_summary_is_plain_values() -> None:
    assert summary(ADAPTED, NAMES) == {
        "miou": 0.666667,
        "pixel_accuracy": 0.8,
        "iou": {"road": 0.666667, "<b>sky</b> & co": 0.666667, "a $x_1$ b": None},
        "confusion": ADAPTED.tolist(),
    }


def test_means_over_the_classes_of_synthia() -> None:
    names = CITYSCAPES_CLASSES.names
    hit = np.arange(1, 20)
    counts = np.diag(hit)
    counts[:, 0] += 20 - hit  # every class has 20 pixels, of which the rest is taken for road
    values = summary(counts, names)
    iou = {name: value for name, value in values["iou"].items() if name not in ("terrain", "truck", "train")}
    assert len(iou) == 16 and values["mIoU-16"] == pytest.approx(np.mean([*iou.values()]), abs=1e-6)
    iou = {name: value for name, value in iou.items() if name not in ("wall", "fence", "pole")}
    assert len(iou) == 13 and values["mIoU-13"] == pytest.approx(np.mean([*iou.values()]), abs=1e-6)
    text = io.StringIO()
    Console(file=text, width=120).print(iou_table({"before": counts, "after": counts}, names))
    for title in ("mIoU-16", "mIoU-13"):
        assert re.search(rf"{title} +\S +{100 * values[title]:.1f} +\S +{100 * values[title]:.1f} ", text.getvalue())
    assert not {"mIoU-16", "mIoU-13"} & set(summary(counts[:18, :18], names[:18]))


def test_networks_of_synthia_s_16_classes_have_its_mean_over_13_too() -> None:
    counts = np.diag(np.arange(1, 17)) + np.eye(16, k=1, dtype=int)
    values = summary(counts, SYNTHIA_16)
    iou = [v for name, v in values["iou"].items() if name not in ("wall", "fence", "pole")]
    assert len(iou) == 13 and values["mIoU-13"] == pytest.approx(np.mean(iou), abs=1e-6) != values["miou"]
    assert values["mIoU-16"] == values["miou"]


def test_means_over_old_and_new_classes() -> None:
    values = summary(ADAPTED, NAMES, old_classes=1)
    assert (values["mIoU-old"], values["mIoU-new"], values["miou"]) == (0.666667, 0.666667, 0.666667)
    counts = np.diag([4, 3, 0]) + np.array([[0, 4, 0], [0, 0, 0], [0, 3, 0]])
    values = summary(counts, NAMES, old_classes=1)
    assert (values["mIoU-old"], values["mIoU-new"]) == (0.5, 0.15)
    text = io.StringIO()
    Console(file=text, width=120).print(iou_table({"": counts}, NAMES, old_classes=1))
    assert re.search(r"mIoU-old +\S +50\.0", text.getvalue()) and re.search(r"mIoU-new +\S +15\.0", text.getvalue())


def test_a_confusion_of_as_many_classes_as_there_may_be_is_drawn() -> None:
    """At full size Pillow would take it for an attack."""
    picture = confusion_picture(np.eye(254, dtype=np.int64), [f"c{k}" for k in range(254)])
    assert max(picture.size) <= 6200
