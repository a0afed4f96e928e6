"""A server is killed while clients write: what was flushed is there, in order (N27).

A client writes numbered blocks into a window, one after the other and again from the
start, and flushes now and then. After the kill the window holds what some first part of
the writes made, and not less than what came before the last flush that was answered.
"""

from __future__ import annotations

import random
import ssl
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

import blobstore
import luks
from formats.nbd.numbers import CommandFlag
from tests.nbd.support import Client
from tests.support.effort import cases
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"kill test"
BLOCKS, BLOCK = 61, 512

SERVER = """
import sys, threading
from pathlib import Path
import blobstore
from tests.nbd.test_kill import SECRET
store = blobstore.open(sys.argv[1], SECRET)
tls = blobstore.NbdTls.from_directory(sys.argv[3]) if sys.argv[3:] else None
blobstore.NbdServer(Path(sys.argv[2]), blobstore.NbdSections(store), tls=tls).start()
print("ready", flush=True)
threading.Event().wait()
"""


def block(number: int) -> bytes:
    """Return what write ``number`` writes."""
    return random.Random(number).randbytes(BLOCK)


def expected(writes: int) -> bytes:
    """Return the window after so many writes."""
    content = [bytes(BLOCK)] * BLOCKS
    for number in range(max(0, writes - BLOCKS), writes):
        content[number % BLOCKS] = block(number)
    return b"".join(content)


def numbered(content: bytes, low: int, high: int) -> int | None:
    """Return after how many writes the window is so, from ``low`` to ``high``."""
    return next((n for n in range(high, low - 1, -1) if expected(n) == content), None)


class Tls(NamedTuple):
    """The directory of a server, and the side of its client."""

    directory: Path
    context: ssl.SSLContext


def make_tls(parent: Path) -> Tls:
    authority = Authority()
    directory, client = authority.server(parent / "server"), authority.client(parent / "client")
    context = ssl.create_default_context(cafile=client / "ca-cert.pem")
    context.load_cert_chain(client / "client-cert.pem", client / "client-key.pem")
    return Tls(directory, context)


def kills(image: Path, socket: Path, tls: Tls | None) -> Iterator[tuple[int, int]]:
    """Run the server and kill it again and again; yield writes flushed, and writes sent."""
    generator = random.Random(20261129)
    done = 0
    while True:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", SERVER, str(image), str(socket)),
                *([tls.directory] if tls else []),
            ],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process.stdout as said:
            assert said.readline() == b"ready\n"
            # By the number of writes: on a busy machine a time may pass without any.
            after = done + generator.randrange(2, 100)
            flushed = sent = done
            killed = False
            with Client(socket) as client:
                client.begin("w", tls=tls and tls.context)
                try:
                    while True:
                        if sent >= after and not killed:
                            # In the middle of one of the next; it may still answer a few.
                            threading.Timer(generator.uniform(0, 0.01), process.kill).start()
                            killed = True
                        fua = generator.random() < 0.1
                        data, offset = block(sent), sent % BLOCKS * BLOCK
                        sent += 1
                        reply = client.write(offset, data, flags=CommandFlag.FUA if fua else 0)
                        assert reply.error == 0
                        if not fua and generator.random() < 0.2:
                            assert client.flush().error == 0
                            fua = True
                        if fua:
                            flushed = sent
                except EOFError:
                    pass
                finally:
                    process.kill()
        process.wait()
        yield flushed, sent
        with blobstore.open(image, SECRET, read_only=True) as store:
            done = numbered(store.get("w"), flushed, sent) or 0


@pytest.mark.parametrize("within_tls", [False, True])
def test_n27_no_flushed_write_is_lost_when_the_server_is_killed(
    tmp_path: Path, within_tls: bool
) -> None:
    image = tmp_path / "image"
    with blobstore.create(image, {}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)) as store:
        store.register("w", BLOCKS * BLOCK, kind="window")
        store.put("w", expected(0))
    rounds = cases(8, 300)
    tls = make_tls(tmp_path) if within_tls else None
    total = 0
    for turn, (flushed, sent) in enumerate(kills(image, tmp_path / "s", tls), 1):
        with blobstore.open(image, SECRET, read_only=True) as store:
            found = numbered(store.get("w"), flushed, sent)
            assert found is not None, (turn, flushed, sent)
        total = found
        if turn == rounds:
            break
    with blobstore.open(image, SECRET) as store:
        assert store.verify().ok
    assert total > rounds
