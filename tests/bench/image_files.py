"""The images that conversions are measured with."""

from __future__ import annotations

import filecmp
import os
import shutil
from typing import TYPE_CHECKING

from tests.bench.measuring import process
from tests.bench.peers import program
from tests.bench.setting import BLOBSTORE, PASSPHRASE

if TYPE_CHECKING:
    from pathlib import Path

_MIB = 1 << 20
_PAYLOAD_AT = {"luks1": 2 * _MIB, "luks2": 16 * _MIB}
#: Unlocking is not what is measured here.
KDF = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


class Images:
    """A raw image, and volumes with the same content or room for it."""

    def __init__(self, directory: Path, size: int) -> None:
        self.raw, self.out = directory / "raw", directory / "out"
        self.luks1, self.luks2 = directory / "luks1", directory / "luks2"
        self.copy, self.key = directory / "copy", directory / "key"
        self.key.write_bytes(PASSPHRASE)
        with self.raw.open("wb") as file:
            for _ in range(size // _MIB):
                file.write(os.urandom(_MIB))
        shutil.copy(self.raw, self.copy)
        self._size = size
        _format(self.luks1, size, self.key)
        _format(self.luks2, size, self.key)
        process(self.converting_in(self.luks1))()

    def converting_out(self, image: Path, workers: int = 1) -> list[str | Path]:
        """Return the command that reads an image to ``out``."""
        options: list[str | Path] = ["--to", "raw", "--key-file", self.key]
        return [*BLOBSTORE, "convert", image, self.out, *options, "--jobs", str(workers)]

    def converting_in(self, image: Path, workers: int = 1) -> list[str | Path]:
        """Return the command that writes ``raw`` to an image."""
        options: list[str | Path] = ["--no-create", "--new-key-file", self.key]
        return [*BLOBSTORE, "convert", self.raw, image, *options, "--jobs", str(workers)]

    def remove_out(self) -> None:
        self.out.unlink(missing_ok=True)

    def check_out(self) -> None:
        """Raise if ``out`` is not what ``raw`` is."""
        if not filecmp.cmp(self.raw, self.out, shallow=False):
            raise RuntimeError("the images differ")

    def wipe(self, image: Path) -> None:
        """Overwrite a payload, so that what is there afterwards was written."""
        with image.open("r+b") as file:
            file.seek(_PAYLOAD_AT[image.name])
            for _ in range(self._size // _MIB):
                file.write(bytes(_MIB))

    def check_payload(self, image: Path) -> None:
        """Raise if the payload is not what ``raw`` is."""
        self.remove_out()
        process(self.converting_out(image))()
        self.check_out()


def _format(path: Path, size: int, key: Path) -> None:
    """Make a volume for ``size`` bytes, of the version that the file is named after."""
    start = _PAYLOAD_AT[path.name]
    with path.open("wb") as file:
        file.truncate(start + size)
    command = [program("cryptsetup", "cryptsetup-bin"), "luksFormat", "--batch-mode"]
    command += ["--type", path.name, "--cipher", "aes-xts-plain64", "--key-size", "512", *KDF]
    if path.name == "luks1":
        command += ["--align-payload", str(start // 512)]
    else:
        command += ["--offset", str(start // 512), "--sector-size", "4096"]
    process([*command, path, key])()
