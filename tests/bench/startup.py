"""What a caller waits for: whole processes that unlock a volume, or get one blob.

Key derivations are as short as they get; real ones are in `tests.bench.kdfs`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import blobstore
import luks
from tests.bench.measuring import Cell, measure, process
from tests.bench.peers import program, version
from tests.bench.report import Report
from tests.bench.setting import BLOBSTORE, PASSPHRASE

if TYPE_CHECKING:
    from tests.bench.setting import Setting

_ROUNDS = {"full": 31, "quick": 11, "tiny": 1}
#: Unlocks a volume: image and key file follow.
UNLOCK: list[str | Path] = [
    sys.executable,
    "-c",
    "import luks, sys\nluks.open(sys.argv[1], luks.Secret.from_file(sys.argv[2])).close()",
]
_KDFS: dict[str, luks.KdfCost] = {
    "PBKDF2": luks.Pbkdf2("sha256", 1000),
    "Argon2id": luks.Argon2("argon2id", time=4, memory_kib=32, lanes=1),
}
_BARE = "`python -c pass`"
_IMPORTS = "`python -c 'import cryptography.hazmat.primitives.ciphers, click'`"
_CRYPTSETUP = "cryptsetup"


def cryptsetup() -> str:
    """Return the path of cryptsetup."""
    return program("cryptsetup", "cryptsetup-bin")


def unlock_with_cryptsetup(image: Path, key: Path) -> list[str | Path]:
    """Return the command that does what `UNLOCK` does."""
    return [cryptsetup(), "open", "--test-passphrase", "--key-file", key, image]


def run(setting: Setting) -> Report:
    """Measure unlocking, and the start of commands."""
    report = Report("startup")
    with report.optional(_CRYPTSETUP):
        report.versions[_CRYPTSETUP] = version(cryptsetup())
    rounds = _ROUNDS[setting.scale]
    with TemporaryDirectory(prefix="startup-", dir=setting.memory) as name:
        directory = Path(name)
        key = directory / "key"
        key.write_bytes(PASSPHRASE)
        for kdf, cost in _KDFS.items():
            image = directory / kdf
            luks.format(image, PASSPHRASE, size=1 << 20, kdf=cost).close()
            _measure_unlocking(report, f"unlock, whole process, least {kdf}", image, key, rounds)
        _measure_commands(report, directory / "store", key, rounds)
    return report


def _measure_unlocking(report: Report, what: str, image: Path, key: Path, rounds: int) -> None:
    cells = [Cell("luks", process([*UNLOCK, image, key]))]
    with report.optional(_CRYPTSETUP):
        cells.append(Cell(_CRYPTSETUP, process(unlock_with_cryptsetup(image, key))))
    runs = measure(cells, rounds)
    report.keep(what, runs)
    report.compare_time(f"{what}: time", runs, "luks", _CRYPTSETUP, 6)


def _measure_commands(report: Report, image: Path, key: Path, rounds: int) -> None:
    size = 64 << 10
    with blobstore.create(image, {"state": size}, PASSPHRASE, kdf=_KDFS["PBKDF2"]) as store:
        store.put("state", bytes(size))
    python: list[str | Path] = [sys.executable, "-c"]
    get = [*BLOBSTORE, "get", image, "state", "--key-file", key]
    cells = [
        Cell("blobstore get", process(get)),
        Cell("blobstore --version", process([*BLOBSTORE, "--version"])),
        Cell(_IMPORTS, process([*python, "import cryptography.hazmat.primitives.ciphers, click"])),
        Cell(_BARE, process([*python, "pass"])),
    ]
    runs = measure(cells, rounds)
    report.keep("start of commands", runs)
    time = "whole process: time"
    report.compare_time(f"blobstore get, 64 KiB, {time}", runs, "blobstore get", _IMPORTS, 2)
    report.compare_time(f"blobstore --version, {time}", runs, "blobstore --version", _BARE)
