"""Ways to the two channels: descriptors, ports, prefixes; beside swtpm (V22, V25, V56 to V59)."""

from __future__ import annotations

import array
import random
import re
import socket
import struct
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.foreign import program, run
from tests.vtpm import commands
from tests.vtpm.support import (
    NOT_NEED_INIT,
    DataClient,
    command,
    environment,
    key_of,
    result_of,
    serving,
)
from tests.vtpm.test_like_swtpm import RANDOM, STARTUP, one_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("name", ["swtpm", "ours"])
def test_v56_the_data_channel_comes_through_the_control_channel(
    tmp_path: Path, image: Path, name: str
) -> None:
    if name == "swtpm":
        (tmp_path / "swtpm").mkdir()
        state = f"dir={tmp_path / 'swtpm'}"
        arguments = [program("swtpm"), "socket", "--tpm2", "--tpmstate", state]
    else:
        arguments = command(image, "--key-file", key_of(image))
    with serving([*arguments, "--terminate"], data=False) as tpm:
        ctrl = tpm.control()
        assert result_of(ctrl.ask(0x10)) == 3  # no descriptor with it
        ours, theirs = socket.socketpair()
        descriptors = array.array("i", [theirs.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        ctrl.socket.sendmsg([bytes.fromhex("00000010")], ancillary)
        assert result_of(ctrl.socket.recv(100)) == 0
        theirs.close()
        again, other = socket.socketpair()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [again.fileno()]))]
        ctrl.socket.sendmsg([bytes.fromhex("00000010")], ancillary)
        assert result_of(ctrl.socket.recv(100)) == 0x1F  # there is one already
        again.close()
        if name == "ours":
            assert other.recv(1) == b""  # what was not taken was closed
        other.close()
        assert ctrl.init() == 0
        data = DataClient(ours)
        assert commands.code_of(data.send(STARTUP)) == 0
        data.close()
        assert tpm.process.wait(timeout=30) == 0
        ctrl.close()


def test_v22_a_prefix_sets_the_locality(tmp_path: Path, image: Path) -> None:
    at_4 = struct.pack(">IBI", 8, 4, len(STARTUP)) + STARTUP
    answers = []
    for name in ("swtpm", "ours"):
        with one_of(name, tmp_path, image, *NOT_NEED_INIT) as tpm:
            client = tpm.connect()
            client.socket.sendall(at_4)
            answers.append(client.receive_exactly(18))
            client.close()
    assert answers[0] == answers[1]
    assert commands.code_of(answers[1][4:]) == 0x907  # a startup comes from localities 0 and 3


@pytest.mark.parametrize("name", ["swtpm", "ours"])
def test_v57_tcp_on_loopback(tmp_path: Path, image: Path, name: str) -> None:
    """With tpm2-tools, which look for the control channel at the next port."""
    port = _two_free_ports()
    channels = [f"--server=type=tcp,port={port}", f"--ctrl=type=tcp,port={port + 1}"]
    if name == "swtpm":
        (tmp_path / "swtpm").mkdir()
        state = f"dir={tmp_path / 'swtpm'}"
        arguments = [program("swtpm"), "socket", "--tpm2", "--tpmstate", state]
    else:
        arguments = command(image, "--key-file", key_of(image))
    process = subprocess.Popen([*arguments, *channels, *NOT_NEED_INIT], env=environment())
    try:
        tools = {"TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={port}"}
        _wait_for(port + 1, process)
        run("tpm2", "startup", "--clear", environment=tools)
        assert re.fullmatch(
            rb"[0-9a-f]{16}", run("tpm2", "getrandom", "--hex", "8", environment=tools).strip()
        )
        assert b"0x" in run("swtpm_ioctl", "--tcp", f"127.0.0.1:{port + 1}", "-c")
        run("swtpm_ioctl", "--tcp", f"127.0.0.1:{port + 1}", "-s")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["swtpm", "ours"])
@pytest.mark.parametrize("way", ["--port", "disconnect", "--fd"])
def test_v25_v59_other_ways_to_the_data_channel(
    tmp_path: Path, image: Path, name: str, way: str
) -> None:
    """A port or `disconnect` closes after each response; a descriptor ends the program."""
    port = _two_free_ports()
    ours, theirs = socket.socketpair()
    channel = {
        "--port": ["-p", str(port)],
        "disconnect": ["--server", f"type=tcp,port={port},disconnect"],
        "--fd": ["--fd", str(theirs.fileno())],
    }[way]
    if name == "swtpm":
        (tmp_path / "swtpm").mkdir()
        state = f"dir={tmp_path / 'swtpm'}"
        arguments = [program("swtpm"), "socket", "--tpm2", "--tpmstate", state]
    else:
        arguments = command(image, "--key-file", key_of(image))
    process = subprocess.Popen(
        [*arguments, *channel, *NOT_NEED_INIT], env=environment(), pass_fds=[theirs.fileno()]
    )
    theirs.close()
    try:
        if way == "--fd":
            client = DataClient(ours)
            assert commands.code_of(client.send(STARTUP)) == 0
            assert commands.code_of(client.send(RANDOM)) == 0
            client.close()
            assert process.wait(timeout=30) == 0
            return
        _wait_for(port, process)
        for message, expected in ((STARTUP, 0), (STARTUP, 0x100), (RANDOM, 0)):
            with socket.create_connection(("127.0.0.1", port)) as connected:
                client = DataClient(connected)
                assert commands.code_of(client.send(message)) == expected
                assert client.receive() == b""
    finally:
        ours.close()
        process.terminate()
        process.wait(timeout=30)


def test_v56_a_descriptor_that_is_no_socket_is_refused(image: Path) -> None:
    with serving(command(image, "--key-file", key_of(image)), data=False) as tpm:
        ctrl = tpm.control()
        with image.open("rb") as file:
            descriptors = array.array("i", [file.fileno()])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
            ctrl.socket.sendmsg([bytes.fromhex("00000010")], ancillary)
        assert result_of(ctrl.socket.recv(100)) == 3
        assert ctrl.init() == 0
        ctrl.close()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process listens at a port."""
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _two_free_ports() -> int:
    """Return the first of two ports, neither of which Linux gives to a client by itself."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000, 2)
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
