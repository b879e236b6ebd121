"""Bad input for every command: what is done to good files, the words of the command, and what its error must name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from tiny import CLASSES, make_checkpoint, make_dataset

from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset
from udaseg.overrides import to_json
from udaseg.recipes import RECIPES

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """`command` with `words`, in which `{d}` is the folder of files, ends with an error that has all of `named`."""

    kind: str
    command: str
    words: str
    named: str | tuple[str, ...]
    damage: Damage = lambda folder: None
    out: bool = True
    """Whether --out, a path at which nothing is, goes without saying."""
    full: bool = False
    """Much like another one, and so in the full matrix alone."""

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.command} {self.words}"[:90]


def make_files(folder: Path) -> None:
    """A good input of each kind."""
    for domain in ("source", "target"):
        make_dataset(folder / domain, domain, train=2, val=2)
    make_dataset(folder / "unlabelled", "target", train=2, val=2, labelled=False)
    make_checkpoint(folder / "model", 0)
    names, palette = list(CLASSES.names), [list(colour) for colour in CLASSES.palette]
    _write(folder / "classes.json", {"names": names, "palette": palette})
    _write(folder / "mapping.json", {"names": names, "palette": palette, "map": dict(zip(names, names, strict=True))})
    _write(folder / "splits.json", {"train": ["000"], "val": ["001"]})
    _write(folder / "config.json", {"recipe": json.loads(to_json(RECIPES["dacs_small"]())), "manifests": {}})
    images = folder / "images"
    images.mkdir()
    for n in range(2):
        Image.new("RGB", (56, 40)).save(images / f"{n:03d}.png")
    theirs = {"layer6.conv2d_list.0.weight": torch.zeros(19, 8, 3, 3), "layer6.conv2d_list.0.bias": torch.zeros(19)}
    theirs |= {f"layer3.{i}.conv1.weight": torch.zeros(8, 8, 1, 1) for i in range(6)}
    torch.save({"state_dict": theirs}, folder / "theirs.pth")
    (folder / "text").write_text("hello")
    (folder / "empty").mkdir()


def _write(path: Path, content: Any) -> None:
    """Write anew: files are linked to those of other cases."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


# --- what is done to files ------------------------------------------------------------------------------------------


def cut(name: str, share: str) -> Damage:
    """Keep 0, 1, half or all but one of a file's bytes."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        keep = {"0": 0, "1": 1, "half": len(content) // 2, "all but 1": len(content) - 1}[share]
        _write(folder / name, content[:keep])

    return damage


def holds(name: str, content: Any) -> Damage:
    return lambda folder: _write(folder / name, content)


def changed(name: str, **values: Any) -> Damage:
    """Other values in a JSON file; `a__b` is b of a, and ... leaves a value out."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / name).read_text())
        for field, value in values.items():
            *sections, last = field.split("__")
            part = raw
            for section in sections:
                part = part[int(section) if section.isdigit() else section]
            if value is ...:
                del part[last]
            else:
                part[last] = value
        _write(folder / name, raw)

    return damage


def folder_at(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def rows(name: str, **values: Any) -> Damage:
    """A dataset whose first row has other values, under the same classes."""

    def damage(folder: Path) -> None:
        found = read_manifest(str(folder / name)).to_pylist()
        found[0] |= values
        for file in ("classes.json", "index.arrow", "class_rows.arrow", "manifest.parquet"):
            (folder / name / file).unlink()
        write_dataset(str(folder / name), pa.Table.from_pylist(found, schema=MANIFEST), CLASSES)

    return damage


def other_classes(name: str, names: list[str]) -> Damage:
    """A dataset of other classes."""
    return changed(f"{name}/classes.json", names=names, palette=[[0, 0, 0]] * len(names))


# --- the table ------------------------------------------------------------------------------------------------------

EVALUATE = "--checkpoint {d}/model --dataset {d}/target"
LABEL = "--checkpoint {d}/model --images {d}/target"
TRAIN = "dacs_small --source {d}/source --target {d}/target"
SWEEP = "thresholds --source {d}/source --target {d}/target"
ADAPT = "--source {d}/source --target {d}/target --no-pretrained"
PREPARE = "--images {d}/source/images --labels {d}/source/labels"
IMPORT = "{d}/theirs.pth --classes {d}/classes.json"
PREDICT = "{d}/model {d}/images/000.png"
EXPORT = "{d}/model"
INSPECT = JOIN = "{d}/source {d}/target"
CUTS = ("0", "1", "half", "all but 1")


def truncated() -> Iterator[Case]:
    readers = {
        "target/classes.json": [("evaluate", EVALUATE), ("train", TRAIN), ("sweep", SWEEP)],
        "target/manifest.parquet": [
            ("evaluate", EVALUATE),
            ("pseudo-label", LABEL),
            ("train", TRAIN),
            ("inspect", INSPECT),
            ("join", JOIN),
        ],
        "target/index.arrow": [("evaluate", EVALUATE), ("train", TRAIN), ("join", JOIN)],
        "target/class_rows.arrow": [("evaluate", EVALUATE), ("train", TRAIN)],
        "model/model.json": [("evaluate", EVALUATE), ("pseudo-label", LABEL), ("predict", PREDICT), ("export", EXPORT)],
        "model/model.safetensors": [
            ("evaluate", EVALUATE),
            ("pseudo-label", LABEL),
            ("import", "{d}/model/model.safetensors --classes {d}/classes.json"),
        ],
        "theirs.pth": [("import", IMPORT)],
        "config.json": [("train", "--config {d}/config.json"), ("sweep", f"{SWEEP} --recipe {{d}}/config.json")],
        "classes.json": [("prepare", f"{PREPARE} --classes {{d}}/classes.json")],
        "mapping.json": [("prepare", f"{PREPARE} --classes {{d}}/classes.json --mapping {{d}}/mapping.json")],
        "splits.json": [("prepare", f"{PREPARE} --classes {{d}}/classes.json --splits {{d}}/splits.json")],
    }
    for file, commands in readers.items():
        for command, words in commands:
            for share in CUTS:
                full = command in ("train", "sweep") and share != "half"  # their command lines take a while
                yield Case(f"{file} cut to {share}", command, words, file.split("/")[-1], cut(file, share), full=full)


_NOT_OBJECTS = {
    "list": [],
    "number": 3,
    "null": None,
    "text": "abc",
    "not UTF-8": b"\xff\xfe\x00{",
    "deep": b"[" * 99_999,
}


def wrong_json() -> Iterator[Case]:
    with_classes = f"{PREPARE} --classes {{d}}/classes.json"
    readers = {
        "classes.json": ("prepare", with_classes),
        "mapping.json": ("prepare", f"{with_classes} --mapping {{d}}/mapping.json"),
        "splits.json": ("prepare", f"{with_classes} --splits {{d}}/splits.json"),
        "config.json": ("train", "--config {d}/config.json"),
        "target/classes.json": ("evaluate", EVALUATE),
        "model/model.json": ("pseudo-label", LABEL),
    }
    for file, (command, words) in readers.items():
        name = file.split("/")[-1]
        for kind, content in _NOT_OBJECTS.items():
            yield Case(f"{file} is {kind}", command, words, name, holds(file, content))
            if name == "classes.json":
                yield Case(
                    f"{file} is {kind}",
                    "import",
                    f"{{d}}/theirs.pth --classes {{d}}/{file}",
                    name,
                    holds(file, content),
                )
        yield Case(f"{file} is a folder", command, words, name, folder_at(file))
        yield Case(f"{file} is gone", command, words, name, gone(file))
    fields: list[tuple[str, str, dict[str, Any]]] = [
        ("classes.json", "names", {"names": "abc"}),
        ("classes.json", "names", {"names": {"a": 1}}),
        ("classes.json", "names", {"names": [1, 2, 3]}),
        ("classes.json", "names", {"names": []}),
        ("classes.json", "distinct", {"names": ["a", "a", "b"]}),
        ("classes.json", "palette", {"palette": [[0.1, 0.2, 0.3]] * 3}),
        ("classes.json", "palette", {"palette": [[0, 0, 0]] * 2}),
        ("classes.json", "palette", {"palette": [[0, 0, 256]] * 3}),
        ("classes.json", "palette", {"palette": ...}),
        ("classes.json", "ignore", {"ignore": 0}),
        ("classes.json", "raw_to_train", {"raw_to_train": {"0.9": 0}}),
        ("classes.json", "raw_to_train", {"raw_to_train": {"1": 9}}),
        ("classes.json", "surprise", {"surprise": 1}),
        ("mapping.json", "map", {"map": ...}),
        ("mapping.json", "map", {"map": {"[/b]": "road"}}),
        ("mapping.json", "[red]", {"map__sky": "[red]"}),
        ("splits.json", "train", {"train": "000"}),
        ("splits.json", "000", {"val": ["000"]}),
        ("splits.json", "[/b]", {"val": ["[/b]"], "train": []}),
        ("config.json", "[/b]", {"recipe__name": "[/b]"}),
        ("config.json", "config.json", {"recipe__name": ["dacs_small"]}),
        ("config.json", "config.json", {"recipe__name": ...}),
        ("config.json", "config.json", {"recipe": []}),
        ("config.json", "stages", {"recipe__stages": 5}),
        ("config.json", "stages", {"recipe__stages": None}),
        ("config.json", "stages", {"recipe__stages": "ab"}),
        ("config.json", "stages", {"recipe__stages": [{}]}),
        ("config.json", "stages", {"recipe__stages": [1, 2]}),
        ("config.json", "stages.0.steps", {"recipe__stages__0__steps": "many"}),
        ("config.json", "stages.0.steps", {"recipe__stages__0__steps": {"deep": 1}}),
        ("config.json", "stages.1.method.threshold", {"recipe__stages__1__method__threshold": True}),
        ("config.json", "treshold", {"recipe__stages__1__method__treshold": 1}),
        ("model/model.json", "short_side", {"short_side": 10**9}),
        ("model/model.json", "short_side", {"short_side": "40"}),
        ("model/model.json", "model.json", {"step": None}),
        ("model/model.json", "model.json", {"surprise": 1}),
        ("model/model.json", "model.json", {"model": []}),
        ("model/model.json", "names", {"classes__names": "abc"}),
        ("model/model.json", "stranger", {"model__backbone": "hf-hub:stranger/x"}),
        ("model/model.json", "no_such_backbone", {"model__backbone": "no_such_backbone"}),
        ("model/model.json", "head", {"model__head": "[/b]"}),
        ("model/model.json", "head_channels", {"model__head_channels": -1}),
        ("model/model.json", "head", {"model__head_channels": 10_000_000}),
        ("model/model.json", "projection", {"model__projection": 100_000_000}),
        ("model/model.json", "model.json", {"model__backbone": 3}),
    ]
    for file, named, values in fields:
        command, words = readers[file]
        yield Case(f"{file} with {values}", command, words, named, changed(file, **values))
    for values in ({"recipe__stages__0__optim__lr": float("nan")}, {"recipe__stages__0__optim__lr": float("inf")}):
        words = "--config {d}/config.json --source {d}/source --target {d}/target"
        yield Case(f"config.json with {values}", "train", words, "stages.0.optim.lr", changed("config.json", **values))


def out_of_range() -> Iterator[Case]:
    train = (
        "--data.crop 0 0", "--data.crop 64 -1", "--data.crop 99999 64", "--data.short-side 0",
        "--data.short-side 20000", "--data.scale 2 1", "--data.scale 0 1", "--data.scale nan nan", "--data.flip 1.5",
        "--data.flip -0.1", "--data.rotation inf", "--data.batch-size 0", "--data.batch-size -2",
        "--data.group-size 0", "--data.source.jitter 0.7", "--data.target.blur 2",
        "--data.source.rare-temperature 0", "--data.source.rare-min-pixels -1", "--optim.lr nan", "--optim.lr inf",
        "--optim.lr 0", "--optim.lr -1", "--optim.clip -1", "--optim.power nan", "--optim.warmup-steps -1",
        "--optim.momentum 1", "--optim.momentum -0.1", "--optim.weight-decay -1", "--optim.horizon 0.5",
        "--optim.head-lr-factor -1", "--steps 0", "--steps -1", "--steps 99999999999999999999", "--seed -1",
        "--seed 9223372036854775808", "--checkpoint-every 0", "--keep-checkpoints 0", "--log-every 0",
        "--method.threshold nan", "--method.threshold 1.1", "--method.teacher-momentum -1", "--method.mic.block 0",
        "--method.jitter 9", "--model.head-channels 0", "--model.head-channels 10000000", "--model.projection -1",
        "--model.head-branches 0", "--model.drop-path 1", "--model.detail-crop 0 0", "--cluster.workers 0",
        "--cluster.workers -1", "--cluster.min-workers 0", "--cluster.min-workers 2", "--cluster.cpus-per-worker 0",
        "--cluster.cpus-per-worker nan", "--cluster.threads -1", "--cluster.wait 0", "--cluster.wait nan",
        "--cluster.max-failures -1", "--data.batch-size 3 --cluster.workers 2",
    )  # fmt: skip
    for i, words in enumerate(train):
        field = words.split()[0].removeprefix("--").replace("-", "_")
        yield Case("range", "train", f"{TRAIN} {words}", field, full=bool(i % 3))
    inference = (
        "--inference.window 0 64", "--inference.window 64 -1", "--inference.overlap 1", "--inference.overlap nan",
        "--inference.overlap -0.1", "--inference.scales 0", "--inference.scales 1 nan", "--inference.scales 1e9",
        "--inference.batch-size 0", "--inference.actors 0", "--inference.actors -1", "--inference.min-actors 0",
        "--inference.actors 1 --inference.min-actors 2",
    )  # fmt: skip
    for command, base in (("evaluate", EVALUATE), ("pseudo-label", LABEL)):
        for words in inference:
            field = words.split()[-2 if "min-actors" in words else 0].removeprefix("--inference.").replace("-", "_")
            yield Case("range", command, f"{base} {words}", field)
    rules = (
        "--rules.share -0.1", "--rules.share 1.1", "--rules.share nan", "--rules.cap 0", "--rules.image-share 2",
        "--rules.threshold nan", "--rules.temperature 0", "--rules.temperature nan", "--block-size 0",
        "--block-size -1", "--max-failed -1", "--max-failed nan", "--rules.measure prototype",
        "--rules.rule any_class --rules.measure entropy",
    )  # fmt: skip
    for words in rules:
        field = words.split()[-2].removeprefix("--").removeprefix("rules.").replace("-", "_")
        yield Case("range", "pseudo-label", f"{LABEL} {words}", field)
    for words in ("--trials 0", "--images 0", "--concurrent -1", "--window 0 0", "--seed -1", "--cluster.workers 0"):
        field = words.split()[0].removeprefix("--").replace("-", "_")
        yield Case("range", "sweep", f"{SWEEP} {words}", field)
    yield Case("range", "demo", "--seed -1", "seed")
    for side in ("0", "99999"):
        yield Case("range", "export", f"{EXPORT} --size 64 {side}", ("--size", side))
    yield Case("range", "demo", "--seed 99999999999999999999", "seed")


def unknown() -> Iterator[Case]:
    yield Case("unknown", "train", "no_such_recipe", "no_such_recipe")
    yield Case("unknown", "train", "[/b]", "[/b]")
    yield Case("unknown", "train", "--config", "--config", out=False)
    yield Case("unknown", "train", f"{TRAIN} --method.temprature 1", "method.temprature")
    yield Case("unknown", "train", f"{TRAIN} --[red] 1", "[red]")
    yield Case("unknown", "train", "dacs_small --target {d}/target", "--source")
    yield Case("unknown", "train", f"supervised_small {TRAIN.partition(' ')[2]}", "--source")
    yield Case("unknown", "train", f"{TRAIN} --model.backbone no_such_net", "no_such_net")
    yield Case("unknown", "train", f"{TRAIN} --model.weights {{d}}/nothing.pt", "nothing.pt")
    yield Case("unknown", "train", f"{TRAIN} --stages.0.init-from {{d}}/nothing", "nothing")
    yield Case("unknown", "sweep", "no_such_space", "no_such_space")
    yield Case("unknown", "sweep", "../evil", "../evil")
    yield Case("unknown", "sweep", f"{SWEEP} --recipe no_such_recipe", "no_such_recipe")
    yield Case("unknown", "sweep", f"{SWEEP} --recipe {{d}}/nothing.json", "nothing.json")
    yield Case("unknown", "sweep", f"{SWEEP} --method.temprature 1", "method.temprature")
    yield Case("unknown", "sweep", f"{SWEEP} --split nowhere", "nowhere")
    yield Case("unknown", "sweep", f"{SWEEP} --metric miou", "miou", lambda d: _swap(d, "target", "unlabelled"))
    yield Case("unknown", "evaluate", f"{EVALUATE} --split [/b]", "[/b]")
    yield Case("unknown", "pseudo-label", f"{LABEL} --split nowhere", "nowhere")
    yield Case("unknown", "prepare", "--layout nowhere --root {d}/source", "nowhere")
    yield Case("unknown", "prepare", "--layout cityscapes", "--root")
    yield Case("unknown", "prepare", PREPARE, "--classes")
    yield Case("unknown", "prepare", "", "--images")
    yield Case("unknown", "prepare", f"{PREPARE} --layout folders", "--images")
    yield Case("unknown", "prepare", f"{PREPARE} --classes {{d}}/classes.json --root {{d}}", "--root")
    words = f"{PREPARE} --classes {{d}}/classes.json --splits {{d}}/splits.json --split val"
    yield Case("unknown", "prepare", words, "--split")
    with_classes = f"{PREPARE} --classes {{d}}/classes.json"
    yield Case("unknown", "prepare", f"{with_classes} --label-suffix _gt", "_gt.png")
    yield Case("unknown", "prepare", f"{with_classes} --image-suffix _left", "_left.png")
    words = f"{with_classes} --reduce-zero-label"
    yield Case("unknown", "prepare", words, "reduce_zero", changed("classes.json", raw_to_train={"0": 0}))
    words = f"{with_classes} --label-colors palette"
    yield Case("one colour", "prepare", words, ("ground", "sky"), changed("classes.json", palette=[[0, 0, 0]] * 3))
    for layout, missing in (("voc", "JPEGImages"), ("cvat", "labelmap.txt")):
        yield Case("unknown", "prepare", f"--layout {layout} --root {{d}}/empty", missing)


def words_that_do_not_fit() -> Iterator[Case]:
    """What the command line's own types refuse; its error names the option, the word, and what is accepted or near."""
    train, sweep = f"{TRAIN} --out {{d}}/new", f"{SWEEP} --out {{d}}/new"
    lines = (
        ("train", f"{train} --steps many", ("stages.0.steps", "'many'", "INT")),
        ("train", f"{train} --optim.lr [/b]", ("optim.lr", "'[/b]'", "FLOAT")),
        ("train", f"{train} --data.crop 3", ("data.crop", "2 values")),
        ("train", f"{train} --cluster.worker 2", ("--cluster.worker,", "did you mean", "--cluster.workers")),
        ("train", f"{train} more", "more"),
        ("train", TRAIN, "--out STR"),
        ("sweep", f"{sweep} --metric best", ("--metric", "'best'", "'entropy'")),
        ("sweep", f"{sweep} --trials 1.5", ("--trials", "'1.5'", "INT")),
        ("sweep", f"{sweep} --cluster.no-gpuu", ("--cluster.no-gpuu", "did you mean --cluster.gpu")),
        ("sweep", f"{sweep} --recipe", "--recipe"),
        ("evaluate", "--dataset {d}/target", "--checkpoint MODEL..."),
        ("evaluate", "", ("--checkpoint MODEL...", "--dataset STR")),
        ("evaluate", f"{EVALUATE} --splt val", ("--splt", "did you mean --split")),
        ("evaluate", f"{EVALUATE} --splt val --inference.winow 4 4", ("--split", "--inference.window")),
        ("evaluate", f"{EVALUATE} --format [red]", ("--format", "'[red]'", "'table', 'json'")),
        ("evaluate", f"{EVALUATE} --format {'x' * 300}", ("--format", "x" * 300)),
        ("evaluate", f"{EVALUATE} --inference.window 64", ("--inference.window", "'64'", "INT INT")),
        ("evaluate", f"{EVALUATE} --inference.no-flip=3", "3"),
        ("train", f"{TRAIN} --out {{d}}/new --model.pretrained False", "or --model.no-pretrained"),
        ("train", f"{TRAIN} --out {{d}}/new --bf16=true", "give --bf16 or --no-bf16"),
        ("pseudo-label", f"{LABEL} --out {{d}}/new --block-size many", ("--block-size", "'many'", "INT")),
        ("pseudo-label", f"{LABEL} --out {{d}}/new --rules.rule best", ("--rules.rule", "'best'", "'any_class'")),
        ("pseudo-label", f"{LABEL} --out {{d}}/new --layouts voc", ("--layouts", "voc", "coco_stuff")),
        ("pseudo-label", f"{LABEL} --output {{d}}/new", "--out STR"),
        ("prepare", f"{PREPARE} --out {{d}}/new --layot folders", ("--layot", "did you mean --layout")),
        ("prepare", f"{PREPARE} --out {{d}}/new --on-error pass", ("--on-error", "'pass'", "'skip'")),
        ("prepare", f"{PREPARE} --out {{d}}/new --label-colors", "--label-colors"),
        ("prepare", PREPARE, "--out STR"),
        ("demo", "--seed one", ("--seed", "'one'", "INT")),
        ("demo", "--seed", ("--seed", "1 value")),
        ("adapt", f"{ADAPT} --out {{d}}/new --trget x", ("--trget", "did you mean --target")),
        ("demo", "--sed 1", ("--sed", "did you mean --seed")),
        ("import", f"{IMPORT} --out {{d}}/new --from theirs", ("--from", "'theirs'", "'daformer'")),
        ("import", f"{IMPORT} --out {{d}}/new --short-side half", ("--short-side", "half", "INT")),
        ("import", f"{IMPORT} --out {{d}}/new --form hrda", ("--form", "did you mean --from")),
        ("import", f"{IMPORT} --out {{d}}/new {{d}}/text", "text"),
        ("import", "--classes cityscapes --out {d}/new", "CHECKPOINT"),
        ("import", "{d}/theirs.pth --out {d}/new", "--classes STR"),
        ("import", IMPORT, "--out STR"),
        ("predict", f"{PREDICT} --out {{d}}/new --overlays", ("--overlays", "did you mean --overlay")),
        ("predict", "{d}/model", "IMAGE..."),
        ("predict", "", "MODEL"),
        ("export", EXPORT, "--out STR"),
        ("inspect", "", "DATASET..."),
        ("join", "--out {d}/new", "two datasets"),
        ("join", f"{JOIN} --out {{d}}/new --overwriet", ("--overwriet", "did you mean --overwrite")),
        ("join", "{d}/source {d}/target", "--out STR"),
        ("join", f"{JOIN} --out {{d}}/new --overwriet", ("--overwriet", "did you mean --overwrite")),
        ("export", f"{EXPORT} --out {{d}}/new --format tflite", ("--format", "'tflite'", "torch-export")),
        ("export", f"{EXPORT} --out {{d}}/new --size 64", ("--size", "INT INT")),
    )  # fmt: skip
    for i, (command, words, named) in enumerate(lines):
        yield Case("words", command, words, named, out=False, full=command in ("train", "sweep") and i % 3 > 0)


def images() -> Iterator[Case]:
    """Images that are none; one whose last byte is missing is whole."""
    for share in ("0", "1", "half"):
        yield Case(f"an image cut to {share}", "predict", PREDICT, "images/000.png", cut("images/000.png", share))


def imports() -> Iterator[Case]:
    """Files that are no checkpoint of the format, and class lists that are not theirs."""
    for thing in ("{d}/text", "{d}/empty", "{d}/nothing", "{d}/[", "{d}/images/000.png", "s4://bucket", "{d}/model"):
        name = thing.removeprefix("{d}/")
        yield Case("other thing", "import", f"{thing} --classes cityscapes", name)
        yield Case("other thing", "import", f"{{d}}/theirs.pth --classes {thing}", name)
    yield Case("no code", "import", IMPORT, "theirs.pth", holds("theirs.pth", b"cos\nsystem\n(S'true'\ntR."))
    yield Case("fewer classes", "import", IMPORT, ("theirs.pth", "19 classes", "3"))
    for form in ("daformer", "proda", "segformer"):
        words = f"{{d}}/theirs.pth --classes cityscapes --from {form}"
        yield Case("another's", "import", words, ("theirs.pth", form, "looks like deeplabv2"))
    yield Case(
        "half a network", "import", "{d}/theirs.pth --classes cityscapes", ("theirs.pth", "layer3.0.conv1.weight")
    )
    for side in ("0", "-1", "99999"):
        yield Case("range", "import", f"{IMPORT} --short-side {side}", ("short_side", side))


def _swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)


def other_things() -> Iterator[Case]:
    """A file where a folder belongs, a folder where a file does, nothing at all, an address of no kind."""
    for thing in ("{d}/text", "{d}/empty", "{d}/nothing", "{d}/[", "s4://bucket", "s3://", "{d}/" + "n" * 256):
        name = thing.removeprefix("{d}/")
        yield Case("other thing", "evaluate", f"--checkpoint {thing} --dataset {{d}}/target", name)
        yield Case("other thing", "evaluate", f"--checkpoint {{d}}/model --dataset {thing}", name)
        yield Case("other thing", "pseudo-label", f"--checkpoint {thing} --images {{d}}/target", name)
        yield Case("other thing", "train", f"dacs_small --source {thing} --target {{d}}/target", name)
        yield Case("other thing", "train", f"--config {thing}", name)
        yield Case("other thing", "sweep", f"thresholds --source {{d}}/source --target {thing}", name)
        yield Case("other thing", "prepare", f"--images {{d}}/images --classes {thing}", name)
        yield Case("other thing", "predict", f"{thing} {{d}}/images", name)
        yield Case("other thing", "export", thing, name)
        yield Case("other thing", "inspect", f"{{d}}/source {thing}", name)
        yield Case("other thing", "join", f"{{d}}/source {thing}", name)
        yield Case("other thing", "join", f"{{d}}/source {thing}", name)
        if "://" not in thing:
            yield Case("other thing", "predict", f"{{d}}/model {thing}", name)
            yield Case("other thing", "pseudo-label", f"--checkpoint {{d}}/model --images {thing}", name)
            yield Case("other thing", "prepare", f"--images {thing} --classes {{d}}/classes.json", name)
            yield Case("other thing", "prepare", f"--layout folders --root {thing} --classes {{d}}/classes.json", name)
    yield Case("other thing", "pseudo-label", f"{LABEL} --agree-with {{d}}/nothing", "nothing")
    yield Case("other thing", "pseudo-label", f"{LABEL} --source {{d}}/nothing", "nothing")


def counts() -> Iterator[Case]:
    """Numbers, names and orders of classes that do not fit together."""
    lists = {"fewer": ["ground", "sky"], "more": ["ground", "sky", "box", "x"], "others": ["ground", "[/b]", "box"]}
    lists["order"] = ["sky", "ground", "box"]
    for kind, names in lists.items():
        damage = other_classes("target", names)
        yield Case(f"{kind} classes", "evaluate", EVALUATE, ("target", names[-1]), damage)
        yield Case(f"{kind} classes", "train", TRAIN, ("target", names[-1]), damage)
        yield Case(f"{kind} classes", "pseudo-label", f"{LABEL} --truth", ("target", names[-1]), damage)
        damage = other_classes("source", names)
        yield Case(f"{kind} classes", "pseudo-label", f"{LABEL} --source {{d}}/source", ("source", names[-1]), damage)
    names_of = {"emoji": "🚗", "quotes": "'\"", "control": "\x1b[31m", "255 bytes": "x" * 255, "two lines": "a\nb"}
    for kind, name in names_of.items():
        yield Case(
            f"a class of {kind}", "evaluate", EVALUATE, "target", other_classes("target", ["ground", "sky", name])
        )
    for field, value in (("image_id", "../x"), ("image_id", "a\nb"), ("image_id", "x" * 300), ("split", "../x")):
        yield Case(f"{field} {value[:9]!r}", "pseudo-label", LABEL, "target", rows("target", **{field: value}))
    for words in (EVALUATE, f"{EVALUATE} --split train"):
        words = words.replace("target", "unlabelled")
        yield Case("no labels", "evaluate", words, "unlabelled")
    yield Case("no labels", "train", TRAIN.replace("{d}/source", "{d}/unlabelled"), "unlabelled")


def adaptations() -> Iterator[Case]:
    """What `udaseg adapt` is given: no labels, no images, folders that are no pair, candidates that there are not."""
    of_folder = "--source {d}/source --target {d}/images --no-pretrained"
    yield Case("no labels", "adapt", ADAPT.replace("{d}/source", "{d}/unlabelled"), "unlabelled")
    yield Case("no labels", "adapt", "--source {d}/images --target {d}/target", ("images", "labels/"))
    yield Case("no images", "adapt", "--source {d}/source --target {d}/empty", "empty")
    yield Case("no images", "adapt", "--source {d}/source --target {d}/nothing", "nothing")
    yield Case("no images", "adapt", "--source {d}/source --target {d}/text", "text")
    yield Case("no source", "adapt", "--target {d}/target", ("--source", "--from"))
    yield Case("no classes", "adapt", "--source {d}/folder --target {d}/target", "--classes", _bare)
    yield Case("no checkpoint", "adapt", f"{ADAPT} --from {{d}}/nothing", "nothing")
    yield Case("two networks", "adapt", f"{ADAPT} --from {{d}}/model --backbone resnet10t", "--backbone")
    for names in ("no_such", "sdca,no_such", "hrda", "supervised", "[/b]"):
        yield Case("unknown", "adapt", f"{ADAPT} --candidates {names}", names.split(",")[-1])
    yield Case("unknown", "adapt", "--target {d}/target --from {d}/model --candidates dacs", "without a source")
    yield Case("unknown", "adapt", f"{ADAPT} --backbone no_such_net", "no_such_net")
    yield Case("unknown", "adapt", f"{ADAPT} --weights {{d}}/nothing.pt", "nothing.pt")
    yield Case("unknown", "adapt", f"{of_folder} --classes {{d}}/nothing.json", "nothing.json")
    for names in (["ground", "sky"], ["sky", "ground", "box"]):
        damage = other_classes("target", names)
        yield Case("other classes", "adapt", ADAPT, ("target", names[-1]), damage)
        damage = changed("classes.json", names=names, palette=[[0, 0, 0]] * len(names))
        yield Case("other classes", "adapt", f"{of_folder} --classes {{d}}/classes.json", ("images", names[-1]), damage)
        damage = changed("model/model.json", classes__names=names, classes__palette=[[0, 0, 0]] * len(names))
        yield Case("other classes", "adapt", f"{ADAPT} --from {{d}}/model", ("source", names[-1]), damage)
    for words in ("--crop 0 0", "--steps 0", "--batch-size -1", "--lr nan", "--images 0", "--seed -1"):
        yield Case("range", "adapt", f"{ADAPT} {words}", words.split()[0].removeprefix("--").replace("-", "_"))
    yield Case("range", "adapt", f"{ADAPT} --batch-size 3 --cluster.workers 2", "workers")


def _bare(folder: Path) -> None:
    """A labelled folder without a class list."""
    for kind in ("images", "labels"):
        (folder / "folder" / kind).mkdir(parents=True)
        (folder / "folder" / kind / "000.png").hardlink_to(folder / "source" / kind / "000.png")


def outputs() -> Iterator[Case]:
    """Outputs that are there, hold something of the user's, or cannot be made."""
    commands = [("train", TRAIN), ("sweep", SWEEP), ("pseudo-label", LABEL), ("demo", "")]
    commands.append(("adapt", ADAPT))
    commands.append(("prepare", f"{PREPARE} --classes {{d}}/classes.json"))
    commands += [("evaluate", EVALUATE), ("import", "{d}/theirs.pth --classes cityscapes"), ("predict", PREDICT)]
    commands += [("export", EXPORT), ("inspect", INSPECT), ("join", JOIN)]
    for command, words in commands:
        yield Case("out is a file", command, f"{words} --out {{d}}/text", "text", out=False)
        yield Case("out is below a file", command, f"{words} --out {{d}}/text/x", "text", out=False)
        yield Case("out is no address", command, f"{words} --out s4://x/y", "s4://x", out=False)
        if command != "evaluate":  # which adds two files to a folder of the user's
            yield Case("out is not empty", command, f"{words} --out {{d}}/images", "images", out=False)
            yield Case("out is an input", command, f"{words} --out {{d}}/target", "target", out=False)
    for command, words in (("train", TRAIN), ("sweep", SWEEP), ("adapt", ADAPT), ("demo", "")):
        yield Case("resumed", command, f"{words} --out {{d}}/images --resume", "images", out=False)
    yield Case("out is not empty", "evaluate", f"{EVALUATE} --out {{d}}/res", "res", _results, out=False)


def _results(folder: Path) -> None:
    (folder / "res").mkdir()
    (folder / "res" / "metrics.json").write_text("mine")


TABLES = (
    truncated, wrong_json, out_of_range, unknown, words_that_do_not_fit, images, imports, other_things, counts,
    adaptations, outputs,
)  # fmt: skip
CASES = [case for table in TABLES for case in table()]
