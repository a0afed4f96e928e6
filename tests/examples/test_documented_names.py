"""Documentation and examples use public names only (CONTRIBUTING.md, "What is public")."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blobstore
import luks
from blobstore import owner, vtpm

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
EXAMPLES = sorted(ROOT.glob("examples/**/*.py"))
#: What CONTRIBUTING.md permits of `formats`.
MODULES = re.compile(r"formats\.(errors|devices\.(device|file)|eeprom\b.*|qcow2\b.*)$")
EXPORTED = {"blobstore": {*blobstore.__all__, "__version__"}, "luks": set(luks.__all__)}
#: Rooms with public names of their own.
ROOMS = {"blobstore.owner": set(owner.__all__), "blobstore.vtpm": set(vtpm.__all__)}


def not_public(tree: ast.AST) -> list[str]:
    """Return what a program takes of the packages and must not."""
    used: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                used += [alias.name for alias in names if "." in alias.name]
            case ast.ImportFrom(module=str(module), names=names):
                used += [f"{module}.{alias.name}" for alias in names]
            case ast.Attribute(value=ast.Name(id="blobstore" | "luks" as package), attr=name):
                used.append(f"{package}.{name}")
    return [name for name in used if not is_public(name)]


def is_public(name: str) -> bool:
    """Say whether a dotted name is public, or does not belong to the packages."""
    package, _, rest = name.partition(".")
    if package == "formats":
        return MODULES.match(name) is not None
    if room := next((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), None):
        rest = name.removeprefix(room).lstrip(".")
        return not rest or rest.split(".")[0] in ROOMS[room]
    return package not in EXPORTED or rest.split(".")[0] in EXPORTED[package]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_imports_public_names_only(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert [name for block in blocks for name in not_public(ast.parse(block))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_public_names_only(page: Path) -> None:
    named = re.findall(r"`((?:blobstore|luks|formats)\.[A-Za-z_][\w.]*)", page.read_text())
    assert [name for name in named if not is_public(name.rstrip("."))] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_imports_public_names_only(example: Path) -> None:
    assert not_public(ast.parse(example.read_text())) == []


@pytest.mark.parametrize(
    "program",
    [
        "from blobstore.store.store import Store",
        "import luks.payload.volume",
        "from formats.frozen import Record",
        "import luks\nluks.header",
    ],
)
def test_what_is_internal_is_found(program: str) -> None:
    assert len(not_public(ast.parse(program))) == 1


def test_a_type_checker_sees_what_is_public(tmp_path: Path) -> None:
    """Names are exported by the packages, and no module exports what it imports."""
    exported = tmp_path / "exported.py"
    exported.write_text(
        "\n".join(
            f"from {package} import {name} as {package.replace('.', '_')}_{name}"
            for package, names in {**EXPORTED, **ROOMS}.items()
            for name in sorted(names)
        )
    )
    internal = (
        *("import blobstore\nblobstore.Session", "import blobstore\nblobstore.store"),
        *("from blobstore import scan", "from luks import load_metadata"),
        *("from blobstore.owner import Routes", "from blobstore.vtpm import Libtpms"),
        "from blobstore.store.store import Session",
    )
    for number, program in enumerate(internal):
        (tmp_path / f"internal{number}.py").write_text(program)
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\n")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, *sorted(tmp_path.glob("*.py"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = re.findall(r"^\S*?(\w+)\.py:.*\[attr-defined\]$", found.stdout, re.MULTILINE)
    assert sorted(refused) == [f"internal{number}" for number in range(len(internal))], found.stdout
    assert found.returncode == 1, found.stdout + found.stderr
