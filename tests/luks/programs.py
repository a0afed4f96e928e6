"""cryptsetup, qemu-img and qemu-io on images in files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.support.foreign import ForeignProgramError, run

if TYPE_CHECKING:
    from pathlib import Path

#: What makes cryptsetup's key derivations cheap, by their name.
CHEAP = {
    "pbkdf2": ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"),
    "argon2id": (
        "--pbkdf=argon2id",
        "--pbkdf-force-iterations=4",
        "--pbkdf-memory=32",
        "--pbkdf-parallel=1",
    ),
    "argon2i": (
        "--pbkdf=argon2i",
        "--pbkdf-force-iterations=4",
        "--pbkdf-memory=64",
        "--pbkdf-parallel=2",
    ),
}


def key_file(directory: Path, secret: bytes) -> Path:
    path = directory / f"key-{hashlib.sha256(secret).hexdigest()[:16]}"
    path.write_bytes(secret)
    return path


def cryptsetup(*arguments: object) -> str:
    return run("cryptsetup", "--batch-mode", *arguments).decode(errors="replace")


def accepts(image: Path, key: Path, *options: object) -> bool:
    """Whether cryptsetup opens a keyslot with this key file."""
    try:
        cryptsetup("open", "--test-passphrase", "--key-file", key, *options, image)
    except ForeignProgramError as error:
        if "No key available with this passphrase" not in str(error):
            raise
        return False
    return True


def luks1_options(image: Path, header: Path | None = None) -> str:
    """QEMU's description of a LUKS1 image, for the secret named s0."""
    options = f"driver=luks,key-secret=s0,file.driver=file,file.filename={image}"
    if header is not None:
        options += f",header.driver=file,header.filename={header}"
    return options


def qemu_read(image: Path, key: Path, to: Path, *, header: Path | None = None) -> bytes:
    """Return the payload as QEMU reads it."""
    secret = f"secret,id=s0,file={key}"
    source = luks1_options(image, header)
    run("qemu-img", "convert", "--object", secret, "--image-opts", source, "-O", "raw", to)
    return to.read_bytes()


def qemu_write(image: Path, key: Path, data: Path, *, header: Path | None = None) -> None:
    """Write the content of a file over the whole payload, by QEMU."""
    secret = f"secret,id=s0,file={key}"
    target = luks1_options(image, header)
    run(
        *("qemu-img", "convert", "-n", "-f", "raw", "--object", secret),
        *("--target-image-opts", data, target),
    )


def qemu_io(image: Path, key: Path, *commands: str, header: Path | None = None) -> str:
    secret = f"secret,id=s0,file={key}"
    script = [part for command in commands for part in ("-c", command)]
    options = luks1_options(image, header)
    return run("qemu-io", "--object", secret, "--image-opts", options, *script).decode()
