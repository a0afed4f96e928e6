"""docs/mount.md, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import load_serve_config
from formats.errors import DeviceBusyError
from tests.support.cli import QUICK, succeeds
from tests.support.mounts import ROOT, wait_for

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

PAGE = (ROOT / "docs" / "mount.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(b"passphrase")
    (tmp_path / "state").mkdir()
    succeeds("create", tmp_path / "machine.img", "--key-file", tmp_path / "key", *QUICK)
    return tmp_path


def shell(script: str, directory: Path) -> str:
    """Run lines as a user does, with the `blobstore` of this checkout."""
    function = f'blobstore() {{ "{sys.executable}" -m blobstore "$@"; }}\n'
    done = subprocess.run(
        ["/bin/sh", "-euc", function + script],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_first_example(machine: Path) -> None:
    (script,) = (text for kind, text in BLOCKS if kind == "sh" and "settings" in text)
    assert shell(script, machine).endswith("hostname=guest")
    wait_for(lambda: not os.path.ismount(machine / "state"))
    wait_for(lambda: _stored(machine) == b"hostname=guest")


def _stored(machine: Path) -> bytes | None:
    """Return what is in the image, once its owner has ended."""
    try:
        store = blobstore.open(machine / "machine.img", b"passphrase", direct=True)
    except DeviceBusyError:
        return None
    with store:
        return store.get("settings")


def test_the_example_of_a_tpm(machine: Path) -> None:
    (script,) = (text for kind, text in BLOCKS if kind == "sh" and "swtpm socket" in text)
    try:
        shell(f"{script}\nswtpm_ioctl --unix tpm.ctrl -i\nswtpm_ioctl --unix tpm.ctrl -s", machine)
        assert (machine / "state" / "tpm2-00.permall").stat().st_size > 1000
    finally:
        subprocess.run(["umount", "-l", machine / "state"], check=True)


def test_the_configuration(tmp_path: Path) -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "toml")
    (tmp_path / "serve.toml").write_text(text)
    (front,) = load_serve_config(tmp_path / "serve.toml").mount
    assert front.layout == "swtpm"


def test_the_options_that_it_names_exist() -> None:
    said = succeeds("mount", "--help").decode()
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--tpmstate", "--config"}:
        assert option in said
