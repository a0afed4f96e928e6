"""QEMU's NBD client while its owner is replaced, and while its image moves."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Self

import pytest

import blobstore
from tests.support.foreign import program
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


class QemuIo:
    """`qemu-io` with a section open, which is told one command after the other."""

    def __init__(self, socket: Path, export: str) -> None:
        image = (
            f"driver=nbd,server.type=unix,server.path={socket},export={export},reconnect-delay=60"
        )
        self.process = subprocess.Popen(
            [program("qemu-io"), "--image-opts", image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
        )
        self._until_prompt()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def say(self, command: str) -> str:
        """Have it do something; return what it says of that."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        return self._until_prompt()

    def _until_prompt(self) -> str:
        assert self.process.stdout is not None
        said = b""
        while not said.endswith(b"qemu-io> "):
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, said
            said += piece
        return said.decode()


@pytest.fixture
def windows(image: Path) -> Path:
    with blobstore.open(image) as store:
        store.register("w", 8192, "window")
    return image


def test_qemu_goes_on_with_the_next_owner_o136(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    options = ("--nbd", tmp_path / "n.sock")
    owner = OwnerProcess(windows, runtime, *options)
    with QemuIo(tmp_path / "n.sock", "w") as qemu:
        for number in range(4):
            assert "wrote 512/512" in qemu.say(f"write -P {number + 1} {512 * number} 512")
            successor = OwnerProcess(windows, runtime, *options, "--replace")
            assert owner.ended() == 0
            owner = successor
        # What it wrote and did not flush was committed each time.
        for number in range(4):
            said = qemu.say(f"read -P {number + 1} {512 * number} 512")
            assert "read 512/512" in said
            assert "failed" not in said
        assert "failed" not in qemu.say("flush")
    assert owner.run("get", windows, "w").stdout[:2048] == b"".join(
        bytes([number + 1]) * 512 for number in range(4)
    )
    assert owner.end()[0] == 0


def test_qemu_stays_connected_while_its_image_is_away_o141(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    here = OwnerProcess(windows, runtime, "--nbd", tmp_path / "1.nbd")
    there = OwnerProcess(
        windows, tmp_path / "there", "--nbd", tmp_path / "2.nbd", "--incoming", "told"
    )
    with QemuIo(tmp_path / "1.nbd", "w") as source, QemuIo(tmp_path / "2.nbd", "w") as target:
        assert "wrote 512/512" in source.say("write -P 1 0 512")
        assert "Operation not permitted" in target.say("write -P 2 0 512")
        digest = here.run("owner", "release", windows).stdout.decode().strip()
        assert "Operation not permitted" in source.say("write -P 3 0 512")
        assert "read 512/512" in source.say("read -P 1 0 512")
        taken = there.run("owner", "take-over", windows, "--expect-digest", digest)
        assert taken.returncode == 0
        said = target.say("read -P 1 0 512")
        assert "read 512/512" in said
        assert "failed" not in said
        assert "wrote 512/512" in target.say("write -f -P 4 512 512")
        # The machine goes back to where it was.
        assert there.run("owner", "release", windows).returncode == 0
        assert here.run("owner", "take-over", windows).returncode == 0
        assert "read 512/512" in source.say("read -P 4 512 512")
        assert "wrote 512/512" in source.say("write -f -P 5 1024 512")
    assert here.end()[0] == there.end()[0] == 0
    with blobstore.open(windows) as store:
        assert store.get("w")[:1536] == b"\1" * 512 + b"\4" * 512 + b"\5" * 512
