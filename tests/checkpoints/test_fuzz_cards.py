"""Cards and weights changed at random: each is refused with one line, or means what it meant."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_checkpoint

from udaseg.checkpoints.directory import CARD_FILE, MODEL_FILE, ModelCard, check_checkpoint, load_model, read_card
from udaseg.errors import CheckpointError

JUNK = (
    None, True, -1, 0, 1.5, 2**31, 10**30, float("nan"), "", "[/b]", "🚗", "a\nb", [], [[]], [0, 0], {}, {"a": 1}, "16",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_checkpoint(tmp_path_factory.mktemp("fuzz") / "model", 0))


def mutated_json(text: str, rng: random.Random) -> str:
    """Another value at a random place, a place less, or some bytes changed."""
    if rng.random() < 0.3:
        letters = list(text)
        for _ in range(rng.randint(1, 3)):
            letters[rng.randrange(len(letters))] = chr(rng.choice((0, 34, 44, 48, 91, 93, 123, 125, 255, 0x1F697)))
        return "".join(letters)[: rng.choice((None, None, rng.randrange(len(text))))]
    raw = json.loads(text)
    part: Any = raw
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = rng.choice(keys)
        if isinstance(part[key], dict | list) and part[key] and rng.random() < 0.8:
            part = part[key]
            continue
        if rng.random() < 0.2:
            del part[key]
        else:
            part[key] = rng.choice(JUNK)
        return json.dumps(raw)


MEANT = {
    "short_side", "classes.names", "classes.palette", "classes.ignore", "classes.raw_to_train", "model.align_corners",
    "model.caffe", "model.detail_crop", "model.head_branches", "model.input_form", "model.output_stride",
    "model.same_padding", "image_sizes.multiple", "image_sizes.smallest", "image_sizes.only", "old_classes",
    "window", "overlap", "depth_range", "resample", "classes.color_to_train", "classes.ids_in_red", "classes.unions",
}  # fmt: skip
"""Fields that no shape in the file tells, and that give a result its meaning: another value means another result."""
NO_MATTER = {
    "recipe", "stage", "step", "weights_sha256", "image_sizes", "model.drop_path", "model.frozen_norm_affine",
    "model.head_init", "model.pretrained", "model.weights",
}  # fmt: skip
"""Fields that a finished network's result does not depend on: where it comes from, and how it would be trained on."""


def fields(card: ModelCard) -> dict[str, Any]:
    """Each field of a card and of its sections by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(card).items():
        found |= (
            {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return found


@torch.no_grad()
@pytest.mark.full
def test_a_changed_card_is_refused_or_says_what_it_changed(checkpoint: Path) -> None:
    """No traceback; and no other logits, nor another field in the loaded card, but by one of those that mean that."""
    rng, seen = random.Random(0), Counter[str]()
    text, picture = (checkpoint / CARD_FILE).read_text(), torch.rand(1, 3, 41, 57)
    network, card = load_model(str(checkpoint))
    logits, own = network(picture).logits, fields(card)
    try:
        for _ in range(700):
            changed = mutated_json(text, rng)
            (checkpoint / CARD_FILE).write_text(changed)
            try:
                check_checkpoint(str(checkpoint))
                network, card = load_model(str(checkpoint))
            except CheckpointError as error:
                assert "model" in str(error) and len(str(error).splitlines()) == 1, str(error)
                seen["refused"] += 1
                continue
            now = fields(card)
            other = {name for name in own | now if own.get(name, ...) != now.get(name, ...)}
            assert other <= MEANT | NO_MATTER, f"{other - MEANT - NO_MATTER}: {changed}"
            same = torch.equal(network(picture).logits, logits)
            assert same or other & MEANT, changed
            seen["meant" if other & MEANT else "no matter" if other else "equal"] += 1
    finally:
        (checkpoint / CARD_FILE).write_text(text)
    assert seen["refused"] >= 400 and seen["meant"] >= 5 and seen["no matter"] >= 5
    read_card(str(checkpoint))


@pytest.mark.full
def test_no_file_of_weights_gives_a_traceback_or_other_weights(checkpoint: Path) -> None:
    """Changed headers, lost and added bytes, changed bytes of a tensor.

    With the digest in its card none is taken. Without, the last would be as good as any others, and are left out.
    """
    rng, seen = random.Random(1), Counter[bool]()
    content, card = (checkpoint / MODEL_FILE).read_bytes(), (checkpoint / CARD_FILE).read_text()
    of_before = json.dumps({name: value for name, value in json.loads(card).items() if name != "weights_sha256"})
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    expected = load_model(str(checkpoint))[0].state_dict()
    try:
        for n in range(120):
            kind = rng.randrange(6)
            if kind == 0:
                changed = content[: rng.randrange(len(content))]
            elif kind == 1:
                changed = content + bytes(rng.randint(1, 100))
            elif kind == 2:
                changed = struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**40, 2**64 - 1))) + content[8:]
            elif kind == 3:
                new = mutated_json(header.decode().strip(), rng).encode()
                changed = struct.pack("<Q", len(new)) + new + body
            elif kind == 4:
                old, new = rng.choice(((b"F32", b"I32"), (b"F32", b"F16"), (b"F32", b"U32"), (b"I64", b"F64")))
                place = rng.choice([found.start() for found in re.finditer(old, header)])
                changed = content[: 8 + place] + new + content[8 + place + 3 :]
            else:
                tipped = bytearray(content)
                tipped[8 + length + rng.randrange(len(body))] ^= 1 << rng.randrange(8)
                changed = bytes(tipped)
            (checkpoint / MODEL_FILE).write_bytes(changed)
            for digested in (True, False) if kind < 5 else (True,):
                (checkpoint / CARD_FILE).write_text(card if digested else of_before)
                try:
                    check_checkpoint(str(checkpoint))
                    found = load_model(str(checkpoint))[0].state_dict()
                    assert not digested or changed == content, (n, kind)
                    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), (n, kind)
                    seen[True] += 1
                except CheckpointError as error:
                    assert MODEL_FILE in str(error) or "model" in str(error)
                    assert len(str(error).splitlines()) == 1
                    seen[False] += 1
    finally:
        (checkpoint / MODEL_FILE).write_bytes(content)
        (checkpoint / CARD_FILE).write_text(card)
    assert seen[False] >= 200
