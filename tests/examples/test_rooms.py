"""The rooms say what they are for, and what is written about them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("blobstore", "formats", "luks")
ROOMS = sorted(
    path.parent for package in PACKAGES for path in ROOT.joinpath(package).rglob("*/__init__.py")
)


def docstring(room: Path) -> str:
    text = ast.get_docstring(ast.parse(room.joinpath("__init__.py").read_text()))
    assert text is not None
    return text


def modules(room: Path) -> set[str]:
    """Return the names of the modules and rooms in a room."""
    found = {path.stem for path in room.glob("*.py")} - {"__init__"}
    return found | {path.parent.name for path in room.glob("*/__init__.py")}


def test_there_are_rooms() -> None:
    assert len(ROOMS) > 20


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_room_tells_its_theory(room: Path) -> None:
    text = docstring(room)
    assert 10 <= len(text.splitlines()) <= 40
    assert "must not happen here" in text
    assert "Begin with" in text


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_room_names_its_modules(room: Path) -> None:
    words = set(re.findall(r"\w+", docstring(room)))
    families = ("commands", "eeprom")  # listed by the verbs, and by the registry
    if room.name not in families:
        assert modules(room) <= words


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_what_a_docstring_names_is_there(room: Path) -> None:
    for name in re.findall(r"`((?:blobstore|formats|luks)\.[\w.]+)`", docstring(room)):
        parts = name.split(".")
        path = next(
            stem
            for end in range(len(parts), 0, -1)
            if (stem := ROOT.joinpath(*parts[:end])).is_dir() or stem.with_suffix(".py").exists()
        )
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        rest = parts[len(path.relative_to(ROOT).parts) :]
        assert not rest or re.search(rf"\b{rest[0]}\b", source.read_text()), name


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "spec/decisions/README.md"])
def test_what_a_page_names_is_there(page: str) -> None:
    text = ROOT.joinpath(page).read_text()
    named = re.findall(
        r"`((?:blobstore|docs|examples|formats|luks|spec|tests|tools)/[\w./-]*)`", text
    )
    named += [str(Path(page).parent / link) for link in re.findall(r"\]\(([\w./-]+)\)", text)]
    assert named
    assert [name for name in named if not ROOT.joinpath(name).exists()] == []


def test_index_lists_every_decision() -> None:
    index = ROOT.joinpath("spec/decisions/README.md").read_text()
    files = sorted(path.name for path in ROOT.glob("spec/decisions/[0-9]*.md"))
    assert re.findall(r"\]\(([0-9]{4}[\w-]+\.md)\)", index) == files
    # Every number up to the last is a decision or is explained.
    last = int(files[-1][:4])
    assert set(re.findall(r"\b00[0-9]{2}\b", index)) >= {f"{n:04}" for n in range(1, last + 1)}
