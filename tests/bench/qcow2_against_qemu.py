"""Whole images between raw and qcow2, ours and ``qemu-img convert`` in turns.

    python -m tests.bench.qcow2_against_qemu /dev/shm/work

Prints the median of each, and how many times as fast ours is. Only ratios are worth
comparing: both run on the same machine in the same minute. The directory should be
in memory, so that no disk is measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from formats.devices.file import FileDevice
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 512 << 20
ROUNDS = 5
_PIECE = 2 << 20


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    raw = directory / "source.raw"
    with raw.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
    ours, theirs, back = (directory / name for name in ("ours", "theirs", "back"))
    try:
        for cluster_size in (65536, 4096, 2 << 20):
            to_qcow2 = partial(_convert, "raw", "qcow2", raw, theirs, cluster_size)
            write = partial(_write, raw, ours, cluster_size)
            _compare(f"raw to qcow2, clusters of {cluster_size}", write, to_qcow2, (ours, theirs))
            to_qcow2()
            read = partial(_read, theirs, ours)
            to_raw = partial(_convert, "qcow2", "raw", theirs, back)
            _compare(f"qcow2 to raw, clusters of {cluster_size}", read, to_raw, (ours, back))
    finally:
        for path in (raw, ours, theirs, back):
            path.unlink(missing_ok=True)


def _compare(
    what: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    outputs: tuple[Path, Path],
) -> None:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for function, times in zip((ours, theirs), taken, strict=True):
            for path in outputs:
                path.unlink(missing_ok=True)
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    one, other = (statistics.median(times) for times in taken)
    print(f"{what}: ours {one:.3f} s, qemu-img {other:.3f} s: {other / one:.2f} times as fast")


def _convert(of: str, to: str, source: Path, target: Path, cluster_size: int = 0) -> None:
    option = ("-o", f"cluster_size={cluster_size}") if cluster_size else ()
    subprocess.run(["qemu-img", "convert", "-f", of, "-O", to, *option, source, target], check=True)


def _write(source: Path, target: Path, cluster_size: int) -> None:
    target.touch()
    with FileDevice(source) as raw, FileDevice(target, read_only=False) as image:
        create(image, SIZE, Qcow2Options(cluster_size=cluster_size))
        with open_image(image, read_only=False) as disk:
            piece = memoryview(bytearray(_PIECE))
            for at in range(0, SIZE, _PIECE):
                raw.read_into(at, piece)
                disk.write(at, piece)
            disk.flush()


def _read(source: Path, target: Path) -> None:
    target.touch()
    with FileDevice(source) as image, FileDevice(target, read_only=False) as raw:
        raw.resize(SIZE)
        with open_image(image) as disk:
            piece = memoryview(bytearray(_PIECE))
            for at in range(0, SIZE, _PIECE):
                disk.read_into(at, piece)
                raw.write(at, piece)
            raw.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
