"""swtpm and this TPM get the same bytes, and give the same bytes (V20 to V25, V50 to V56)."""

from __future__ import annotations

import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.foreign import program
from tests.vtpm import commands
from tests.vtpm.support import (
    NOT_NEED_INIT,
    ControlClient,
    DataClient,
    Vtpm,
    command,
    key_of,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop

STARTUP, RANDOM = commands.STARTUP, commands.get_random(4)
PREFIXED = struct.pack(">IBI", 8, 0, len(STARTUP)) + STARTUP

#: What is sent, in order: to the control channel (c), or to the data channel (d). A
#: request that ends a connection is followed by others on a new one.
STOPPED = [
    "c 00000001",  # GET_CAPABILITY
    "c 00000004",  # GET_TPMESTABLISHED: needs a running TPM
    "c 0000000500000000",  # SET_LOCALITY as QEMU sends it
    "c 0000000500",  # and as the TCTI does
    "c 0000000505",
    "c 00000006",
    "c 0000000700000001aa",
    "c 00000008",
    "c 00000009",
    "c 0000000a",
    "c 0000000b00",
    "c 0000000c000000010000000100000000",
    "c 0000000e",
    "c 0000000e00",
    "c 0000000f",
    "c 0000000f00",
    "c 00000010",
    "c 0000001100000000",
    "c 0000001100000f80",
    "c 0000001100000001",
    "c 00000011ffffffff",
    "c 0000001200000000000000070000000000000000",
    "c 0000001200000000000000070000001000000000",
    "c 0000001200000000000000070000ffff00000000",
    "c 00000014",
    "c 00000000",
    "c 0000000d000000000000000700000004aabbccdd",
    "c 0000000d000000000000000100000004aabbccdd",
    "c 0000000d0000000000000001000000100201000a000000000010000100000000",
    f"d {STARTUP.hex()}",
    f"d {RANDOM.hex()}",
    "c 00000002",
    "c 000000020000000000",
    "c 00000003ff",
]
RUNNING = [
    "c 0000000200000000",
    f"d {RANDOM.hex()}",  # before startup
    f"d {STARTUP.hex()}",
    f"d {STARTUP.hex()}",
    "d 80010000000a0000017b",  # GetRandom without its parameter
    "d 80010000000600000144",  # a size that is less than a header
    "d 123400000010000001440000aabb0000",
    f"d {PREFIXED.hex()}",
    "d 80010000000b2000100001",  # TPM2_SetLocality, not allowed
    "c 0000000e00",
    "c 00000004",
    "c 000000040000",
    "c 0000000b05",
    "c 0000000b00",
    "c 0000000503",
    "c 00000008",
    "c 00000006",
    "c 0000000700000003616263",
    "c 0000000700000000",
    "c 00000008",
    "c 00000004",
    "c 0000000b03",
    "c 00000004",
    "c 00000009",
    "c 0000000c000000010000000300000000",
    "c 0000000d000000000000000100000004aabbccdd",
    "c 0000001100000000",
    "c 0000001100000f80",
    "c 0000000a",
    "c 0000000e",
    f"d {STARTUP.hex()}",
]

#: Where we differ on purpose: what swtpm 0.7.1 and we answer, for a TPM 2.0 and a TPM 1.2.
_LOCK_STORAGE = 1 << 16  # swtpm has it since 0.8
DIFFERENT = {
    "c 00000001": (
        (f"{0xFFFF:016x}", f"{0xFFFF | _LOCK_STORAGE:016x}"),
        (f"{0x7FFF:016x}", f"{0x7FFF | _LOCK_STORAGE:016x}"),
    ),
    # A state without the field it should have: to swtpm a failure, to us a wrong parameter.
    "c 0000000d0000000000000001000000100201000a000000000010000100000000": (
        ("00000009", "00000003"),
        ("00000009", "00000003"),
    ),
    # A command that is not permitted: to swtpm a fatal error, to us one that is not there.
    "d 80010000000b2000100001": (
        ("80010000000a00000101", "80010000000a00000143"),
        ("00c40000000a00000009", "00c40000000a0000000a"),
    ),
}


@contextmanager
def one_of(
    name: str, directory: Path, image: Path, *options: str, tpm2: bool = True
) -> Iterator[Vtpm]:
    """Run swtpm, or this TPM."""
    version = ["--tpm2"] if tpm2 else []
    if name == "swtpm":
        state = directory / "swtpm"
        state.mkdir(exist_ok=True)
        arguments = [program("swtpm"), "socket", *version, "--tpmstate", f"dir={state}", *options]
    else:
        version = version or ["--tpm1.2"]
        arguments = command(image, "--key-file", key_of(image), *version, *options)
    with serving(arguments) as tpm:
        yield tpm


class Both:
    """One conversation with a TPM, over both channels."""

    def __init__(self, tpm: Vtpm) -> None:
        self._tpm = tpm
        self._ctrl = ControlClient(tpm.ctrl)
        self._data = DataClient(tpm.data)

    def send(self, line: str) -> str:
        channel, message = line.split()
        if message == PREFIXED.hex():
            self._data.socket.sendall(PREFIXED)
            return self._data.receive_exactly(4 + 10 + 4).hex()
        if channel == "d":
            return self._data.send(bytes.fromhex(message)).hex()
        self._ctrl.socket.sendall(bytes.fromhex(message))
        reply = self._ctrl.socket.recv(1 << 20)
        if not reply:
            self._ctrl.close()
            self._ctrl = ControlClient(self._tpm.ctrl)
        return reply.hex()

    def close(self) -> None:
        self._ctrl.close()
        self._data.close()


def said(tpm: Vtpm, lines: list[str]) -> list[str]:
    client = Both(tpm)
    try:
        return [client.send(line) for line in lines]
    finally:
        client.close()


@pytest.mark.parametrize("tpm2", [True, False], ids=["2.0", "1.2"])
@pytest.mark.parametrize("lines", [STOPPED, RUNNING], ids=["stopped", "running"])
def test_v50_both_answer_alike(tmp_path: Path, image: Path, lines: list[str], tpm2: bool) -> None:
    if not tpm2:  # it takes no prefixes, and to give one is to send a very long command
        lines = [line for line in lines if not line.endswith(PREFIXED.hex())]
    answers = {}
    for name in ("swtpm", "ours"):
        with one_of(name, tmp_path, image, tpm2=tpm2) as tpm:
            answers[name] = said(tpm, lines)
    differing = {
        line: (theirs, ours)
        for line, theirs, ours in zip(lines, answers["swtpm"], answers["ours"], strict=True)
        if theirs != ours
    }
    expected = {line: DIFFERENT[line][not tpm2] for line in lines if line in DIFFERENT}
    assert differing == expected


def _locality_4(tpm: Vtpm) -> object:
    return said(tpm, ["c 0000000504", "c 0000000503", f"d {STARTUP.hex()}"])


def _set_locality_by_command(tpm: Vtpm) -> object:
    command = "d 80010000000b20001000"
    return said(tpm, [f"{command}03", f"{command}04", f"{command}05", f"d {STARTUP.hex()}"])


def _incomplete_request(tpm: Vtpm) -> object:
    """It is closed on after a while; the next client is served."""
    answers = []
    for beginning in ("0000", "0000000200", "0000000d00000000000000010000ffff00"):
        client = ControlClient(tpm.ctrl)
        client.socket.sendall(bytes.fromhex(beginning))
        answers.append(client.socket.recv(100))
        client.close()
    return answers, said(tpm, ["c 0000000e"])


def _too_long(tpm: Vtpm) -> object:
    """Nothing of such a size is waited for, and the next client is served."""
    client = tpm.connect()
    client.socket.sendall(struct.pack(">HII", 0x8001, 1 << 20, 0x144))
    answer = client.receive()
    client.close()
    time.sleep(0.05)
    return answer, tpm.process.poll(), said(tpm, [f"d {STARTUP.hex()}"])


def _one_after_the_other(tpm: Vtpm) -> object:
    """A second client waits until the first one has gone."""
    first, second = tpm.connect(), tpm.connect()
    answers = [first.send(STARTUP)]
    second.socket.sendall(STARTUP)
    answers.append(first.send(STARTUP))
    first.close()
    answers.append(second.receive())
    second.close()
    return answers


def _client_goes(tpm: Vtpm, patience: float) -> object:
    """Whether the program ends with its data connection, within so many seconds."""
    ctrl = tpm.control()
    ctrl.close()
    time.sleep(0.2)
    alive = tpm.process.poll()
    client = tpm.connect()
    answer = client.send(STARTUP)
    client.close()
    deadline = time.monotonic() + patience
    while tpm.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive, answer, tpm.process.poll()


def _client_goes_and_it_stays(tpm: Vtpm) -> object:
    return _client_goes(tpm, patience=1)


def _client_goes_and_it_ends(tpm: Vtpm) -> object:
    return _client_goes(tpm, patience=30)


def _shutdown(tpm: Vtpm) -> object:
    ctrl = tpm.control()
    answer = ctrl.ask(3)
    ctrl.close()
    code = tpm.process.wait(timeout=30)
    return answer, code, tpm.ctrl.exists(), tpm.data.exists()


def _signal(tpm: Vtpm) -> object:
    said(tpm, ["c 0000000f"])  # so that it serves
    return tpm.end(), tpm.ctrl.exists(), tpm.data.exists()


SCENARIOS: dict[str, tuple[Callable[[Vtpm], object], tuple[str, ...]]] = {
    "v24-locality-4": (_locality_4, NOT_NEED_INIT),
    "v24-no-locality-4": (_locality_4, (*NOT_NEED_INIT, "--locality", "reject-locality-4")),
    "v24-set-locality": (
        _set_locality_by_command,
        (*NOT_NEED_INIT, "--locality", "allow-set-locality,reject-locality-4"),
    ),
    "v50-incomplete": (_incomplete_request, NOT_NEED_INIT),
    "v21-too-long": (_too_long, NOT_NEED_INIT),
    "v25-waiting": (_one_after_the_other, NOT_NEED_INIT),
    "v59-stays": (_client_goes_and_it_stays, NOT_NEED_INIT),
    "v59-terminate": (_client_goes_and_it_ends, (*NOT_NEED_INIT, "--terminate")),
    "v59-shutdown": (_shutdown, NOT_NEED_INIT),
    "v59-sigterm": (_signal, NOT_NEED_INIT),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_behave_alike(tmp_path: Path, image: Path, name: str) -> None:
    scenario, options = SCENARIOS[name]
    answers: list[Any] = []
    for program_name in ("swtpm", "ours"):
        with one_of(program_name, tmp_path, image, *options) as tpm:
            answers.append(scenario(tpm))
    assert answers[0] == answers[1]
