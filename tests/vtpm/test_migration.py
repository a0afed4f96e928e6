"""A TPM moves: by its state, with and without a key, to and from swtpm; and with its image."""

from __future__ import annotations

import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blobstore.foreign.encryption import StateKey
from formats.errors import FormatError, TruncatedImageError, UnsupportedError
from formats.swtpm import EncryptedState, PlainState, encode_state
from formats.swtpm_migration import decode_data, decode_transfer, encode_data, encode_transfer
from tests.support.cli import blobstore as blobstore_command
from tests.support.foreign import program
from tests.vtpm import commands
from tests.vtpm.support import (
    NOT_NEED_INIT,
    PERMANENT,
    STARTED,
    VOLATILE,
    ControlClient,
    DataClient,
    Vtpm,
    command,
    key_of,
    make_image,
    opened,
    serving,
    vtpm_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX = 0x1500016
PERMANENT_TYPE, VOLATILE_TYPE, SAVED_TYPE = 1, 2, 3
DIGEST = b"\x77" * 32


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The image of another host."""
    (tmp_path / "other").mkdir()
    return make_image(tmp_path / "other" / "image")


def use(tpm: Vtpm, data: bytes) -> None:
    """Give a started TPM something to keep, and something to remember while it runs."""
    client = tpm.connect()
    client.send(commands.nv_define(INDEX, len(data)))
    assert commands.code_of(client.send(commands.nv_write(INDEX, data))) == 0
    client.send(commands.pcr_extend(16, DIGEST))
    client.close()


def remembered(client: DataClient) -> tuple[bytes, bytes]:
    read = commands.data_of(client.send(commands.nv_read(INDEX, 8)))
    return read, client.send(commands.pcr_read(16))[-32:]


def state_of(tpm: Vtpm) -> tuple[list[tuple[int, bytes]], tuple[bytes, bytes]]:
    """Fetch the states as QEMU does, and what the TPM says of itself."""
    client = tpm.connect()
    before = remembered(client)
    client.close()
    ctrl = tpm.control()
    states = [ctrl.state(kind) for kind in (PERMANENT_TYPE, VOLATILE_TYPE, SAVED_TYPE)]
    ctrl.close()
    return states, before


def give(tpm: Vtpm, states: list[tuple[int, bytes]]) -> list[int]:
    """Give states in the order in which QEMU does; return all results."""
    ctrl = tpm.control()
    results = [ctrl.stop()]
    for kind, (_, state) in enumerate(states, start=1):
        results.append(ctrl.set_state(kind, state))
    results.append(ctrl.init(1))
    ctrl.close()
    return results


@pytest.mark.interop
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("way", ["ours-ours", "ours-swtpm", "swtpm-ours"])
def test_v30_v31_v32_a_running_tpm_moves(
    image: Path, other: Path, tmp_path: Path, way: str, encrypted: bool
) -> None:
    key = tmp_path / "migration-key"
    key.write_text("0x" + bytes(range(32)).hex())
    options = ["--migration-key", f"file={key},mode=aes-256-cbc"] if encrypted else []
    source, target = way.split("-")

    def place(name: str, path: Path) -> list[str]:
        if name == "ours":
            return command(path, "--key-file", key_of(path), *options)
        state = tmp_path / f"state-{path.parent.name}"
        state.mkdir()
        return [program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}", *options]

    with serving([*place(source, image), *STARTED]) as tpm:
        use(tpm, b"precious")
        states, before = state_of(tpm)
        assert [result for result, _ in states] == [0, 0, 0x800]
        assert (b"precious" in states[0][1]) is not encrypted
        ctrl = tpm.control()
        assert ctrl.ask(0xF) == struct.pack(">II", 0, 2 if encrypted else 0)
        ctrl.close()
    with serving(place(target, other)) as tpm:
        assert give(tpm, states) == [0, 0, 0, 0, 0]
        client = tpm.connect()
        assert remembered(client) == before
        client.close()
        tpm.process.kill()
        tpm.process.wait()
    if target == "ours":  # V34: what came is stored, and V8: not to be resumed twice
        with opened(other) as store:
            assert b"precious" in store.get(PERMANENT)
            assert VOLATILE not in store or store.section(VOLATILE).size is None


def test_v32_v33_what_is_refused_starts_nothing(image: Path, other: Path, tmp_path: Path) -> None:
    key = tmp_path / "migration-key"
    key.write_bytes(bytes(range(16)))
    wrong = tmp_path / "wrong-key"
    wrong.write_bytes(bytes(16))
    options = ["--migration-key", f"file={key},format=binary"]
    with vtpm_of(image, *options, *STARTED) as tpm:
        use(tpm, b"precious")
        (_, permanent), (_, volatile), _ = state_of(tpm)[0]
    with vtpm_of(other, *STARTED) as tpm:
        use(tpm, b"existing")
        ctrl = tpm.control()
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0xA  # V54: it runs
        assert ctrl.stop() == 0
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0xD  # no key
        assert ctrl.init() == 9
        ctrl.close()
    with vtpm_of(other, "--migration-key", f"file={wrong},format=binary") as tpm:
        ctrl = tpm.control()
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0x21  # another key
        assert ctrl.init() == 9
        ctrl.close()
    with vtpm_of(other, *options) as tpm:
        ctrl = tpm.control()
        assert ctrl.set_state(PERMANENT_TYPE, b"") == 3  # it would make a new TPM
        assert ctrl.set_state(PERMANENT_TYPE, volatile) == 3  # F13: something else
        assert ctrl.set_state(VOLATILE_TYPE, permanent) == 3
        assert ctrl.set_state(7, permanent) == 3
        damaged = bytearray(permanent)
        damaged[100] ^= 1
        assert ctrl.set_state(PERMANENT_TYPE, bytes(damaged)) == 0x21
        assert ctrl.init() == 9
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0
        assert ctrl.init() == 9  # V33: there is still half of what came
        assert ctrl.set_state(VOLATILE_TYPE, volatile) == 0
        assert ctrl.init() == 0
        client = tpm.connect()
        assert remembered(client)[0] == b"precious"
        client.close()
        ctrl.close()


def test_v32_an_empty_state_never_makes_a_new_tpm(image: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        use(tpm, b"precious")
        ctrl = tpm.control()
        assert ctrl.stop() == 0
        header_alone = encode_transfer(b"")
        for state in (b"", header_alone, encode_transfer(encode_data(PlainState(b"")))):
            assert ctrl.set_state(PERMANENT_TYPE, state) == 3
        assert ctrl.init() == 9
        ctrl.close()
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        assert remembered(client)[0] == b"precious"
        client.close()


def test_v51_nothing_is_allocated_for_a_state_that_is_too_large(image: Path) -> None:
    with vtpm_of(image) as tpm:
        ctrl = tpm.control()
        assert ctrl.ask(0xD, struct.pack(">III", 0, 1, (512 << 10) + 1) + b"x") == b""
        ctrl.close()
        ctrl = tpm.control()
        assert ctrl.set_state(VOLATILE_TYPE, bytes(512 << 10)) == 3
        ctrl.close()


class TestTransfer:
    """The form of a state on its way."""

    FIELDS = encode_data(PlainState(b"data of libtpms"))

    def test_v31_its_bytes(self) -> None:
        expected = bytes.fromhex("0201000a00040000002500040000001500010000000f")
        assert encode_transfer(self.FIELDS) == expected + b"data of libtpms"
        assert decode_transfer(expected + b"data of libtpms", "it") == self.FIELDS
        assert decode_data(self.FIELDS, "it") == PlainState(b"data of libtpms")

    @pytest.mark.parametrize("key_size", [16, 32])
    def test_v31_encrypted(self, key_size: int) -> None:
        key = StateKey(bytes(range(key_size)), "binary")
        transfer = encode_transfer(key.encrypt(PlainState(self.FIELDS)))
        assert transfer[5] == (0x06 if key_size == 16 else 0x16)
        found = decode_transfer(transfer, "it")
        assert isinstance(found, EncryptedState)
        assert key.decrypt(found).data == self.FIELDS

    def test_v32_other_bytes_are_refused(self) -> None:
        whole = encode_transfer(self.FIELDS)
        for size in range(len(whole)):
            with pytest.raises(TruncatedImageError):
                decode_transfer(whole[:size], "it")
        with pytest.raises(FormatError, match="on its way"):
            decode_transfer(encode_state(PlainState(b"x")), "it")
        encrypted = encode_state(StateKey(bytes(range(16)), "binary").encrypt(PlainState(b"x")))
        with pytest.raises(UnsupportedError):
            decode_transfer(encrypted, "it")
        # Byte 0 may be a later version that readers of this one read, too (F8).
        for at in range(1, len(whole) - len(b"data of libtpms")):
            damaged = bytearray(whole)
            damaged[at] ^= 0x40
            with pytest.raises((FormatError, UnsupportedError)):
                decode_data(_clear(decode_transfer(damaged, "it")), "it")


def _clear(fields: bytes | EncryptedState) -> bytes:
    assert isinstance(fields, bytes)
    return fields


# ------------------------------------------------------- shared storage

OUTGOING = ("--migration", "release-lock-outgoing")
INCOMING = ("--migration", "release-lock-outgoing,incoming")


@pytest.fixture
def source(image: Path) -> Iterator[Vtpm]:
    """A TPM that gives its image up when its state was fetched."""
    with vtpm_of(image, *OUTGOING, *STARTED) as tpm:
        use(tpm, b"precious")
        yield tpm


def test_v41_v44_an_image_on_shared_storage_changes_hands(image: Path, source: Vtpm) -> None:
    with vtpm_of(image, *INCOMING) as target:
        states, before = state_of(source)
        assert give(target, states)[-1] == 0
        client = target.connect()
        assert remembered(client) == before
        assert commands.code_of(client.send(commands.nv_write(INDEX, b"went on!"))) == 0
        client.close()
        # The source neither runs nor writes: not on a command, and not at its end.
        client = source.connect()
        assert client.send(commands.get_random(4)) == b""
        client.close()
        assert source.process.wait(timeout=30) == 23
        assert f"process {target.process.pid}" in source.said()
        client = target.connect()
        assert remembered(client)[0] == b"went on!"
        client.close()
        # And on to a third one.
        with vtpm_of(image, *INCOMING) as third:
            states, before = state_of(target)
            assert give(third, states)[-1] == 0
            client = third.connect()
            assert remembered(client) == before
            client.close()
    with opened(image) as store:
        assert store.verify().ok


def test_v42_a_migration_that_fails_leaves_the_tpm_where_it_was(image: Path, source: Vtpm) -> None:
    with vtpm_of(image, *INCOMING):
        before = state_of(source)[1]
        # The target goes away without having started its TPM.
    ctrl = source.control()
    assert ctrl.ask(0x13, struct.pack(">I", 0)) == bytes(4)
    ctrl.close()
    client = source.connect()
    assert remembered(client) == before
    assert commands.code_of(client.send(commands.nv_write(INDEX, b"went on!"))) == 0
    client.close()
    assert source.end() == 0
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        assert remembered(client)[0] == b"went on!"
        client.close()


def test_v42_a_command_takes_the_image_again_by_itself(source: Vtpm) -> None:
    before = state_of(source)[1]
    client = source.connect()
    assert remembered(client) == before
    client.close()


def test_v43_an_old_state_never_overwrites_a_newer_one(image: Path, source: Vtpm) -> None:
    state_of(source)
    with vtpm_of(image, *STARTED) as target:
        client = target.connect()
        assert commands.code_of(client.send(commands.nv_write(INDEX, b"went on!"))) == 0
        client.close()
        assert target.end() == 0
    ctrl = source.control()
    assert ctrl.ask(0x13, struct.pack(">I", 0)) == struct.pack(">I", 9)
    ctrl.close()
    client = source.connect()
    assert client.send(commands.nv_write(INDEX, b"too late")) == b""
    client.close()
    assert source.process.wait(timeout=30) == 67
    assert "V43" in source.said()
    with vtpm_of(image, *STARTED) as target:
        client = target.connect()
        assert remembered(client)[0] == b"went on!"
        client.close()


def test_v44_where_a_tpm_is_to_come_none_is_made(image: Path, other: Path) -> None:
    with vtpm_of(other, *INCOMING) as tpm:
        ctrl = tpm.control()
        assert ctrl.init() == 9
        assert "V44" in tpm.said()
        ctrl.close()
    with opened(other, read_only=True) as store:
        assert store.section(PERMANENT).size is None
    # One that comes with its state is taken, also into an image that never had one.
    with vtpm_of(image, *STARTED) as tpm:
        use(tpm, b"precious")
        states, before = state_of(tpm)
    with vtpm_of(other, *INCOMING) as tpm:
        assert give(tpm, states)[-1] == 0
        client = tpm.connect()
        assert remembered(client) == before
        client.close()


def test_v44_an_image_that_is_being_written_is_waited_for(image: Path, source: Vtpm) -> None:
    """Its TPM is known by its section, whatever the source writes meanwhile."""
    stop = threading.Event()

    def write() -> None:
        client = source.connect()
        number = 0
        while not stop.is_set():
            number += 1
            client.send(commands.nv_write(INDEX, number.to_bytes(8, "big")))
        client.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            with vtpm_of(image, *INCOMING) as target:
                ctrl = target.control()
                assert ctrl.ask(1)[-3:] == b"\x01\xff\xff"  # a TPM 2.0
                assert ctrl.ask(0x13, bytes(4)) == struct.pack(">I", 9)  # not given up
                ctrl.close()
    finally:
        stop.set()
        writer.join()


def test_v44_an_incoming_tpm_12_is_known_by_its_section(image: Path) -> None:
    with vtpm_of(image, "--tpm1.2", *STARTED) as source, vtpm_of(image, *INCOMING) as target:
        ctrl = target.control()
        assert ctrl.ask(1)[-3:] == b"\x01\x7f\xff"
        ctrl.close()
        assert source.end() == 0


def test_v42_init_waits_for_an_image_that_is_given_up_meanwhile(image: Path, source: Vtpm) -> None:
    client = source.connect()
    before = remembered(client)
    client.close()
    with vtpm_of(image, *INCOMING) as target:
        ctrl = target.control()
        ctrl.socket.sendall(struct.pack(">II", 2, 0))
        time.sleep(0.3)
        states, _ = state_of(source)
        assert ctrl.socket.recv(100) == bytes(4)
        ctrl.close()
        assert give(target, states)[-1] == 0
        client = target.connect()
        assert remembered(client) == before
        client.close()


def test_v40_keys_are_rotated_and_backups_made_while_a_tpm_runs(
    image: Path, source: Vtpm, tmp_path: Path
) -> None:
    new = tmp_path / "new-key"
    new.write_bytes(b"another passphrase")
    change = ("--key-file", key_of(image), "--new-key-file", new)
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    assert blobstore_command("key", "change", image, *quick, *change).returncode == 0
    copied = tmp_path / "copied"
    assert blobstore_command("backup", image, copied, "--key-file", new).returncode == 0
    client = source.connect()
    assert commands.code_of(client.send(commands.nv_write(INDEX, b"went on!"))) == 0
    client.close()
    with serving(command(copied, "--key-file", new, *STARTED)) as tpm:
        client = tpm.connect()
        assert remembered(client)[0] == b"precious"
        client.close()


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
