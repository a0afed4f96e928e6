"""docs/qcow2.md, run as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.qcow2.support import assert_clean, qemu_img
from tests.support.cli import QUICK, blobstore
from tests.support.foreign import system_file

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "qcow2.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words.pop(0) == "blobstore"
                yield words


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"key")
    (tmp_path / "state.bin").write_bytes(b"state")
    (tmp_path / "disk.img").write_bytes(b"disk" * 50_000 + bytes(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "vm.qcow2", "8M")
    qemu_img("snapshot", "-c", "yesterday", tmp_path / "vm.qcow2")
    variables = tmp_path / "fedora_VARS.qcow2"
    qemu_img("convert", "-O", "qcow2", system_file("/usr/share/OVMF/OVMF_VARS_4M.fd"), variables)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "vm.qcow2", "-F", "qcow2",
             tmp_path / "overlay.qcow2")  # fmt: skip
    seen = set()
    for words in commands():
        seen.add(words[0])
        encrypts = words[0] == "create" or "--new-key-file" in words
        outputs = [tmp_path / words[2]] if words[0] == "convert" else []
        for output in outputs:
            output.unlink(missing_ok=True)
        done = blobstore(*words, *(QUICK if encrypts else ()), cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr.decode())
    assert seen >= {
        "create",
        "put",
        "snapshot",
        "get",
        "convert",
        "measure",
        "check",
        "import",
        "export",
    }
    assert (tmp_path / "old.bin").read_bytes() == b"state"
    assert_clean(tmp_path / "machine.qcow2")


def test_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    programs = blocks("python")
    assert programs
    exec(compile("\n".join(programs), "qcow2.md", "exec"), {})
    assert not capsys.readouterr().out
