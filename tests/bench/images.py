"""Whole images: LUKS to raw and raw to LUKS, as whole processes, unlocking included.

The LUKS1 volume is one that all of them can read: AES-256-XTS, sectors of 512 bytes,
a key derivation that takes no time. Reading makes a new file, writing overwrites the
payload of a volume that exists. dd copies as many bytes and encrypts nothing.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.image_files import KDF, Images
from tests.bench.measuring import Cell, measure, process
from tests.bench.peers import program, version
from tests.bench.report import Report
from tests.bench.setting import BLOBSTORE, PASSPHRASE

if TYPE_CHECKING:
    from tests.bench.measuring import Runs
    from tests.bench.setting import Setting


class _Scale(NamedTuple):
    """MiB of the images, rounds, and MiB of what is converted to see the memory that takes."""

    mib: int
    rounds: int
    large_mib: int


_SCALES = {
    "full": _Scale(512, 7, 4096),
    "quick": _Scale(128, 3, 1024),
    "tiny": _Scale(1, 1, 2),
}
_OURS = {1: "blobstore, one worker", 2: "blobstore, two workers"}
_OURS_LUKS2 = {1: "blobstore, LUKS2, one worker", 2: "blobstore, LUKS2, two workers"}
_NOTHING = "-"
#: Bytes that others may need meanwhile.
_SPARE = 256 << 20
_QEMU, _NBD, _LUKSDE, _DD = "qemu-img convert", "nbdkit luks + nbdcopy", "libluksde", "dd"
#: How libluksde is used from Python: reads of 1 MiB.
_LUKSDE_READ = """
import sys, pyluksde
image, key, output = sys.argv[1:]
volume = pyluksde.volume()
volume.set_password(open(key).read())
volume.open(image)
with open(output, "wb") as file:
    while data := volume.read_buffer(1 << 20):
        file.write(data)
"""


def run(setting: Setting) -> Report:
    """Measure reading, writing and the memory that it takes."""
    scale = _SCALES[setting.scale]
    report = Report("images")
    with TemporaryDirectory(prefix="images-", dir=setting.memory) as name:
        images = Images(Path(name), scale.mib << 20)
        size = f"{scale.mib} MiB"
        runs = measure(_reading(images, report, setting), scale.rounds)
        report.keep(f"read {size} LUKS1 to raw", runs)
        _compare_reading(report, runs, f"read {size} LUKS1 to raw")
        runs = measure(_writing(images, report), scale.rounds)
        report.keep(f"write {size} raw to LUKS", runs)
        _compare_writing(report, runs, f"write {size} raw to LUKS")
    with TemporaryDirectory(prefix="images-", dir=setting.memory) as name:
        _measure_memory(Path(name), scale.large_mib << 20, report)
    return report


def _qemu(images: Images, report: Report) -> tuple[list[str], str]:
    """Return the start of a command of qemu-img, and its name for the LUKS1 volume."""
    qemu_img = program("qemu-img", "qemu-utils")
    report.versions["qemu-img"] = version(qemu_img)
    command = [qemu_img, "convert", "--object", f"secret,id=key,file={images.key}"]
    return command, f"driver=luks,key-secret=key,file.driver=file,file.filename={images.luks1}"


def _nbd(images: Images, report: Report, copy: str) -> list[str]:
    """Return a command that serves the LUKS1 volume to nbdcopy."""
    nbdkit, nbdcopy = program("nbdkit", "nbdkit"), program("nbdcopy", "libnbd-bin")
    report.versions |= {"nbdkit": version(nbdkit), "nbdcopy": version(nbdcopy)}
    server = [nbdkit, "--unix", "-", "--filter=luks", "file", str(images.luks1)]
    return [*server, f"passphrase=+{images.key}", "--run", f"{nbdcopy} {copy}"]


def _reading(images: Images, report: Report, setting: Setting) -> list[Cell]:
    cells = []

    def add(name: str, command: list[str | Path]) -> None:
        cells.append(
            Cell(name, process(command), prepare=images.remove_out, check=images.check_out)
        )

    for workers, name in _OURS.items():
        add(name, images.converting_out(images.luks1, workers))
    with report.optional(_QEMU):
        command, volume = _qemu(images, report)
        add(_QEMU, [*command, "--image-opts", volume, "-O", "raw", images.out])
    with report.optional(_NBD):
        add(_NBD, [*_nbd(images, report, f'"$uri" {images.out}')])
    with report.optional(_LUKSDE):
        python = setting.peers.python("libluksde-python")
        report.versions[_LUKSDE] = setting.peers.version("libluksde-python")
        add(_LUKSDE, [python, "-I", "-c", _LUKSDE_READ, images.luks1, images.key, images.out])
    add(_DD, ["dd", f"if={images.raw}", f"of={images.out}", "bs=4M"])
    return cells


def _writing(images: Images, report: Report) -> list[Cell]:
    cells = []

    def add(name: str, command: list[str | Path], image: Path) -> None:
        cells.append(
            Cell(
                name,
                process(command),
                spoil=partial(images.wipe, image),
                check=partial(images.check_payload, image),
            )
        )

    for image, names in ((images.luks1, _OURS), (images.luks2, _OURS_LUKS2)):
        for workers, name in names.items():
            add(name, images.converting_in(image, workers), image)
    with report.optional(_QEMU):
        command, volume = _qemu(images, report)
        options = ["-n", "-f", "raw", "--target-image-opts"]
        add(_QEMU, [*command, *options, images.raw, volume], images.luks1)
    with report.optional(_NBD):
        add(_NBD, [*_nbd(images, report, f'{images.raw} "$uri"')], images.luks1)
    overwrite = ["dd", f"if={images.raw}", f"of={images.copy}", "bs=4M", "conv=notrunc"]
    cells.append(Cell(_DD, process(overwrite)))
    return cells


def _compare_reading(report: Report, runs: Runs, what: str) -> None:
    one, two = _OURS.values()
    report.compare_speed(f"{what}, one worker", runs, one, _QEMU, 1.8)
    report.compare_speed(f"{what}, two workers", runs, two, _QEMU, 2.5)
    report.compare_speed(f"{what}, two workers", runs, two, _NBD, 1.4)
    report.compare_speed(f"{what}, two workers", runs, two, _LUKSDE, 6.0)
    report.compare_speed(f"{what}, two workers", runs, two, _DD)


def _compare_writing(report: Report, runs: Runs, what: str) -> None:
    for number, (one, two) in (("1", _OURS.values()), ("2", _OURS_LUKS2.values())):
        report.compare_speed(f"{what}{number}, one worker", runs, one, _QEMU, 2.3)
        report.compare_speed(f"{what}{number}, two workers", runs, two, _QEMU, 3.0)
        report.compare_speed(f"{what}{number}, two workers", runs, two, _NBD, 1.4)
        report.compare_speed(f"{what}{number}, two workers", runs, two, _DD)


def _measure_memory(directory: Path, size: int, report: Report) -> None:
    """Convert a file that is one hole, which is read as zeros, into a volume and back."""
    what = f"peak memory, converting {size >> 20} MiB"
    raw, luks, key = directory / "raw", directory / "luks2", directory / "key"
    key.write_bytes(PASSPHRASE)
    with raw.open("wb") as file:
        file.truncate(size)
    ways: dict[str, list[str | Path]] = {
        "raw to LUKS2": [raw, luks, "--to", "luks2", "--new-key-file", key, *KDF],
        "LUKS2 to raw": [luks, directory / "out", "--to", "raw", "--key-file", key],
    }
    for way, arguments in ways.items():
        if shutil.disk_usage(directory).free < size + _SPARE:
            report.left_out[f"{what}, {way}"] = f"{directory} has no room for it"
            report.compare(f"{what}, {way}", _NOTHING, None, most=150, unit="MiB")
            continue
        peak = _peak_memory(["convert", *arguments], directory / "peak") / (1 << 20)
        report.compare(f"{what}, {way}", _NOTHING, peak, most=150, unit="MiB")


def _peak_memory(arguments: list[str | Path], note: Path) -> int:
    """Return the bytes of memory that a command had at most.

    The process itself notes it at its end: what its parent would be told includes the
    parent's own.
    """
    python, option, start = BLOBSTORE
    status = "open('/proc/self/status').read()"
    noting = f"import atexit; atexit.register(lambda: open({str(note)!r}, 'w').write({status}))"
    process([python, option, f"{noting}\n{start}", *arguments])()
    peak = re.search(r"VmHWM:\s+(\d+) kB", note.read_text())
    assert peak
    return int(peak[1]) * 1024
