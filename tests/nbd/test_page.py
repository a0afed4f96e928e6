"""docs/nbd.md, run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import blobstore
from tests.support.cli import QUICK, succeeds
from tests.support.foreign import program
from tests.support.owners import OwnerProcess

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "nbd.md").read_text()
SIZE = 64 << 10


def commands() -> list[list[str]]:
    """Return the words of each command; one that goes on does so on lines that are indented."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        found += [shlex.split(line) for line in re.split(r"\n(?! )", block.strip())]
    return found


@pytest.mark.interop
def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", str(tmp_path / "run"))
    for name in ("tls", "pki"):
        (tmp_path / name).mkdir()
    (tmp_path / "key").write_bytes(b"key")
    (tmp_path / "vars.fd").write_bytes(b"v" * SIZE)
    image = tmp_path / "machine.img"
    succeeds("create", image, "--key-file", tmp_path / "key", *QUICK)
    with blobstore.open(image, b"key") as store:
        store.register("uefi-variables", SIZE, "window")
    owner: OwnerProcess | None = None
    ran = set()
    try:
        for words in commands():
            ran.add(words[0])
            if words[0] == "blobstore":
                if owner is not None:
                    assert owner.end()[0] == 0
                assert words[1:3] == ["serve", "machine.img"]
                owner = OwnerProcess(image, tmp_path / "run", *words[3:])
                continue
            name = words[0] if words[0] == "cp" else program(words[0])
            done = subprocess.run([name, *words[1:]], capture_output=True, timeout=60, check=False)
            assert done.returncode == 0, (words, done)
    finally:
        if owner is not None:
            owner.end()
    assert ran == {"blobstore", "nbdinfo", "nbdcopy", "openssl", "cp", "qemu-img"}
    assert (tmp_path / "copy.fd").read_bytes() == b"v" * SIZE


def test_all_options_are_explained() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "blobstore", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    options = set(re.findall(r"^ +(--nbd[a-z-]*|--auto)", said, re.MULTILINE))
    assert len(options) == 9
    assert {name for name in options if name not in PAGE} == {"--nbd-tls-any-client"}
