"""`udaseg pseudo-label`: label images with a checkpoint, and keep what is certain.

Two passes. Actors predict each image and write its classes and confidence; the confidence histograms of all images give
each class its threshold; then tasks apply the thresholds to the files, without a second inference. (The rule
"any_class" looks at every class's probability and so predicts again.)

    predictions/<image_id>.png  the most probable class of every pixel
    confidence/<image_id>.png   16 bits: -ln(1 - p) * 4096
    entropy/<image_id>.png      the same of 1 - normalised entropy, where the rules look at it
    distribution/<image_id>.png 16 bits: -ln p * 4096 of every class at an eighth of the size, where the rules say so
    labels/<image_id>.png       the pseudo-label, 255 where it is not certain
    manifest.parquet ...        a dataset directory that `udaseg train` reads
    report.html                 how good the labels are; report.json has its numbers
    failed.json                 images that could not be read, and why
    job/                        the job's state: the listing, and what is done

Work is done in blocks of images, each entered in the job's state when all its files are written (`udaseg.jobs.ledger`).
A job that was killed, at whatever moment, goes on when the same command is run again, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from udaseg.checkpoints.directory import CARD_FILE, MODEL_FILE, STATE_FILE, check_checkpoint, read_card
from udaseg.config import DEFAULT_RULES, PseudoLabel
from udaseg.data.classes import Classes, read_classes, require_same_classes
from udaseg.data.depth import other_range
from udaseg.data.export import ExportFormat, require_unique_names
from udaseg.data.folders import passed_over
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.manifest import digest, pixels_of_classes, read_manifest, write_dataset
from udaseg.data.storage import absolute, exists, join, read_bytes, to_uri, to_uris, write_bytes
from udaseg.data.strict_json import dump_json, parse_json
from udaseg.errors import CheckpointError, ConfigError, DatasetError
from udaseg.job_config import Inference
from udaseg.jobs.ledger import open_ledger
from udaseg.jobs.output import lies_in, own_directory, require_own
from udaseg.jobs.pseudo_label.actors import PredictActor
from udaseg.jobs.pseudo_label.phases import (
    FailureLimit,
    class_thresholds,
    each_chunk,
    forget_unreachable,
    predicted_totals,
    run_phase,
    source_prototypes,
)
from udaseg.jobs.pseudo_label.tasks import PredictionTotals, Work, apply_thresholds, clear_scratch_folder, label_chunk
from udaseg.jobs.ray_session import check_nodes, ensure_ray, lazily
from udaseg.jobs.resources import actor_pool, require_gpu
from udaseg.reports.pseudo_label import Quality, Shares, failure_table, label_page, sample, share_table
from udaseg.reports.tables import show
from udaseg.types import DepthRange, Location

REPORTS = ("report.json", "report.html")


def pseudo_label(
    *,
    checkpoint: Location,
    images: Location,
    out: Location,
    split: str | None = None,
    agree_with: Location | Sequence[Location] = (),
    source: Location | None = None,
    truth: bool = False,
    layouts: Sequence[ExportFormat] = (),
    max_failed: float | None = None,
    block_size: int = 32,
    rules: PseudoLabel | None = None,
    inference: Inference | None = None,
) -> Shares:
    """Label images and write a dataset directory of them; go on where a job that was killed left off.

    Returns what was kept of each class.

    Args:
        checkpoint: model directory.
        images: dataset directory, or a folder or URI of images.
        out: dataset directory to write.
        split: of the dataset directory; None = all its images.
        agree_with: other model directories; what they do not all find alike is not kept.
        source: labelled dataset directory; its class balance is reported, and prototypes are made from it.
        truth: compare with the true labels that the images have. They are read for the report alone.
        layouts: folders for other tools to write beside.
        max_failed: stop when more images than this cannot be read; below 1 a share of all, None = never.
        block_size: images that are committed together.
        rules: what is kept; None = `udaseg.config.DEFAULT_RULES`.
        inference: how images are predicted.

    Raises:
        ConfigError: a setting lies outside its range.
        DatasetError: images that cannot be listed, too many that cannot be read, or `out` holds something else or is
            worked on by another process.
        CheckpointError: a checkpoint cannot be used.
    """
    rules, inference = rules or DEFAULT_RULES, inference or Inference()
    rules.check()
    inference.check()
    inference = dataclasses.replace(inference, flip=inference.flip or rules.flip)
    if inference.gpu:
        require_gpu("--inference.gpu")
    if block_size < 1:
        raise ConfigError(f"block_size is {block_size}; it must be at least 1")
    if max_failed is not None and not max_failed >= 0:  # NaN is not
        raise ConfigError(f"max_failed is {max_failed}; it must be at least 0")
    checkpoints = (absolute(checkpoint), *map(absolute, to_uris(agree_with)))
    out, images, source = absolute(out), absolute(images), to_uri(source)
    classes = _common_classes(checkpoints, inference)
    if rules.measure == "prototype" and source is None:
        raise ConfigError("measure prototype needs the labelled source that prototypes are made from: give --source")
    if source is not None:
        _check_source(absolute(source), classes, prototypes=rules.measure == "prototype")
    require_own(out, "pseudo-label")
    if lies_in(out, images) and not exists(join(images, "manifest.parquet")):
        raise DatasetError(f"{out}: lies in the folder of images; choose an --out outside of it")
    if lies_in(images, out):
        raise DatasetError(f"{images}: lies in the folder of labels; choose an --out elsewhere")
    true_classes = _truth(images, classes) if truth else None
    for layout in layouts:
        require_unique_names(layout, list_images(images, split), list_images(images, split), classes)
    depth_range = _depth_range(checkpoints, images)
    job = {
        "checkpoint": [_fingerprint(uri, inference) for uri in checkpoints],
        "rules": {k: v for k, v in dataclasses.asdict(rules).items() if k not in ("by", "flip")},
        "inference": inference.views() | {"network": inference.network},
        "source": None if source is None else digest(source),
        "truth": truth,
        "layouts": list(layouts),
        "depth_range": depth_range,
    }
    with own_directory(out, "pseudo-label"):
        unread = Counter[str]()
        rows = partial(list_images, images, split, unread=unread)
        try:
            ledger = open_ledger(join(out, "job"), rows, block_size=block_size, job=job)
        finally:
            for warning in passed_over(images, unread):
                print(f"warning: {warning}", file=sys.stderr)
        whole = all(exists(join(out, name)) for name in ("manifest.parquet", *REPORTS))
        if not whole or unreachable_images(out):
            work = Work(
                checkpoints=checkpoints,
                out=out,
                ledger=ledger,
                classes=classes,
                rules=rules,
                inference=inference,
                layouts=tuple(layouts),
                truth=true_classes,
                depth_range=depth_range,
            )
            clear_scratch_folder(out)
            _do(work, source, max_failed)
        clear_scratch_folder(out)
        return _print(classes, json.loads(read_bytes(join(out, REPORTS[0]))))


def _do(work: Work, source: str | None, max_failed: float | None) -> None:
    """Both passes, as far as they are not done, and what is made of them."""
    ledger, rules, inference, out = work.ledger, work.rules, work.inference, work.out
    ensure_ray()
    check_nodes(_first_there(row["image_uri"] for row in ledger.rows(0)), out)
    lost: list[tuple[str, str, str]] = []  # of the source
    if rules.measure == "prototype":
        assert source is not None
        prototypes, lost = source_prototypes(work, source)
        work = dataclasses.replace(work, prototypes=prototypes)
    forget_unreachable(ledger, join(out, "manifest.parquet"))
    options, threads = actor_pool(inference)
    limit = None if max_failed is None else FailureLimit(max_failed, ledger)
    run_phase(ledger, "predict", limit, fn=lazily(PredictActor), fn_constructor_args=(work, threads), **options)
    tally = predicted_totals(ledger, len(work.classes))
    thresholds = class_thresholds(rules, tally.histogram)
    if rules.rule == "any_class":
        arguments = (work, threads, thresholds)
        run_phase(ledger, "label", fn=lazily(PredictActor), fn_constructor_args=arguments, **options)
    else:
        run_phase(ledger, "label", fn=apply_thresholds(work, thresholds), num_cpus=1)
    table, quality = _label_table(work, tally, thresholds, source)
    kinds = ["unreachable" if image_id in tally.unreachable else "unreadable" for image_id, *_ in quality.failed]
    kinds += ["source"] * len(lost)
    names = ("image_id", "image_uri", "reason", "kind")
    failed = [dict(zip(names, (*r, k), strict=True)) for r, k in zip([*quality.failed, *lost], kinds, strict=True)]
    if lost:
        print(f"{len(lost)} images of the source could not be read, and are in no prototype; see failed.json")
    write_bytes(join(out, "failed.json"), dump_json(failed, indent=1).encode())
    numbers = quality.to_json(work.classes.names)
    write_bytes(join(out, REPORTS[0]), dump_json(numbers, indent=1).encode())
    write_dataset(out, table, work.classes, depth_range=work.depth_range)
    try:
        _write_page(work, tally, quality)
    except Exception as error:  # whatever it is, the labels are done
        print(f"no report, which the same command makes again: {type(error).__name__}: {error}", file=sys.stderr)


def _common_classes(checkpoints: Sequence[str], inference: Inference) -> Classes:
    """The classes of all checkpoints, for labels that hold train ids. Raises DatasetError where they differ."""
    first, *others = (check_checkpoint(uri, inference.network).classes for uri in checkpoints)
    for uri, other in zip(checkpoints[1:], others, strict=True):
        require_same_classes(first, other, uri, of=checkpoints[0])
    return first.of_train_ids()


def _depth_range(checkpoints: Sequence[str], images: str) -> DepthRange | None:
    """With which images are read: the dataset's own range, of a bare folder that of the checkpoints.

    Raises CheckpointError where these differ, so that nobody knows which.
    """
    own = {uri: read_card(uri).depth_range for uri in checkpoints}
    if exists(join(images, "manifest.parquet")):
        found = open_index(images).depth_range
        for warning in (w for uri, trained in own.items() for w in other_range(trained, found, uri, images)):
            print(f"warning: {warning}", file=sys.stderr)
        return found
    (first, wanted), *others = own.items()
    for uri, depth_range in others:
        if depth_range != wanted:
            raise CheckpointError(
                f"{uri}: was trained on a depth range of {depth_range}, {first} of {wanted}: say how these are "
                "to be read by `udaseg prepare --depth-range LOW HIGH`, and give the dataset"
            )
    return wanted


def _fingerprint(checkpoint: str, inference: Inference) -> str:
    content = hashlib.sha256()
    for name in (CARD_FILE, MODEL_FILE if inference.network == "predictor" else STATE_FILE):
        if not exists(join(checkpoint, name)):
            raise CheckpointError(f"{checkpoint}: no {name}; give one of a run's checkpoints for --inference.network")
        content.update(read_bytes(join(checkpoint, name)))
    return content.hexdigest()[:16]


def _check_source(source: str, classes: Classes, *, prototypes: bool) -> None:
    """Raise DatasetError where the source has other classes, or nothing that prototypes could be made from."""
    require_same_classes(classes, read_classes(source), source, of="the checkpoint")
    labels = read_manifest(source, "train" if prototypes else None)["label_uri"]
    if labels.null_count == len(labels):
        raise DatasetError(f"{source}: none of its {'train ' * prototypes}images has a label, which --source is for")


def _truth(images: str, classes: Classes) -> Classes:
    if not exists(join(images, "classes.json")):
        raise DatasetError(f"{images}: --truth needs a dataset directory with labels")
    true_classes = read_classes(images)
    require_same_classes(classes, true_classes, images, of="the checkpoint")
    return true_classes


def _first_there(uris: Iterable[str]) -> list[str]:
    """The first that can be reached, if any: one that cannot, for now, is listed later on and stops no other."""
    for uri in uris:
        with contextlib.suppress(OSError):
            if exists(uri):
                return [uri]
    return []


def _label_table(
    work: Work, tally: PredictionTotals, thresholds: np.ndarray, source: str | None
) -> tuple[pa.Table, Quality]:
    """The manifest's rows, and how good the labels are."""
    ledger = work.ledger
    parts = list(each_chunk(label_chunk, ledger, range(ledger.blocks), work.rules.distribution))
    table = pa.concat_tables([rows for rows, *_ in parts])
    classes = len(tally.histogram)
    balance = None
    if source is not None:
        balance = pixels_of_classes(read_manifest(source), classes).sum(0)
    quality = Quality(
        shares=Shares(sum(part[1] for part in parts), tally.histogram.sum(1), thresholds),
        histogram=tally.histogram,
        source=balance,
        right=sum(part[2] for part in parts),
        reliability=sum(part[3] for part in parts),
        images=table.num_rows,
        failed=tally.failed,
    )
    return table, quality


def _write_page(work: Work, tally: PredictionTotals, quality: Quality) -> None:
    wanted = list(dict.fromkeys([*tally.least, *reversed(tally.most)]))  # of few images, none twice
    examples = []
    for certainty, image_id, block in wanted:
        uri = next(row["image_uri"] for row in work.ledger.rows(block) if row["image_id"] == image_id)
        examples.append(sample(work.out, image_id, uri, certainty, work.depth_range))
    page = label_page(classes=work.classes, quality=quality, examples=examples, rules=dataclasses.asdict(work.rules))
    write_bytes(join(work.out, REPORTS[1]), page.encode())


def unreachable_images(out: str) -> int:
    """How many images of a finished labelling could not be reached; the same job again tries them again."""
    uri = join(out, "failed.json")
    rows = parse_json(read_bytes(uri), uri) if exists(uri) else []
    return sum(row.get("kind") == "unreachable" for row in rows)


def _print(classes: Classes, numbers: dict[str, Any]) -> Shares:
    shares = Shares(*(np.array(numbers[name]) for name in ("kept", "predicted", "thresholds")))
    show(share_table(classes.names, shares))
    if numbers["failed"]:
        show(failure_table(numbers["failed"]))
    return shares
