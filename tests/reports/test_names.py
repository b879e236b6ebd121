"""Class names, image ids, reasons and values from outside are text, whatever reads them: rich, HTML, matplotlib."""

from __future__ import annotations

import dataclasses
import html
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from udaseg.config import PseudoLabel
from udaseg.data.classes import Classes
from udaseg.data.manifest import MANIFEST
from udaseg.reports import adaptation, dataset, pseudo_label, scores, sweep
from udaseg.reports.tables import printable, show

NAMES = (
    "[/b]",
    "[red]sky[/red]",
    "[link=http://x.org]",
    "[",
    ":smile:",
    "<script>alert(1)</script>",
    "'\"&amp;{{ 7 * 7 }}{% raw %}",
    "$\\frac{1$ 100% of_it {0} %s %(x)d",
    "_hidden",
    "\\[x]",
    "two\nlines",
    "\x1b[31m\x07bell\0",
    "\udcff not UTF-8",
    "路 🚗",
    "x" * 255,
    "C:\\new\\table",
)
CLASSES = Classes(names=NAMES, palette=tuple((8 * k, 0, 255 - k) for k in range(len(NAMES))))
K = len(NAMES)
SHARES = pseudo_label.Shares(kept=np.full(K, 5), predicted=np.full(K, 10), thresholds=np.full(K, 0.5))
QUALITY = pseudo_label.Quality(
    shares=SHARES,
    histogram=np.full((K, 8192), 3),
    source=np.arange(K),
    right=np.array([3, 4, 1, 2]),
    reliability=np.ones((20, 3)),
    images=2,
    failed=[(name, f"s3://{name}", f"reason {name}") for name in NAMES],
)
EXAMPLE = adaptation.Example(np.zeros((4, 6, 3), np.uint8), *np.zeros((3, 4, 6), np.uint8), np.ones((4, 6)))
SAMPLES = [pseudo_label.Sample(name, 0.5, *EXAMPLE[:2], np.ones((4, 6))) for name in (NAMES[7], NAMES[12])]
TRIALS = [
    sweep.Trial(f"t{n}", {"model.weights": name, "model.backbone": NAMES[-n]}, "finished", [(1, {"snd": n / K})], name)
    for n, name in enumerate(NAMES)
]
CONFUSION = np.arange(K * K).reshape(K, K)
LOSSES = [{"stage": 0, "name": "s", "step": step, "[red]": 0.5, "_hidden": 0.5, "$x_1$": 0.5} for step in (1, 2)]


def printed(table: Table) -> str:
    """What a console that reads markup prints of a table; what it would colour comes as it stands."""
    out = io.StringIO()
    Console(file=out, width=2000, force_terminal=False).print(table)
    return out.getvalue()


def shown_in(text: str) -> set[str]:
    """The names that stand in a text, two lines or control characters as they are printed."""
    return {name for name in NAMES if all(line in text for line in printable(name).splitlines())}


@pytest.mark.parametrize(
    "table",
    [
        scores.iou_table({"[/b]": CONFUSION, "[red]": CONFUSION}, NAMES),
        pseudo_label.share_table(NAMES, SHARES),
        sweep.trial_table(TRIALS, TRIALS[0], "snd"),
    ],
    ids=["iou", "shares", "trials"],
)
def test_a_table_holds_names_as_they_are(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(table)
    assert shown_in(text) == set(NAMES)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    show(table)
    assert "[/b]" in capsys.readouterr().out


def test_the_table_of_failures_holds_names_as_they_are() -> None:
    """It shows ten, so it takes them in turns."""
    shown = [shown_in(printed(pseudo_label.failure_table(QUALITY.failed[i : i + 10]))) for i in range(0, K, 10)]
    assert set().union(*shown) == set(NAMES)


def test_the_table_of_a_dataset_holds_names_as_they_are() -> None:
    row = {"image_uri": "x", "height": 1, "width": 1, "dataset": "d", "class_pixels": [1] * K}
    rows = [row | {"image_id": str(k), "split": NAMES[k].replace("\udcff", "")} for k in range(K)]
    table = dataset.contents_table(pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES, title="[/b]")
    assert shown_in(printed(table)) == set(NAMES) and "[/b]" in printed(table).splitlines()[0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: scores.confusion_picture(CONFUSION, NAMES),
        lambda: adaptation.loss_picture({"[/b] $x_1$": LOSSES}),
        lambda: adaptation.miou_picture({name: [(1, 0.5)] for name in NAMES[:3]}, dict.fromkeys(NAMES, 1)),
        lambda: adaptation.sheet_picture([EXAMPLE], CLASSES),
        lambda: pseudo_label.confidence_picture(QUALITY.histogram, SHARES.thresholds, CLASSES),
        lambda: pseudo_label.balance_picture(SHARES.kept, SHARES.predicted, QUALITY.source, CLASSES),
        lambda: pseudo_label.examples_picture(SAMPLES, CLASSES),
        lambda: sweep.parallel_picture(TRIALS, TRIALS[0], "snd", set()),
        lambda: sweep.curve_picture(TRIALS, TRIALS[0], "snd"),
        lambda: sweep.effect_picture(TRIALS, TRIALS[0], "snd", set()),
    ],
)  # fmt: skip
def test_a_picture_is_drawn_with_such_names(draw, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Not one text of the figure is parsed, and nothing is warned of."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts: list[Text] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        save(figure, *args, **kwargs | {"dpi": 30})  # type: ignore[arg-type]
        texts.extend(figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw()
    assert texts and not any(text.get_parse_math() for text in texts)
    assert not any("mathdefault" in text.get_text() for text in texts)


def test_a_legend_leaves_no_name_out() -> None:
    rows = [{"stage": 0, "step": step, "_hidden": 0.5, "$ce$": 0.1} for step in (1, 2)]
    figure = adaptation.loss_picture.__wrapped__({"run": rows})  # type: ignore[attr-defined]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["_hidden", "$ce$"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    curves = {name: [(1, CONFUSION)] for name in NAMES[:3]}
    return {
        "adaptation": adaptation.html_report(
            classes=CLASSES,
            about=NAMES[5],
            curves=curves,
            begins={},
            losses={"[/b]": LOSSES},
            examples=[EXAMPLE],
            shares=SHARES,
            settings={name: name for name in NAMES},
            facts={name: name for name in NAMES},
            seconds={},
        ),
        "pseudo_label": pseudo_label.label_page(
            classes=CLASSES,
            quality=QUALITY,
            examples=SAMPLES,
            rules=dataclasses.asdict(PseudoLabel()) | {"by": NAMES[5]},
        ),
        "sweep": sweep.sweep_page(
            title=NAMES[5],
            trials=TRIALS,
            best=TRIALS[0],
            metric="snd",
            mode="max",
            logarithmic=set(),
            correlations={},
            settings="\n".join(NAMES),
        ),
    }


@pytest.mark.parametrize("name", ["adaptation", "pseudo_label", "sweep"])
def test_a_page_holds_names_as_they_are(name: str, pages: dict[str, str], tmp_path: Path) -> None:
    page = pages[name]
    assert "<script" not in page and "49" not in re.findall(r">([^<]*7[^<]*)<", page)
    (tmp_path / "page.html").write_bytes(page.encode())
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    assert shown_in(text) == set(NAMES)
