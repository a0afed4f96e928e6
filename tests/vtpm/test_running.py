"""A TPM while it serves, and how it ends (V20 to V28, V50 to V61)."""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from blobstore.cli.service import PidFile
from blobstore.vtpm.control import needed
from formats.state.swtpm import PlainState, encode_state
from tests.support.cli import blobstore as blobstore_command
from tests.support.cli import with_signals
from tests.support.foreign import program
from tests.support.waits import ends
from tests.vtpm import commands
from tests.vtpm.support import (
    INDEX,
    LOOKS_LIKE_A_STATE,
    NOT_NEED_INIT,
    PERMANENT,
    SECRET,
    STARTED,
    VOLATILE,
    ControlClient,
    command,
    environment,
    key_of,
    make_image,
    opened,
    refused,
    serving,
    vtpm_of,
)

RETRY = 0x922


def lockout_count(image: Path, *, automatic: bool) -> int:
    """Return how many failed attempts are counted after an end that nobody announced."""
    flags = "startup-clear" if automatic else "startup-clear,disable-auto-shutdown"
    with vtpm_of(image, "--flags", flags) as tpm:
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8, commands.AUTH_ATTRIBUTES))
        wrong = commands.nv_read(INDEX, 8, handle=INDEX, password=b"wrong")
        code = RETRY
        while code == RETRY:  # the first one notes that attempts are counted from now on
            code = commands.code_of(client.send(wrong))
        assert code == 0x98E
        client.close()
        assert tpm.end() == 0
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        properties = client.send(commands.plain(0x17A, struct.pack(">III", 6, 0x20E, 1)))
        client.close()
        assert tpm.end() == 0
    return int(struct.unpack_from(">I", properties, 23)[0])


def test_v27_a_tpm_that_nobody_shut_down_is_shut_down(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_image(tmp_path / "other" / "image")
    assert lockout_count(image, automatic=True) == 1
    assert lockout_count(other, automatic=False) == 2


def test_v28_a_command_that_takes_long_is_cancelled(image: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        assert ctrl.ask(9) == bytes(4)  # nothing to cancel
        assert commands.code_of(client.send(commands.get_random(4))) == 0  # and nothing is
        codes = set()
        for number in range(40):
            client.socket.sendall(commands.create_rsa_key(3072, number))
            time.sleep(0.03)
            assert ctrl.ask(9) == bytes(4)
            codes.add(commands.code_of(client.receive()))
            if 0x909 in codes:
                break
        assert 0x909 in codes
        assert commands.code_of(client.send(commands.get_random(4))) == 0
        client.close()
        ctrl.close()


def test_v20_commands_come_in_pieces_and_several_at_once(copy: Path) -> None:
    with vtpm_of(copy, *NOT_NEED_INIT) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        for byte in commands.STARTUP:
            client.socket.sendall(bytes([byte]))
            time.sleep(0.001)
        assert commands.code_of(client.receive()) == 0
        for byte in bytes.fromhex("0000000500"):
            ctrl.socket.sendall(bytes([byte]))
            time.sleep(0.001)
        assert ctrl.socket.recv(100) == bytes(4)
        both = commands.get_random(4) + commands.nv_read(INDEX, 8)
        client.socket.sendall(both)
        assert len(client.receive()) == 16
        assert commands.data_of(client.receive()) == b"precious"
        client.close()
        ctrl.close()


def test_v26_a_client_that_goes_in_the_middle_leaves_the_tpm_to_others(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        for cut in (3, 12, 40):
            client = tpm.connect()
            client.socket.sendall(commands.nv_write(INDEX, b"half-way")[:cut])
            client.close()
        client = tpm.connect()
        client.socket.sendall(commands.nv_write(INDEX, b"changed!"))
        client.socket.shutdown(socket.SHUT_RDWR)
        client.close()
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"changed!"
        client.close()


@pytest.mark.slow
def test_v50_v53_no_bytes_end_the_program(copy: Path) -> None:
    """Commands and requests of random bytes, of the right length and not."""
    generator = random.Random(50)
    with vtpm_of(copy, *STARTED) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        for _ in range(300):
            body = generator.randbytes(generator.randrange(60))
            code = generator.choice(
                [0x144, 0x137, 0x14E, 0x131, 0x17A, generator.randrange(1 << 32)]
            )
            tag = generator.choice([0x8001, 0x8002, 0xC1, generator.randrange(1 << 16)])
            if tag:
                response = client.send(struct.pack(">HII", tag, 10 + len(body), code) + body)
                assert len(response) >= 10
        for _ in range(200):
            code = generator.choice([1, 2, *range(4, 0x10), 0x11, 0x12, 0x13, 0x99])
            message = struct.pack(">I", code) + generator.randbytes(generator.randrange(24))
            if code in (7, 0xD):  # else it waits for what was announced
                message = struct.pack(">II", 7, 5) + generator.randbytes(5)
            ctrl.socket.sendall(message.ljust(needed(message), b"\0"))
            assert ctrl.socket.recv(1 << 20)
            if generator.random() < 0.02:
                ctrl.socket.sendall(generator.randbytes(3))
                assert ctrl.socket.recv(1) == b""
                ctrl.close()
                ctrl = tpm.control()
        assert ctrl.init(1) == 0
        ctrl.ask(5, b"\0")
        assert commands.code_of(client.send(commands.STARTUP)) == 0
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"precious"
        client.close()
        ctrl.close()


def test_v57_what_is_at_the_path_of_a_socket_is_replaced_only_if_nobody_uses_it(
    copy: Path,
) -> None:
    place = Path(tempfile.mkdtemp(prefix="vtpm-"), "sock")
    try:
        options = ["--key-file", key_of(copy), *NOT_NEED_INIT]
        arguments = [*options, "--server", f"type=unixio,path={place}"]
        place.write_text("somebody's file")
        done = blobstore_command("vtpm", copy, *arguments)
        assert done.returncode == 23
        assert place.read_text() == "somebody's file"
        place.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(place))
            other.listen()
            assert blobstore_command("vtpm", copy, *arguments).returncode == 23
        # Its name is left over now; it is taken, with the mode that was asked for.
        with serving(command(copy, *options, "--pid", f"file={place}.pid"), data=True) as tpm:
            assert tpm.ctrl.stat().st_mode & 0o777 == 0o770
            assert int(Path(f"{place}.pid").read_text()) == tpm.process.pid
            assert tpm.end() == 0
        assert not Path(f"{place}.pid").exists()
    finally:
        for path in place.parent.iterdir():
            path.unlink()
        place.parent.rmdir()


def test_v59_clients_that_take_no_answers_do_not_keep_it_from_ending(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        fetch = struct.pack(">IIII", 0xC, 1, 2, 0)
        for connected, message in ((client, commands.get_random(32)), (ctrl, fetch)):
            connected.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):  # it waits for us to take what it answered
                while True:
                    connected.socket.sendall(message)
        assert tpm.end() == 0
        client.close()
        ctrl.close()


SIGNALLED = """
import signal, sys
from pathlib import Path
import blobstore
from blobstore import vtpm
from tests.support.waits import signal_without_interrupting
with blobstore.open(sys.argv[1], sys.argv[2].encode()) as store:
    tpm = vtpm.Tpm(vtpm.StoreNvram(store))
    server = vtpm.Server(tpm, None, vtpm.Channel(path=Path(sys.argv[3])))
    signal_without_interrupting(signal.SIGTERM, 0.3)
    server.run()
    server.close()
"""


def test_v59_a_signal_that_interrupts_no_wait_ends_it(image: Path, tmp_path: Path) -> None:
    """As one does that comes after the last bytecode before the wait."""
    ends(SIGNALLED, image, SECRET.decode(), tmp_path / "ctrl")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_v59_signals_end_it(copy: Path, number: signal.Signals) -> None:
    started = with_signals(default=["INT", "HUP", "TERM"])
    with serving([*started, *command(copy, "--key-file", key_of(copy), *STARTED)]) as tpm:
        assert tpm.end(number) == 0
        assert not tpm.ctrl.exists()


@pytest.mark.parametrize("name", ["swtpm", "ours"])
def test_v59_what_was_ignored_at_the_start_stays_ignored_but_sigterm(
    copy: Path, tmp_path: Path, name: str
) -> None:
    """As under `nohup`, or in the background of a script."""
    arguments = command(copy, "--key-file", key_of(copy))
    if name == "swtpm":
        arguments = [program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}"]
    started = with_signals(ignored=["INT", "HUP", "TERM"])
    with serving([*started, *arguments, *STARTED]) as tpm:
        for number in (signal.SIGINT, signal.SIGHUP):
            tpm.process.send_signal(number)
        client = tpm.connect()
        assert commands.code_of(client.send(commands.get_random(8))) == 0
        client.close()
        assert tpm.end() == 0


def test_v62_only_a_file_is_removed_at_the_end(tmp_path: Path) -> None:
    file, link = tmp_path / "pid", tmp_path / "link"
    link.symlink_to("/dev/null")
    for place in (file, link):
        pid_file = PidFile(place)
        if place is file:
            assert int(file.read_text()) == os.getpid()
        pid_file.remove()
    assert not file.exists()
    assert link.is_symlink()


def test_v60_runas_gives_up_roots_rights(copy: Path) -> None:
    if os.geteuid() != 0:
        assert refused(copy, "--runas", "root")[0] == 20
        return
    code = (
        "import os, pwd\n"
        "from blobstore.cli.service import confine\n"
        "confine(None, 'nobody')\n"
        "print(*os.getresuid(), *os.getresgid(), *os.getgroups())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    nobody = pwd.getpwnam("nobody")
    expected = [nobody.pw_uid] * 3 + [nobody.pw_gid] * 4
    assert list(map(int, done.stdout.split())) == expected
    with vtpm_of(copy, "--runas", "root", *STARTED) as tpm:  # what root may do without harm
        assert tpm.end() == 0


def test_v61_the_log_goes_where_it_shall_and_nowhere_else(copy: Path, tmp_path: Path) -> None:
    def log(*options: str) -> str:
        file = tmp_path / "log"
        arguments = command(copy, "--key-file", key_of(copy), "-p", "1", *NOT_NEED_INIT)
        # What it logs is that the state is refused.
        done = subprocess.run(
            [*arguments, "--log", ",".join(options).replace("FILE", str(file))],
            env=environment(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 30
        assert done.stderr.count(b"libtpms does not start from this state") == 1
        return file.read_text() if file.exists() else ""

    with opened(copy) as store:
        store.delete(VOLATILE)
        store.register(VOLATILE, 65_551)
        store.put(PERMANENT, encode_state(PlainState(LOOKS_LIKE_A_STATE)))
    assert log("file=-") == ""
    once = log("file=FILE", "prefix=tpm: ")
    assert once.startswith("tpm: blobstore: libtpms does not start")
    assert log("file=FILE", "prefix=tpm: ") == once * 2
    assert log("file=FILE", "truncate") == once.replace("tpm: ", "")
    assert "NV" in log("file=FILE", "level=20", "truncate")  # libtpms's own


def test_v61_a_log_that_is_full_does_not_stop_a_tpm(image: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vtpm-") as directory:
        control = Path(directory, "ctrl")
        process = subprocess.Popen(
            [
                *command(image, "--key-file", key_of(image), *STARTED),
                f"--ctrl=type=unixio,path={control}",
                f"--server=type=unixio,path={directory}/data",
                "--log=file=/dev/full,level=20",
            ],
            stderr=subprocess.PIPE,
            env=environment(),
        )
        deadline = time.monotonic() + 30
        while not control.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.communicate(timeout=30)[1] == b""
        assert process.returncode == 0


def test_v63_a_daemon_can_be_used_when_its_start_returns(image: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vtpm-") as directory:
        base = Path(directory)
        pid, ctrl = base / "pid", base / "ctrl"
        arguments = [
            *command(image, "--key-file", key_of(image), *NOT_NEED_INIT, "--daemon"),
            *("--pid", f"file={pid}", "--ctrl", f"type=unixio,path={ctrl},mode=0600"),
            *("--server", f"type=unixio,path={base / 'data'}", "--log", f"file={base / 'log'}"),
        ]
        started = subprocess.run(arguments, capture_output=True, timeout=30, check=False)
        assert (started.returncode, started.stdout, started.stderr) == (0, b"", b"")
        number = int(pid.read_text())
        client = ControlClient(ctrl)
        assert ctrl.stat().st_mode & 0o777 == 0o600
        assert client.ask(1)[-2:] == b"\xff\xff"
        again = subprocess.run(arguments, capture_output=True, timeout=30, check=False)
        assert again.returncode == 23
        assert client.ask(3) == bytes(4)
        client.close()
        deadline = time.monotonic() + 10
        while pid.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert number > 1
