"""Durable puts of small blobs, next to files, databases and the disk's own limit.

Each store has a process of its own, and they take turns with bursts of puts. The
stores, and what durable means of each, are in `tests.bench.durable_stores`.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.bench.durable_stores import STORES
from tests.bench.measuring import ROOT, Cell, measure, quotient, quotient_of_sums
from tests.bench.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.measuring import Figures
    from tests.bench.setting import Setting

_OURS = "blobstore"
_NAMES = {
    "preallocated": "write and flush in preallocated space",
    "files": "write, flush, rename files",
    "sqlite": "SQLite, WAL, FULL",
    "sqlcipher": "SQLCipher, WAL, FULL",
    "lmdb": "LMDB",
}
_PACKAGES = {"sqlcipher": "sqlcipher3-binary", "lmdb": "lmdb"}
#: At most 9: `tests.bench.store_plugin` registers sections for so many, and the warm-up.
_ROUNDS = {"full": 9, "quick": 3, "tiny": 1}
_KIB, _MIB = 1 << 10, 1 << 20
#: Sizes of blobs, and puts in a burst.
_BURSTS = {4 * _KIB: 20, 64 * _KIB: 20, _MIB: 10}


class _Asked(NamedTuple):
    """The least ratio of speeds, of medians or of means."""

    size: int
    figure: str
    peer: str
    least: float | None


_ASKED = (
    _Asked(4 * _KIB, "median", "preallocated", None),
    _Asked(64 * _KIB, "median", "preallocated", 0.5),
    _Asked(_MIB, "median", "preallocated", None),
    _Asked(4 * _KIB, "mean", "sqlite", 1.5),
    _Asked(64 * _KIB, "mean", "sqlite", 1.25),
    _Asked(_MIB, "mean", "sqlite", 1.3),
    _Asked(64 * _KIB, "median", "files", 2.0),
    _Asked(64 * _KIB, "median", "sqlcipher", 1.8),
    _Asked(64 * _KIB, "median", "lmdb", None),
)


def run(setting: Setting) -> Report:
    """Measure puts of each size."""
    report = Report("puts", versions={"SQLite": sqlite3.sqlite_version})
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="puts-", dir=setting.disk)))
        workers = {}
        for kind in STORES:
            with report.optional(_NAMES.get(kind, kind)):
                python: str | Path = sys.executable
                if kind in _PACKAGES:
                    python = setting.peers.python(_PACKAGES[kind])
                    report.versions[_PACKAGES[kind]] = setting.peers.version(_PACKAGES[kind])
                workers[kind] = stack.enter_context(_Worker(kind, python, directory / kind))
        for size, burst in _BURSTS.items():
            cells = [Cell(kind, worker.bursts(size, burst)) for kind, worker in workers.items()]
            runs = measure(cells, _ROUNDS[setting.scale])
            report.keep(f"durable put, {_text(size)}", runs)
            for asked in _ASKED:
                if asked.size != size:
                    continue
                compare = quotient if asked.figure == "median" else quotient_of_sums
                peer = asked.peer
                report.compare(
                    f"durable put, {_text(size)}, {asked.figure}",
                    _NAMES[peer],
                    compare(runs, peer, _OURS, asked.figure) if peer in runs else None,
                    least=asked.least,
                )
    return report


def _text(size: int) -> str:
    return f"{size // _MIB} MiB" if size >= _MIB else f"{size // _KIB} KiB"


class _Worker:
    """The process of one store."""

    def __init__(self, kind: str, python: str | Path, directory: Path) -> None:
        directory.mkdir()
        self._kind = kind
        self._process = subprocess.Popen(
            [python, "-m", "tests.bench.durable_stores", kind, directory],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._process as process:
            process.communicate()

    def bursts(self, size: int, count: int) -> Callable[[], Figures]:
        """Return a run of ``count`` puts, with new names in each."""
        number = 0

        def run() -> Figures:
            nonlocal number
            names = [f"k{number:04d}-{size}-{put}" for put in range(count)]
            number += 1
            seconds = self._ask(names, size)
            return {"median": statistics.median(seconds), "mean": statistics.mean(seconds)}

        return run

    def _ask(self, names: list[str], size: int) -> list[float]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps([names, size]), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._kind} failed")
        seconds: list[float] = json.loads(line)
        return seconds
