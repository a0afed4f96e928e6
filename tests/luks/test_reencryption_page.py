"""The page about re-encryption runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luks

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reencryption.md"


def test_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    output = capsys.readouterr().out
    assert re.search(r"^\d+ of 262144 bytes$", output, re.MULTILINE)
    assert "[L187] - resume it" in output


def test_the_page_names_what_there_is() -> None:
    for name in re.findall(r"luks\.([A-Za-z_]+)\b", PAGE.read_text()):
        assert name in luks.__all__ or name == "md", name
