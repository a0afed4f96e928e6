"""Everything on the page about UEFI variables runs, and says what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blobstore
from tests.support.foreign import system_file
from tests.uefi.machine import VARS
from tests.uefi.test_keys import make_keys

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "uefi.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.interop
def test_everything_on_the_page_runs(tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    for name in ("PK", "KEK", "db"):
        (tmp_path / f"{name.lower()}.pem").write_bytes(keys.pem(name).read_bytes())
    (tmp_path / "vendor.esl").write_bytes(keys.lists("child").read_bytes())
    (tmp_path / "update.auth").write_bytes(keys.signed(keys.lists("child"), "dbx", "KEK", "-a"))
    blobstore.edit_variables_file(
        system_file(VARS),
        tmp_path / "OVMF_VARS.fd",
        lambda v: v.add_boot_entry("first", "\\x.efi"),
    )
    blobstore.create(tmp_path / "machine.img", {}, encrypted=False, free=2 << 20).close()
    shell = f'blobstore() {{ "{sys.executable}" -m blobstore "$@"; }}\n'
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    scripts = [("sh", "-euc", shell + script) for script in blocks("sh")]
    scripts.insert(-1, (sys.executable, "-c", blocks("python")[0]))
    assert len(scripts) == 7
    for command in scripts:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), (command, done)
    with blobstore.open(tmp_path / "machine.img") as store:
        variables = blobstore.read_variables(store)
        assert variables.problems == ()
        assert variables.describe("SecureBootEnable")["value"] is True
        assert [len(variables.describe(name)["value"]) for name in ("db", "dbx")] == [2, 3]
        assert "note" not in variables
        assert "Boot0001" in variables
        assert "Boot0000" not in variables
