"""The contracts of imports (`pyproject.toml`): each is broken once, and says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("blobstore", "formats", "luks")

PACKAGES_ONE_WAY = "imports run one way: blobstore, luks, formats"
BLOBSTORE = "the rooms of blobstore lie one above the other"
LUKS = "the rooms of luks lie one above the other"
FORMATS = "the rooms of formats lie one above the other, and no format knows another"
NO_CIRCLES = "nothing depends on what stands beside it in a circle"
LUKS_OF_FORMATS = "luks knows only devices, errors, logs, frozen and process of formats"
CONTAINER_OF_FORMATS = "the container knows only its encoding, devices, errors and logs of formats"
CONTAINER = "the container knows neither keys nor files, not even indirectly"
CRYPTOGRAPHY = "only ciphers, secrets and foreign state know cryptography; formats never does"
CLICK = "only the command line knows click"
HTTP = "only the owner of an image knows HTTP"
COMMAND_LINE = "only the program starts the command line"
PUBLIC_API = "the command line calls the public API only"
BY_PATH = "of blobstore, only the image room opens by path"

# A module, the line that is appended to it, and the contracts that this breaks. A
# module that does not exist is made. The first breaks none.
BREAKS: list[tuple[str, str, set[str]]] = [
    ("blobstore/errors.py", "", set()),
    ("formats/state/uefi_vars.py", "import luks.errors", {PACKAGES_ONE_WAY}),
    ("blobstore/foreign/states.py", "import blobstore.manifests.sizes", {BLOBSTORE}),
    ("blobstore/attic.py", "", {BLOBSTORE}),
    ("luks/manage/dump.py", "import luks.payload.profiles", {LUKS}),
    ("luks/attic.py", "", {LUKS}),
    ("formats/state/uefi_vars.py", "import formats.qcow2.zstd", {FORMATS}),
    ("formats/attic.py", "", {FORMATS}),
    ("blobstore/container/authentication.py", "import blobstore.container.scan", {NO_CIRCLES}),
    ("luks/manage/dump.py", "from formats.state import swtpm", {LUKS_OF_FORMATS}),
    (
        "blobstore/container/compaction.py",
        "from formats.state import uefi_vars",
        {CONTAINER_OF_FORMATS},
    ),
    ("blobstore/container/compaction.py", "import luks", {CONTAINER}),
    ("blobstore/errors.py", "import luks.errors", {CONTAINER}),
    ("formats/state/swtpm.py", "import cryptography", {CRYPTOGRAPHY}),
    ("blobstore/store/reliance.py", "from cryptography import hazmat", {CRYPTOGRAPHY}),
    ("luks/manage/dump.py", "import click", {CLICK}),
    ("blobstore/cli/output.py", "from blobstore.store import store", {PUBLIC_API}),
    ("blobstore/cli/commands/vtpm.py", "from blobstore.vtpm import abi", {PUBLIC_API}),
    ("blobstore/cli/commands/key.py", "import luks.model", {PUBLIC_API}),
    ("blobstore/cli/commands/check.py", "from formats.qcow2 import check", {PUBLIC_API}),
    ("blobstore/store/policy.py", "import formats.devices.file", {BY_PATH}),
    ("blobstore/manifests/sizes.py", "import formats.devices.new_file", {BY_PATH}),
    ("blobstore/vtpm/server.py", "import h11", {HTTP}),
    ("blobstore/vtpm/server.py", "import blobstore.owner.listening", {BLOBSTORE, NO_CIRCLES}),
    # The TPM emulator imports `blobstore`, so it would know the command line, too.
    ("blobstore/__init__.py", "import blobstore.cli.main", {COMMAND_LINE}),
]


# Says which contracts each break breaks. One process for all: most of a run of the
# command `lint-imports` is what it imports.
LINT = """
import json, sys
from pathlib import Path
from importlinter.cli import lint_imports

sys.path.insert(0, "")
for module, line in json.load(sys.stdin):
    path = Path(module)
    before = path.read_bytes() if path.exists() else None
    with path.open("a") as file:
        file.write(f"\\n{line}\\n")
    print("=== exit code", lint_imports(no_logo=True), flush=True)
    path.unlink() if before is None else path.write_bytes(before)
"""


def names() -> set[str]:
    """Return the names of all contracts."""
    settings = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())
    return {contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What import-linter says of a copy of the packages, once for each break."""
    copy = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    result = subprocess.run(
        [sys.executable, "-c", LINT],
        input=json.dumps([(module, line) for module, line, _ in BREAKS]),
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "500", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return re.split(r"^=== ", result.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "number", range(len(BREAKS)), ids=[f"{module}+{line}" for module, line, _ in BREAKS]
)
def test_import_breaks_its_contract(reports: list[str], number: int) -> None:
    _, _, expected = BREAKS[number]
    report, after = reports[number : number + 2]
    verdicts = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b.*$", report, re.MULTILINE))
    assert set(verdicts) == names(), report
    assert {name for name, verdict in verdicts.items() if verdict == "BROKEN"} == expected
    assert after.startswith(f"exit code {int(bool(expected))}")


def test_every_contract_is_broken_once() -> None:
    assert set().union(*(broken for _, _, broken in BREAKS)) == names()
