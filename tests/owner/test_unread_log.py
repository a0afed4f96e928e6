"""An owner whose log is not read goes on (O152)."""

from __future__ import annotations

import logging
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from formats.patient_log import PatientHandler
from tests.owner.tpms import places
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def record(message: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": logging.INFO})


def read_all(descriptor: int) -> bytes:
    content = b""
    while select.select([descriptor], [], [], 0)[0]:
        content += os.read(descriptor, 1 << 20)
    return content


def test_o152_what_is_not_taken_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    handler = PatientHandler(writing)
    for number in range(2000):
        handler.handle(record(f"{number:4} " + "x" * 95))
    said = read_all(reading).splitlines()
    assert 300 < len(said) < 700
    assert all(int(line[:4]) == number for number, line in enumerate(said))
    handler.handle(record("after that"))
    lost = f"{2000 - len(said)} messages were lost: not read in time"
    assert read_all(reading).decode().splitlines() == [lost, "after that"]


def test_o152_a_message_is_written_as_a_whole_or_cut(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    handler = PatientHandler(writing)
    handler.handle(record("ü" * 9000 + "\ud800"))
    said = read_all(reading)
    assert (len(said), said[-1:]) == (select.PIPE_BUF, b"\n")
    handler.handle(record("\ud800"))
    assert read_all(reading) == b"\\ud800\n"


def test_o152_a_reader_that_has_gone_changes_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = PatientHandler(writing)
    handler.handle(record("to nobody"))
    os.close(writing)
    handler.handle(record("to nothing"))


def test_o152_an_owner_with_a_tpm_goes_on(image: Path, runtime: Path) -> None:
    """Each connection is logged: 3,000 of them are more than a pipe takes."""
    with places() as (tpm,):
        owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
        for _ in range(3000):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(owner.socket))
        assert owner.run("put", image, "a", "-", stdin=b"1").returncode == 0
        assert tpm.answers()
        code, said = owner.end()
        assert (code, len(said) > 60_000) == (0, True)
