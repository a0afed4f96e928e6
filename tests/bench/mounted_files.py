"""Files of a mounted image, beside the same files where the image lies: on disk, and in memory.

A program saves a file in three ways: it writes it and calls fsync; it writes another one, calls
fsync and renames it, as is proper; and it does that without fsync, as swtpm does. On the disk the
last is not durable, and the second not before its directory is flushed, which is left out on both
sides. The image is LUKS2, so what the mount does includes encryption and authentication. In memory
nothing waits for a disk: that is the time of the programs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import blobstore
import luks
from tests.bench.measuring import ROOT, Cell, measure, quotient
from tests.bench.report import Report
from tests.bench.setting import BLOBSTORE, PASSPHRASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.measuring import Figures
    from tests.bench.setting import Setting

_ROUNDS = {"full": 15, "quick": 5, "tiny": 1}
_KIB = 1 << 10
#: Sizes of files, and how often one is saved in a round.
_BURSTS: dict[int, int] = {4 * _KIB: 40, 64 * _KIB: 40}
_DISK, _MEMORY = "ext4", "tmpfs"
_MOUNTED = "image on "


def _write(path: str, content: bytes, *, fsync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, content)
    if fsync:
        os.fsync(descriptor)
    os.close(descriptor)


def _save(path: str, content: bytes) -> None:
    _write(path, content, fsync=True)


def _replace(path: str, content: bytes) -> None:
    _write(f"{path}.tmp", content, fsync=True)
    Path(f"{path}.tmp").rename(path)


def _replace_carelessly(path: str, content: bytes) -> None:
    _write(f"{path}.tmp", content, fsync=False)
    Path(f"{path}.tmp").rename(path)


_WAYS: dict[str, Callable[[str, bytes], None]] = {
    "write, fsync": _save,
    "temporary, fsync, rename": _replace,
    "temporary, rename": _replace_carelessly,
}


def run(setting: Setting) -> Report:
    """Measure each way to save a file, of each size."""
    report = Report("mount")
    with ExitStack() as stack:
        directories: dict[str, Path] = {}
        for name, place in ((_DISK, setting.disk), (_MEMORY, setting.memory)):
            made = Path(stack.enter_context(TemporaryDirectory(prefix="mount-", dir=place)))
            directories[name] = made
            directories[_MOUNTED + name] = stack.enter_context(_mounted(made / "image"))
        for way, save in _WAYS.items():
            for size, count in _BURSTS.items():
                contents = [os.urandom(size) for _ in range(count)]
                cells = [
                    _cell(name, save, directory / str(size), contents)
                    for name, directory in directories.items()
                ]
                runs = measure(cells, _ROUNDS[setting.scale])
                what = f"{way}, {size // _KIB} KiB"
                report.keep(what, runs)
                for other in (_DISK, _MEMORY):
                    measured = quotient(runs, _MOUNTED + other, other, "median")
                    report.compare(f"{what}: time", other, measured, most=None)
    return report


@contextmanager
def _mounted(image: Path) -> Iterator[Path]:
    """Mount an image in another process."""
    blobstore.create(
        image, {}, PASSPHRASE, sector_size=4096, kdf=luks.Pbkdf2("sha256", 1000)
    ).close()
    key, directory = image.with_suffix(".key"), image.with_suffix(".mnt")
    key.write_bytes(PASSPHRASE)
    directory.mkdir()
    command = [*BLOBSTORE, "--quiet", "mount", image, directory, "--key-file", key]
    with (
        tempfile.TemporaryDirectory() as runtime,  # whose path is short, as a socket needs it
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "BLOBSTORE_RUNTIME_DIR": runtime}
        ) as process,
    ):
        try:
            while not os.path.ismount(directory):
                if process.poll() is not None:
                    raise RuntimeError("the image cannot be mounted")
                time.sleep(0.02)
            yield directory
        finally:
            process.terminate()


def _cell(name: str, save: Callable[[str, bytes], None], path: Path, contents: list[bytes]) -> Cell:
    def run() -> Figures:
        seconds = []
        for content in contents:
            started = time.perf_counter()
            save(str(path), content)
            seconds.append(time.perf_counter() - started)
        return {"median": statistics.median(seconds), "mean": statistics.mean(seconds)}

    def check() -> None:
        if path.read_bytes() != contents[-1]:
            raise RuntimeError("a file came back as something else")

    return Cell(name, run, check=check)
