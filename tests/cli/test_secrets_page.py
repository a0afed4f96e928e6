"""The page about secrets says what is there, and its longest example runs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blobstore
import luks
from tests.support.foreign import program

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "secrets.md").read_text()


def test_the_page_names_what_there_is() -> None:
    for name in re.findall(r"luks\.([A-Za-z_]+)\b", PAGE):
        assert hasattr(luks, name), name
    for name in re.findall(r"luks\.Secret\.([a-z_]+)\b", PAGE):
        assert hasattr(luks.Secret, name), name
    options = set()
    for verb in ("ls", "clone"):
        command = importlib.import_module(f"blobstore.cli.commands.{verb}").command
        options |= {name for parameter in command.params for name in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--(?:new-)?(?:key|object)[a-z-]*", PAGE))
    assert len(named) >= 9
    assert named <= options


@pytest.mark.interop
def test_the_example_of_a_master_key_runs(tmp_path: Path) -> None:
    passphrase = "a pass, a phrase"
    kdf = luks.Pbkdf2("sha256", 1000)
    image = tmp_path / "machine.img"
    blobstore.create(image, {"tpm": 100}, passphrase.encode(), kdf=kdf, free=0).close()
    (example,) = re.findall(r"^```sh\n(openssl rand.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    program("openssl")
    done = subprocess.run(
        ["sh", "-euc", f'blobstore() {{ "{sys.executable}" -m blobstore "$@"; }}\n{example}'],
        cwd=tmp_path,
        env={"PASSPHRASE": passphrase, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tpm" in done.stdout
