"""Stores on devices of other machines: NBD and Ceph RBD, beside a bare write and QEMU's drivers.

The same client writes and flushes as many bytes as a put of 64 KiB writes, so that the ratio says
what a put adds to that. QEMU's drivers do the same through `qemu-img bench`. They copy whole
images through `qemu-img convert`, whose start is within the time that is measured; ours is not.
The servers run on this machine, on the disk that is measured.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import blobstore
import luks
from blobstore.image.remote.places import open_remote
from formats.container.model import record_length
from tests.bench.measuring import Cell, measure, process
from tests.bench.peers import MissingPeerError, program, version
from tests.bench.report import Report
from tests.bench.setting import PASSPHRASE
from tests.ceph.cluster import PROGRAMS, running_cluster
from tests.nbd.servers import nbdkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.image.remote.nbd_disk import NbdDisk
    from blobstore.image.remote.rbd_disk import RbdDisk
    from formats.devices.device import BlockDevice
    from tests.bench.measuring import Figures
    from tests.bench.setting import Setting

_KIB, _MIB = 1 << 10, 1 << 20
_BLOB = 64 * _KIB
#: Bytes that a put of that size writes, with the record's head.
_RECORD = record_length(_BLOB, 4096)
#: Bytes at a time of whole images.
_PIECE = 4 * _MIB
_CONNECTIONS = 4
_BARE, _FORCED = "bare write and flush", "bare write with FUA"
_CLEAR, _ENCRYPTED = "durable put, in the clear", "durable put, LUKS2"
_OURS, _SEVERAL = "blobstore", f"blobstore, {_CONNECTIONS} threads"
_KDF = luks.Pbkdf2("sha256", 1000)


@dataclass(frozen=True)
class _Scale:
    """MiB of images, puts in a burst, and rounds."""

    mib: int
    puts: int
    rounds: int


_SCALES = {"full": _Scale(256, 100, 9), "quick": _Scale(64, 50, 3), "tiny": _Scale(8, 3, 1)}


@dataclass(frozen=True)
class _Served:
    """Four devices of one kind, by names that QEMU knows as well."""

    kind: str
    protocol: str
    places: list[str]

    @property
    def bench(self) -> str:
        """Name of QEMU's driver where it writes and flushes."""
        return f"qemu-img bench, {self.protocol}"

    @property
    def convert(self) -> str:
        """Name of QEMU's driver where it copies."""
        return f"qemu-img convert, {self.protocol}"


def run(setting: Setting) -> Report:
    """Measure puts, and whole images, over NBD and RBD."""
    scale = _SCALES[setting.scale]
    report = Report("remote")
    with TemporaryDirectory(prefix="remote-", dir=setting.disk) as name:
        for serve in (_nbd, _rbd):
            with report.optional(serve.__name__.removeprefix("_")):
                qemu_img = program("qemu-img", "qemu-utils")
                report.versions["qemu-img"] = version(qemu_img)
                with serve(Path(name), scale.mib * _MIB) as served:
                    _puts(served, scale, report, qemu_img)
                    _bulk(served, scale, report, qemu_img, setting.memory)
    return report


@contextmanager
def _nbd(directory: Path, size: int) -> Iterator[_Served]:
    server = program("nbdkit", "nbdkit")
    with ExitStack() as stack:
        sockets = [directory / f"socket{number}" for number in range(4)]
        for number, socket in enumerate(sockets):
            image = directory / f"image{number}"
            image.write_bytes(bytes(size))
            stack.enter_context(nbdkit(socket, "file", str(image)))
        places = [f"nbd+unix:///?socket={socket}" for socket in sockets]
        yield _Served(f"NBD, nbdkit {version(server)} with a file", "nbd", places)


@contextmanager
def _rbd(directory: Path, size: int) -> Iterator[_Served]:
    for name in PROGRAMS:
        program(name, "ceph-osd, ceph-mon and ceph-common")
    with running_cluster(directory / "ceph", durable=True) as cluster:
        for number in range(4):
            cluster.create(f"image{number}", size)
        places = [f"rbd:rbd/image{number}:conf={cluster.conf}" for number in range(4)]
        yield _Served("RBD, one OSD on a file", "rbd", places)


def _puts(served: _Served, scale: _Scale, report: Report, qemu_img: str) -> None:
    with ExitStack() as stack:
        bare, clear, encrypted = (_open(stack, place) for place in served.places[:3])
        _fill(bare)
        _fill(clear)
        _fill(encrypted)
        store = stack.enter_context(_store(clear))
        volume = stack.enter_context(
            luks.format(encrypted, PASSPHRASE, kdf=_KDF, sector_size=4096, overwrite=True)
        )
        inside = stack.enter_context(_store(volume, encrypted=True))
        cells = [
            Cell(_BARE, _times(scale.puts, lambda n: _bare(bare, n))),
            Cell(
                _FORCED, _times(scale.puts, lambda n: bare.write_durably(_at(bare, n), _record(n)))
            ),
            Cell(_CLEAR, _times(scale.puts, lambda n: store.put("blob", _blob(n)))),
            Cell(_ENCRYPTED, _times(scale.puts, lambda n: inside.put("blob", _blob(n)))),
        ]
        with report.optional(served.bench):
            _require_driver(qemu_img, served.places[3])
            cells.append(Cell(served.bench, _bench(qemu_img, served.places[3], scale.puts)))
        runs = measure(cells, scale.rounds)
    what = f"{served.kind}: durable put of 64 KiB"
    report.keep(what, runs)
    report.compare_time(f"{what}, in the clear: time", runs, _CLEAR, _BARE, most=1.3)
    report.compare_time(f"{what}, LUKS2: time", runs, _ENCRYPTED, _BARE, most=1.3)
    report.compare_time(f"{what}, in the clear: time", runs, _CLEAR, _FORCED)
    report.compare_time(
        f"{served.kind}: write and flush of 64 KiB: time", runs, _BARE, served.bench
    )


def _bulk(served: _Served, scale: _Scale, report: Report, qemu_img: str, memory: Path) -> None:
    size, place = scale.mib * _MIB, served.places[3]
    with TemporaryDirectory(prefix="remote-", dir=memory) as name:
        source, target = Path(name, "source"), Path(name, "target")
        source.write_bytes(os.urandom(_MIB) * scale.mib)
        raw = ("-f", "raw", "-O", "raw")
        writing = [
            Cell(_OURS, lambda: _write_all(place, source)),
        ]
        with report.optional(served.convert):
            _require_driver(qemu_img, place)
            convert: list[str | Path] = [qemu_img, "convert", "-n", *raw, source, place]
            writing.append(Cell(served.convert, process(convert)))
        runs = measure(writing, scale.rounds)
        what = f"{served.kind}: write {scale.mib} MiB and flush"
        report.keep(what, runs)
        report.compare_speed(what, runs, _OURS, served.convert)
        reading = [
            Cell(_OURS, lambda: _read_all(place, target, size, 1)),
            Cell(_SEVERAL, lambda: _read_all(place, target, size, _CONNECTIONS)),
        ]
        if served.convert not in report.left_out:
            convert = [qemu_img, "convert", *raw, place, target]
            reading.append(Cell(served.convert, process(convert)))
        runs = measure(reading, scale.rounds)
        if target.read_bytes() != source.read_bytes():
            raise RuntimeError("what was read is not what was written")
        what = f"{served.kind}: read {scale.mib} MiB"
        report.keep(what, runs)
        report.compare_speed(what, runs, _OURS, served.convert)
        report.compare_speed(f"{what}, {_CONNECTIONS} threads", runs, _SEVERAL, _OURS)


def _write_all(place: str, source: Path) -> Figures:
    with open_remote(place, read_only=False) as disk, source.open("rb") as file:
        began = time.perf_counter()
        offset = 0
        while data := file.read(_PIECE):
            disk.write(offset, data)
            offset += len(data)
        disk.flush()
        return {"seconds": time.perf_counter() - began}


def _read_all(place: str, target: Path, size: int, threads: int) -> Figures:
    with open_remote(place) as disk, target.open("wb") as file:
        began = time.perf_counter()

        def read(first: int) -> None:
            for offset in range(first, size, threads * _PIECE):
                os.pwrite(file.fileno(), disk.read(offset, min(_PIECE, size - offset)), offset)

        working = [
            threading.Thread(target=read, args=(number * _PIECE,)) for number in range(threads)
        ]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
        return {"seconds": time.perf_counter() - began}


def _open(stack: ExitStack, place: str) -> NbdDisk | RbdDisk:
    disk = open_remote(place, read_only=False)
    stack.callback(disk.close)
    return disk


def _store(device: BlockDevice, *, encrypted: bool = False) -> blobstore.Store:
    blobstore.initialise(device, [blobstore.SectionSpec("blob", _BLOB)], encrypted=encrypted)
    return blobstore.Store.on_device(device, encrypted=encrypted)


def _fill(disk: NbdDisk | RbdDisk) -> None:
    """Have the server find all space before anything is measured."""
    for offset in range(0, disk.size, _PIECE):
        disk.write(offset, b"\1" * min(_PIECE, disk.size - offset))
    disk.flush()


def _blob(number: int) -> bytes:
    return number.to_bytes(8, "big") * (_BLOB // 8)


def _record(number: int) -> bytes:
    return number.to_bytes(8, "big") * (_RECORD // 8)


def _at(disk: NbdDisk | RbdDisk, number: int) -> int:
    """Return one of two places, as the copies of a section are."""
    return disk.size // 2 + number % 2 * _RECORD


def _bare(disk: NbdDisk | RbdDisk, number: int) -> None:
    disk.write(_at(disk, number), _record(number))
    disk.flush()


def _times(count: int, action: Callable[[int], object]) -> Callable[[], Figures]:
    """Return a run of so many actions: seconds of the median one."""

    def run() -> Figures:
        taken = []
        for number in range(count):
            began = time.perf_counter()
            action(number)
            taken.append(time.perf_counter() - began)
        return {"seconds": statistics.median(taken)}

    return run


def _require_driver(qemu_img: str, place: str) -> None:
    """Refuse to measure a driver that QEMU lacks: some are packages of their own."""
    done = subprocess.run([qemu_img, "info", place], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingPeerError(f"{done.stderr.strip()} (Debian package qemu-block-extra)")


def _bench(qemu_img: str, place: str, count: int) -> Callable[[], Figures]:
    """Return a run that writes as often, and flushes each time: seconds of one on average."""
    options = ("-c", str(count), "-d", "1", "-s", str(_RECORD), "-w", "--flush-interval=1")
    command = [qemu_img, "bench", "-f", "raw", "-t", "writeback", *options, place]

    def run() -> Figures:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"completed in ([0-9.]+) seconds", said)
        assert found, said
        return {"seconds": float(found[1]) / count}

    return run
