"""docs/machine.md, run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.support.cli import QUICK, succeeds
from tests.support.foreign import program, run, system_file
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "machine.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            yield shlex.split(line)


@pytest.mark.interop
def test_the_commands(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(b"key")
    (manifest,) = blocks("toml")
    Path("machine.toml").write_text(manifest)
    for path in re.findall(r"/usr/share/\S+\.fd", PAGE):
        system_file(path)
    image, seen = tmp_path / "machine.img", set()
    owner: OwnerProcess | None = None
    try:
        for words in commands():
            seen.add(" ".join(words[:2]) if words[0] == "blobstore" else words[0])
            if words[:2] == ["blobstore", "pack"]:
                succeeds(*words[1:], *QUICK)
            elif words[:2] == ["blobstore", "serve"]:
                if owner is not None:
                    assert owner.end()[0] == 0
                owner = OwnerProcess(image, runtime, *words[3:])
            elif words[0] == "tpm2":
                assert len(run(*words).strip()) == 16
            else:
                said = _connects(words)
                assert re.search(r"pflash1.*nbd", said), said
                assert "tpm0: model=tpm-crb" in said
        assert len(seen) == 4
    finally:
        if owner is not None:
            assert owner.end()[0] == 0
    with blobstore.open(image, b"key", read_only=True) as store:
        assert store.verify().ok
        assert store.section("tpm-permanent-state").size
        assert store.section("second-permanent-state").size


def _connects(words: list[str]) -> str:
    """Start a machine that does nothing yet; return what it says of its devices."""
    done = subprocess.run(
        [
            *(program(words[0]), *words[1:], "-accel", "tcg", "-display", "none", "-S"),
            *("-monitor", "stdio"),
        ],
        input=b"info block\ninfo tpm\nquit\n",
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
