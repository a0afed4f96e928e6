"""When a TPM writes, and what (V8, V12 to V16)."""

from __future__ import annotations

import random
import re
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import QUICK, fails, succeeds
from tests.support.foreign import program
from tests.vtpm import commands
from tests.vtpm.support import (
    INDEX,
    NOT_NEED_INIT,
    PERMANENT,
    STARTED,
    VOLATILE,
    command,
    key_of,
    opened,
    reads,
    serving,
    vtpm_of,
)

if TYPE_CHECKING:
    from pathlib import Path


def generation(image: Path) -> int:
    with opened(image, read_only=True, lock=False) as store:
        return store.digest().generation


def test_v16_only_commands_that_change_something_write(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        client = tpm.connect()
        before = generation(copy)
        for _ in range(200):
            client.send(commands.get_random(16))
        client.send(commands.pcr_extend(16, bytes(32)))
        client.send(commands.create_rsa_key(1024))
        client.send(commands.nv_write(INDEX, b"precious"))  # what is there already
        time.sleep(2)  # libtpms's clock runs, and is not stored
        client.send(commands.get_random(16))
        assert generation(copy) == before
        client.send(commands.nv_write(INDEX, b"changed!"))
        assert generation(copy) == before + 1
        client.close()


@pytest.mark.interop
def test_v16_a_response_is_sent_when_the_image_was_synchronised(copy: Path, tmp_path: Path) -> None:
    traced = tmp_path / "trace"
    strace = [program("strace"), "-f", "-qq", "-o", traced, "-e"]
    calls = "trace=recvfrom,sendto,pwrite64,pwritev,fsync,fdatasync"
    arguments = [*strace, calls, *command(copy, "--key-file", key_of(copy), *STARTED)]
    with serving(arguments) as tpm:
        client = tpm.connect()
        for text in (b"changed!", b"and more"):
            assert commands.code_of(client.send(commands.nv_write(INDEX, text))) == 0
        client.send(commands.get_random(8))
        client.close()
        ctrl = tpm.control()
        ctrl.ask(3)
        ctrl.close()
        tpm.process.wait(timeout=30)
    found = re.findall(r"^\d+ +(\w+)\(", traced.read_text(), re.MULTILINE)
    short = {"recvfrom": "r", "sendto": "s", "fdatasync": "f", "fsync": "f"}
    order = "".join(short.get(name, "w") for name in found)
    commands_seen = re.findall(r"r(w*f?)s", order)
    # Two that write, flush once and then answer; one that does neither; SHUTDOWN on the other
    # channel ends in the flushes of TPM2_Shutdown.
    assert [re.sub("w+", "w", one) for one in commands_seen[:3]] == ["wf", "wf", ""], order


@pytest.mark.slow
def test_v12_a_tpm_that_is_full_starts_again(image: Path) -> None:
    """Its state is larger than what libtpms's own allocator gives."""
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        written = 0
        for number in range(200):
            index = 0x1000000 + number
            if commands.code_of(client.send(commands.nv_define(index, 2048))):
                break
            data = random.Random(number).randbytes(2048)
            for offset in (0, 1024):
                piece = data[offset : offset + 1024]
                assert commands.code_of(client.send(commands.nv_write(index, piece, offset))) == 0
            written += 1
        client.close()
        assert written > 60
        assert tpm.end() == 0
    with opened(image, read_only=True) as store:
        assert 131_072 < len(store.get(PERMANENT)) < 256 << 10
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        for number in (0, written - 1):
            read = client.send(commands.nv_read(0x1000000 + number, 1024))
            assert commands.data_of(read) == random.Random(number).randbytes(2048)[:1024]
        client.close()


def test_v13_a_volatile_state_ends_with_the_permanent_state_it_belongs_to(copy: Path) -> None:
    with vtpm_of(copy, "--flags", "startup-clear,disable-auto-shutdown") as tpm:
        client = tpm.connect()
        client.send(commands.pcr_extend(16, b"\x11" * 32))
        tpm.ioctl("-v")
        with opened(copy, read_only=True, lock=False) as store:
            assert store.section(VOLATILE).size
        client.send(commands.get_random(8))
        with opened(copy, read_only=True, lock=False) as store:
            assert store.section(VOLATILE).size
        client.send(commands.nv_write(INDEX, b"changed!"))
        with opened(copy, read_only=True, lock=False) as store:
            assert VOLATILE not in store
        tpm.ioctl("-v")  # and there is room for the next one
        client.close()
        assert tpm.end() == 0
    with vtpm_of(copy, *NOT_NEED_INIT) as tpm:  # no startup: it goes on
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"changed!"
        client.close()


def test_v8_init_forgets_the_volatile_state_if_asked(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        tpm.ioctl("-v")
        ctrl = tpm.control()
        assert ctrl.stop() == 0
        assert ctrl.init() == 0  # kept
        assert ctrl.init(1) == 0  # forgotten
        with opened(copy, read_only=True, lock=False) as store:
            assert VOLATILE not in store
        ctrl.close()
        assert tpm.end() == 0


def test_v14_a_tpm_12_saves_its_state_and_resumes_from_it(image: Path) -> None:
    save = struct.pack(">HII", 0xC1, 10, 0x98)
    extend = struct.pack(">HIII", 0xC1, 34, 0x14, 10) + b"\x11" * 20
    read = struct.pack(">HIII", 0xC1, 14, 0x15, 10)
    saved = "tpm-save-state"
    with vtpm_of(image, "--tpm1.2", *STARTED) as tpm:
        client = tpm.connect()
        assert commands.code_of(client.send(extend)) == 0
        extended = client.send(read)[10:]
        assert commands.code_of(client.send(save)) == 0
        with opened(image, read_only=True, lock=False) as store:
            assert store.section(saved).size
            assert store.section(saved).type == "tpm12-savestate"
        client.close()
        tpm.process.kill()
        tpm.process.wait()
    with vtpm_of(image, "--flags", "not-need-init,startup-state") as tpm:
        client = tpm.connect()
        assert client.send(read)[10:] == extended != bytes(20)
        with opened(image, read_only=True, lock=False) as store:
            assert saved not in store  # it was for one time
        client.close()
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        assert client.send(read)[10:] == bytes(20)
        client.close()


@pytest.mark.parametrize("kind", ["qcow2-luks", "luks1-in-qcow2", "luks2-in-qcow2"])
def test_a_tpm_lives_in_a_qcow2_image_and_its_snapshots(
    copy: Path, tmp_path: Path, kind: str
) -> None:
    image, key = tmp_path / "qcow2", ("--key-file", key_of(copy))
    succeeds("convert", copy, image, "--to", kind, *key, "--new-key-file", key_of(copy), *QUICK)
    reads(image)
    succeeds("snapshot", "create", image, "before")
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        client.send(commands.nv_write(INDEX, b"changed!"))
        client.close()
        assert fails("snapshot", "apply", image, "before") == 23
        tpm.process.kill()  # what was answered is durable
    reads(image, b"changed!")
    succeeds("snapshot", "apply", image, "before")
    reads(image)
