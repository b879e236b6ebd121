"""Processes with a gloo group between them, for tests that compare ranks with one process."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
import torch.multiprocessing as multiprocessing

WORLD_SIZE = 2


class RankPool:
    """Ranks that wait for work: starting them imports torch as many times."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name, "store").as_uri()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, store), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(rank, *arguments)` on all ranks, a function at the top of a test module; the results by rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(120):
                for process in self._processes:  # else the next test would read this one's answer
                    process.kill()
                raise TimeoutError(f"rank {rank} has not answered for two minutes")
            answers.append(pipe.recv())
        for rank, (ok, answer) in enumerate(answers):
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{answer}")
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


class TwoRanks(RankPool):
    """The pool that lives as long as the test session."""

    def __init__(self) -> None:
        super().__init__(WORLD_SIZE)


def _serve(pipe: Connection, rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(rank, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
