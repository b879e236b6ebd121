"""Cards and weights changed at random: each is refused with one line, or means what it meant."""

from __future__ import annotations

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

from udaseg.checkpoints.directory import CARD_FILE, MODEL_FILE, check_checkpoint, load_model, read_card
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


@pytest.mark.full
def test_no_card_gives_a_traceback(checkpoint: Path) -> None:
    """Also such as fits the weights loads, and predicts."""
    rng, seen = random.Random(0), Counter[bool]()
    text = (checkpoint / CARD_FILE).read_text()
    try:
        for _ in range(700):
            (checkpoint / CARD_FILE).write_text(mutated_json(text, rng))
            try:
                check_checkpoint(str(checkpoint))
                load_model(str(checkpoint))
                seen[True] += 1
            except CheckpointError as error:
                assert "model" in str(error) and len(str(error).splitlines()) == 1, str(error)
                seen[False] += 1
    finally:
        (checkpoint / CARD_FILE).write_text(text)
    assert seen[True] >= 10 and seen[False] >= 400
    read_card(str(checkpoint))


@pytest.mark.full
def test_no_file_of_weights_gives_a_traceback_or_other_weights(checkpoint: Path) -> None:
    """Changed headers, lost and added bytes; bytes within the weights are as good as any others."""
    rng, seen = random.Random(1), Counter[bool]()
    content = (checkpoint / MODEL_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    expected = load_model(str(checkpoint))[0].state_dict()
    try:
        for _ in range(100):
            kind = rng.randrange(5)
            if kind == 0:
                changed = content[: rng.randrange(len(content))]
            elif kind == 1:
                changed = content + bytes(rng.randint(1, 100))
            elif kind == 2:
                changed = struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**40, 2**64 - 1))) + content[8:]
            elif kind == 3:
                new = mutated_json(header.decode().strip(), rng).encode()
                changed = struct.pack("<Q", len(new)) + new + body
            else:
                old, new = rng.choice(((b"F32", b"I32"), (b"F32", b"F16"), (b"F32", b"U32"), (b"I64", b"F64")))
                place = rng.choice([found.start() for found in re.finditer(old, header)])
                changed = content[: 8 + place] + new + content[8 + place + 3 :]
            (checkpoint / MODEL_FILE).write_bytes(changed)
            try:
                check_checkpoint(str(checkpoint))
                found = load_model(str(checkpoint))[0].state_dict()
                assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), kind
                seen[True] += 1
            except CheckpointError as error:
                assert MODEL_FILE in str(error) or "model" in str(error)
                assert len(str(error).splitlines()) == 1
                seen[False] += 1
    finally:
        (checkpoint / MODEL_FILE).write_bytes(content)
    assert seen[False] >= 60
