"""Logging that is imported late is logging like any other (`formats.logs`)."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("log", "level"),
    [
        (LateLogger.info, logging.INFO),
        (LateLogger.warning, logging.WARNING),
        (LateLogger.error, logging.ERROR),
    ],
)
def test_a_record_says_who_logged_what_and_where(
    log: Callable[..., None], level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logger = LateLogger("blobstore.somewhere")
    for number in range(2):
        log(logger, "number %d of %s", number, "two")
    assert [record.getMessage() for record in caplog.records] == [
        "number 0 of two",
        "number 1 of two",
    ]
    for record in caplog.records:
        assert (record.name, record.levelno) == ("blobstore.somewhere", level)
        assert Path(record.pathname) == Path(__file__)


@pytest.mark.parametrize(("options", "said"), [((), True), (("--quiet",), False)])
def test_what_is_logged_comes_to_stderr_unless_quiet(
    options: tuple[str, ...], said: bool, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    with blobstore.create(image, {"a": 16}, encrypted=False, free=0) as store:
        store.put("a", b"blob")
        block = store.info().block_size
    with image.open("r+b") as file:
        file.seek(block)
        file.write(bytes(block))  # the second copy of the header, which is written anew
    done = subprocess.run(
        [sys.executable, "-m", "blobstore", *options, "rm", image, "a"],
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    warning = b"blobstore: rewriting header copy 1\n"
    assert done.stderr == (warning if said else b"")
