"""The page of examples runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import luks
from luks.keys import benchmark
from tests.luks.programs import cryptsetup

PAGE = Path(__file__).resolve().parents[2] / "docs" / "luks.md"


@pytest.mark.interop
def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Measuring is slow and not what this is about: cheap costs seem to take long.
    monkeypatch.setattr(benchmark, "_measure", lambda *_: 100.0)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 14
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    output = capsys.readouterr().out
    assert "backup aes-xts-plain64 4096" in output
    assert "without it, all is lost" in output
    assert "the UUID is" in output
    dump = cryptsetup("luksDump", "disk.img")
    assert "Label:         \tbackup" in dump
    assert "com.example.escrow" in dump


def test_the_page_names_what_there_is() -> None:
    for name in re.findall(r"luks\.([A-Za-z_]+)\b", PAGE.read_text()):
        assert name in luks.__all__ or name == "md", name
