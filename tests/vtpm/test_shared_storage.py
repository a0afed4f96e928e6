"""An image on shared storage changes hands with its TPM (V40 to V44)."""

from __future__ import annotations

import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import blobstore as blobstore_command
from tests.vtpm import commands
from tests.vtpm.moving import (
    give,
    remembered,
    state_of,
    use,
)
from tests.vtpm.support import (
    INDEX,
    PERMANENT,
    STARTED,
    Vtpm,
    command,
    key_of,
    opened,
    serving,
    vtpm_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
