"""Windows in place behind NBD: as fast as a disk, and no more than one (N50 to N52)."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.nbd.exports import NbdSections
from blobstore.nbd.server import NbdServer
from formats.nbd.numbers import CommandFlag, OptionReply
from tests.nbd.support import Client
from tests.support.devices import Flush, RecordingDevice, Write
from tests.support.effort import cases
from tests.support.stores import image, open_store
from tests.support.windows import window_spec, written_bytes

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 100_000


@pytest.mark.parametrize("fua", [False, True])
def test_n50_a_flush_writes_what_was_written_and_nothing_else(tmp_path: Path, fua: bool) -> None:
    device = RecordingDevice(image([window_spec("w", SIZE, bytes(SIZE))]))
    with (
        open_store(device) as store,
        NbdServer(tmp_path / "s", NbdSections(store, in_place=["w"])) as server,
        Client(server.address) as client,
    ):
        client.begin("w")
        before = store.section("w").generation
        written_bytes(device)
        assert client.write(1000, b"x" * 4096, flags=CommandFlag.FUA if fua else 0).error == 0
        if not fua:
            assert client.flush().error == 0
        assert [type(event) for event in device.log] == [Write, Flush]
        assert written_bytes(device) == 4096
        assert store.section("w").generation == before
        assert store.section("w").crc32 is None
        client.close()
        server.stop()
        assert store.get("w")[1000:5096] == b"x" * 4096
        assert store.section("w").crc32 is not None
        assert store.verify().ok


def test_n51_what_is_unverified_is_exported_only_on_request(tmp_path: Path) -> None:
    device = RecordingDevice(image([window_spec("w", SIZE, b"old")]))
    store = open_store(device)
    with (
        NbdServer(tmp_path / "s", NbdSections(store, in_place=["w"])) as server,
        Client(server.address) as client,
    ):
        client.begin("w")
        assert client.write(0, b"new", flags=CommandFlag.FUA).error == 0
        left = bytes(device.content)  # as after a crash
    with open_store(left) as store:
        sections = NbdSections(store, in_place=["w"])
        with NbdServer(tmp_path / "s", sections) as server, Client(server.address) as client:
            with pytest.raises(LookupError) as caught:
                client.begin("w")
            assert caught.value.args[0][0] == OptionReply.ERR_PLATFORM
            assert b"unverified" in caught.value.args[0][1]
    for in_place in (["w"], []):
        with open_store(left) as store:
            sections = NbdSections(store, in_place=in_place, accept_unverified=True)
            with NbdServer(tmp_path / "s", sections) as server, Client(server.address) as client:
                client.begin("w")
                assert client.read(0, 4).data == b"new\0"
                assert client.write(4, b"more", flags=CommandFlag.FUA).error == 0
                client.close()
                server.stop()
            assert store.get("w")[:8] == b"new\0more"


def test_n52_a_copy_made_meanwhile_has_it_unverified(tmp_path: Path) -> None:
    with (
        open_store(image([window_spec("w", SIZE, b"before")])) as store,
        NbdServer(tmp_path / "s", NbdSections(store, in_place=["w"])) as server,
        Client(server.address) as client,
    ):
        client.begin("w")
        assert client.write(0, b"meanwhile").error == 0
        with server.at_rest():
            copy = store.payload().read(0, store.payload().size)
    with open_store(copy, read_only=True) as copied:
        with pytest.raises(blobstore.CorruptBlobError, match="unverified"):
            copied.get("w")
        assert copied.get("w", previous=True).rstrip(b"\0") == b"before"
        with copied.window("w", accept_unverified=True) as window:
            assert window.read(0, 9) == b"meanwhile"


# A server that is killed: what was flushed is there, and the rest is old or new.

SECRET = b"kill test"
BLOCKS, BLOCK = 61, 512

SERVER = """
import sys, threading
from pathlib import Path
import blobstore
store = blobstore.open(sys.argv[1], b"kill test", direct=True)
sections = blobstore.NbdSections(store, in_place=["w"], accept_unverified=True)
blobstore.NbdServer(Path(sys.argv[2]), sections).start()
print("ready", flush=True)
threading.Event().wait()
"""


def numbered(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


def test_n50_no_flushed_write_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with blobstore.create(path, {}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)) as store:
        store.register("w", BLOCKS * BLOCK, kind="window")
    generator = random.Random(50)
    durable = [bytes(BLOCK)] * BLOCKS
    number = 0
    for _ in range(cases(6, 200)):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, path, tmp_path / "s"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        since: dict[int, set[bytes]] = {}
        with process.stdout as said, Client(_ready(said, tmp_path / "s")) as client:
            until, killed = time.monotonic() + generator.uniform(0.0, 0.2), False
            client.begin("w")
            try:
                while True:
                    if time.monotonic() > until and not killed:
                        process.kill()
                        killed = True
                    at, data = generator.randrange(BLOCKS), numbered(number)
                    number += 1
                    since.setdefault(at, set()).add(data)
                    assert client.write(at * BLOCK, data).error == 0
                    since[at] = {data}  # it is seen by all, and nothing older comes back
                    if generator.random() < 0.2:
                        assert client.flush().error == 0
                        for place, (last,) in since.items():
                            durable[place] = last
                        since.clear()
            except EOFError:
                pass
            finally:
                process.kill()
        process.wait()
        with (
            blobstore.open(path, SECRET, read_only=True, direct=True) as store,
            store.window("w", accept_unverified=True) as window,
        ):
            for at in range(BLOCKS):
                found = window.read(at * BLOCK, BLOCK)
                assert found in {durable[at]} | since.get(at, set())
                durable[at] = found
    assert number > 10


def _ready(said: object, path: Path) -> Path:
    assert said.readline() == b"ready\n"  # type: ignore[attr-defined]
    return path
