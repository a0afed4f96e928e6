"""docs/owner.md, run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import blobstore
from tests.support.cli import QUICK, succeeds
from tests.support.foreign import program
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "owner.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Yield the words of each command; one that goes on has its end in quotes."""
    for block in blocks("sh"):
        for line in re.split(r"\n(?=curl |blobstore )", block):
            yield shlex.split(line.replace("$PWD", str(Path.cwd())))


def test_the_commands(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"key")
    (tmp_path / "vars.fd").write_bytes(b"variables")
    image = tmp_path / "machine.img"
    sections = ("--section", "uefi-variables=64K", "--section", "tpm-permanent-state=64K")
    succeeds("create", image, *sections, "--key-file", tmp_path / "key", *QUICK)
    monkeypatch.chdir(tmp_path)
    owner: OwnerProcess | None = None
    verbs, methods = set(), 0
    try:
        for words in commands():
            if words[:2] == ["blobstore", "serve"]:
                if owner is not None:
                    assert owner.end()[0] == 0
                owner = OwnerProcess(image, runtime, *words[3:])
                continue
            assert owner is not None
            if words[0] == "blobstore":
                verbs.add(words[1])
                done = owner.run(*words[1:])
            else:
                methods += 1
                done = subprocess.run(
                    [program("curl"), "-sS", "--fail-with-body", *words[1:]],
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
            assert done.returncode == 0, (words, done)
        assert verbs == {"get", "put", "backup", "verify", "key"}
        assert methods > 10
        for block in blocks("python"):
            exec(compile(block, "docs/owner.md", "exec"), {})
    finally:
        if owner is not None:
            owner.end()
    with blobstore.open(image, b"key", read_only=True) as store:
        assert store.get("uefi-variables") == b"variables1"
        assert store.get("tpm-volatile-state") == b"volatile"
        assert (tmp_path / "copy.fd").read_bytes() == b"variables"
    for name in ("copy.img", "backup.img", "python.img"):
        with blobstore.open(tmp_path / name, b"key", read_only=True) as copy:
            assert copy.verify().ok
