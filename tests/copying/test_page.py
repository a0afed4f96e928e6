"""docs/moving.md: its Python runs, and its commands are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import blobstore
from blobstore.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "moving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> Iterable[list[str]]:
    return [shlex.split(line)[1:] for block in blocks("sh") for line in block.splitlines()]


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blobstore.create("machine.img", {"a": 100}, encrypted=False).close()
    (block,) = blocks("python")
    exec(compile(block, "docs/moving.md", "exec"), {})
    assert Path("copy.img").read_bytes() == Path("machine.img").read_bytes()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_of_the_page_are_understood(words: list[str]) -> None:
    with click.Context(cli) as context:
        verb = cli.get_command(context, words[0])
        assert verb is not None
        verb.make_context(words[0], words[1:], parent=context)
