"""Unlocking with real key derivations, next to cryptsetup: the CPU time of whole processes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import luks
from tests.bench.measuring import Cell, measure, process
from tests.bench.peers import version
from tests.bench.report import Report
from tests.bench.setting import PASSPHRASE
from tests.bench.startup import UNLOCK, cryptsetup, unlock_with_cryptsetup

if TYPE_CHECKING:
    from luks import KdfCost
    from tests.bench.setting import Setting

_CRYPTSETUP = "cryptsetup"


class _Scale(NamedTuple):
    """Iterations of PBKDF2, KiB of Argon2id, and rounds."""

    iterations: int
    memory_kib: int
    rounds: int


_SCALES = {
    "full": _Scale(1_000_000, 1 << 20, 7),
    "quick": _Scale(1_000_000, 1 << 20, 3),
    "tiny": _Scale(1000, 1 << 10, 1),
}


def run(setting: Setting) -> Report:
    """Measure keyslots of different derivations."""
    report = Report("kdfs")
    with report.optional(_CRYPTSETUP):
        report.versions[_CRYPTSETUP] = version(cryptsetup())
    scale = _SCALES[setting.scale]
    iterations = f"{scale.iterations:,} iterations"
    volumes: dict[str, tuple[KdfCost, float]] = {
        f"PBKDF2-SHA-256, {iterations}": (luks.Pbkdf2("sha256", scale.iterations), 0.9),
        f"PBKDF2-SHA-512, {iterations}": (luks.Pbkdf2("sha512", scale.iterations), 0.9),
        f"Argon2id, {scale.memory_kib >> 10} MiB, 4 passes, 4 lanes": (
            luks.Argon2("argon2id", time=4, memory_kib=scale.memory_kib, lanes=4),
            1.1,
        ),
    }
    with TemporaryDirectory(prefix="kdfs-", dir=setting.memory) as name:
        key, image = Path(name, "key"), Path(name, "image")
        key.write_bytes(PASSPHRASE)
        for volume, (cost, most) in volumes.items():
            luks.format(image, PASSPHRASE, size=1 << 20, kdf=cost).close()
            cells = [Cell("luks", process([*UNLOCK, image, key]))]
            with report.optional(_CRYPTSETUP):
                cells.append(Cell(_CRYPTSETUP, process(unlock_with_cryptsetup(image, key))))
            runs = measure(cells, scale.rounds)
            report.keep(f"unlock, {volume}", runs)
            what = f"unlock, {volume}: CPU time"
            report.compare_time(what, runs, "luks", _CRYPTSETUP, most, "cpu")
            image.unlink()
    return report
