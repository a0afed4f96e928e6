"""The public names stand once in each package, and type checkers, users and `import *` see them."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import formats

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("blobstore", "blobstore.owner", "blobstore.vtpm", "luks")


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def for_type_checkers(package: ModuleType) -> dict[str, str]:
    """Return what a type checker finds to be public (PEP 484), and the module that has it."""
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.name: node.module or ""
        for node in imports
        for alias in node.names
        if alias.asname == alias.name
    }


def test_type_checkers_and_programs_find_the_same_names(package: ModuleType) -> None:
    checked = for_type_checkers(package)
    assert package.__all__ == sorted(checked)
    for name, home in checked.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)


def test_no_name_stands_twice(package: ModuleType) -> None:
    assert package.__file__ is not None
    source = Path(package.__file__).read_text()
    for name in package.__all__:
        lines = re.findall(rf"^ *from .* as {name}\b.*$", source, re.MULTILINE)
        assert len(lines) == 1, name
    assert len(package.__all__) == len(set(package.__all__))


def test_all_names_are_listed_and_no_others_are_found(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018
    everything: dict[str, object] = {}
    exec(f"from {package.__name__} import *", everything)
    assert set(package.__all__) <= set(everything)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_public_says_what_it_does(name: str) -> None:
    package = importlib.import_module(name)
    for public in package.__all__:
        value = getattr(package, public)
        assert not callable(value) or value.__doc__, public


def test_a_type_checker_sees_names_and_misses_others(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import blobstore, luks\n"
        "reveal_type(blobstore.open('image'))\n"
        "reveal_type(blobstore.open('image', direct=True))\n"
        "reveal_type(luks.load_header('image').uuid)\n"
        "blobstore.opne\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'note: Revealed type is "blobstore.store.protocol.AnyStore"' in done.stdout
    assert 'note: Revealed type is "blobstore.store.store.Store"' in done.stdout
    assert 'note: Revealed type is "str"' in done.stdout or "builtins.str" in done.stdout
    assert '"opne"' in done.stdout
    assert "Found 1 error" in done.stdout


def test_only_lines_that_type_checkers_take_for_public_count(tmp_path: Path) -> None:
    source = tmp_path / "__init__.py"
    source.write_text(
        "from a import outside as outside\n"
        "if TYPE_CHECKING:\n"
        "    from luks.model import Area as Area\n"
        "    from b import private\n"
        "    import c\n"
    )
    names, get, _ = formats.public_names("formats", str(source))
    assert names == ["Area"]
    with pytest.raises(AttributeError, match="private"):
        get("private")
