"""`make demo`'s script does the main job, from an empty directory and over its own remains."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.foreign import run

ROOT = Path(__file__).resolve().parents[2]


def demo(
    directory: Path, *, programs: Path = Path(sys.executable).parent
) -> subprocess.CompletedProcess[str]:
    """Run the demo with the blobstore command found in a directory, by default the tests' own."""
    return subprocess.run(
        [ROOT / "tools" / "demo", directory],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.interop
def test_demo_succeeds_twice_in_one_directory(tmp_path: Path) -> None:
    keys = set()
    for _ in range(2):
        result = demo(tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1].startswith("The demo succeeded")
        key = tmp_path / "machine.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        keys.add(key.read_bytes())
        image = tmp_path / "machine.img"
        run("cryptsetup", "isLuks", "--type", "luks2", image)
        run("cryptsetup", "open", "--test-passphrase", "--key-file", key, image)
    assert len(keys) == 2


def test_demo_fails_where_something_else_comes_back(tmp_path: Path) -> None:
    fake = tmp_path / "blobstore"
    fake.write_text(f"#!/bin/sh\necho something else >'{tmp_path}/tpm2-permall.bin'\n")
    fake.chmod(0o755)
    result = demo(tmp_path, programs=tmp_path)
    assert result.returncode != 0
    assert "The demo succeeded" not in result.stdout
