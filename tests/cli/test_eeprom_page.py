"""The page about EEPROMs says what is there, and everything on it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from formats.eeprom.framework.registry import built_in_names

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "eeprom.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_names_every_format() -> None:
    table = PAGE.partition("## Describe it")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(built_in_names())


def test_everything_on_the_page_runs(tmp_path: Path) -> None:
    for name, text in zip(("board.toml", "acme.toml"), blocks("toml"), strict=False):
        (tmp_path / name).write_text(text)
    shell = f'blobstore() {{ "{sys.executable}" -m blobstore "$@"; }}\n'
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    scripts = [("sh", "-euc", shell + script) for script in blocks("sh")]
    scripts.insert(-1, (sys.executable, "-c", blocks("python")[0]))
    for command in scripts:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), (command, done)
    assert (tmp_path / "fru.bin").stat().st_size == 256
    assert sorted(path.name for path in tmp_path.glob("unit-*")) == [
        "unit-A-0001-one.img",
        "unit-A-0002-two.img",
    ]

    board = (tmp_path / "board.toml").read_text()
    (tmp_path / "board.toml").write_text(board.replace('SN = "0"', "SN = 0"))
    done = subprocess.run(
        ("sh", "-euc", shell + "blobstore pack board.toml -o wrong.img"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == blocks("text")[0]
