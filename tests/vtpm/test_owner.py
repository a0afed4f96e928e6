"""`blobstore vtpm` is the owner of its image: others reach the rest of it (V79, V80)."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from blobstore.errors import BlobNotFoundError
from blobstore.image.place import entry_of
from blobstore.owner import StoreClient, find_owner
from formats.errors import DeviceBusyError
from tests.vtpm import commands
from tests.vtpm.moving import give, remembered, state_of, use
from tests.vtpm.support import (
    INDEX,
    PERMANENT,
    STARTED,
    VOLATILE,
    command,
    environment,
    key_of,
    opened,
    vtpm_of,
)

if TYPE_CHECKING:
    from pathlib import Path


OUTGOING = ("--migration", "release-lock-outgoing")
INCOMING = ("--migration", "release-lock-outgoing,incoming")


@pytest.fixture
def image(image: Path) -> Path:
    """An image with something beside its TPM."""
    with opened(image) as store:
        store.register("other", 5000)
        store.put("other", b"before")
    return image


def found(image: Path) -> StoreClient:
    client = find_owner(image)
    assert client is not None
    return client


def verb(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a verb that can find the owner."""
    return subprocess.run(
        [sys.executable, "-m", "blobstore", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )


def test_v79_verbs_reach_the_rest_of_the_image_of_a_tpm(image: Path, runtime: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        assert verb("get", image, "other").stdout == b"before"
        assert verb("put", image, "other", "-", stdin=b"meanwhile").returncode == 0
        assert b"tpm2-permall" in verb("ls", image).stdout
        assert (
            f"process {tpm.process.pid}".encode()
            in verb("ls", image, "--direct", "--key-file", key_of(image)).stderr
        )
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8))
        assert commands.code_of(client.send(commands.nv_write(INDEX, b"precious"))) == 0
        client.close()
        assert tpm.end() == 0
    assert list(runtime.iterdir()) == []
    with opened(image) as store:
        assert store.get("other") == b"meanwhile"
        assert store.verify().ok


def test_v80_its_own_sections_are_not_changed_by_others(image: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm, found(image) as client:
        assert client.get(PERMANENT)
        with pytest.raises(DeviceBusyError, match="O100"):
            client.put(PERMANENT, b"x")
        with pytest.raises(DeviceBusyError, match="O100"):
            client.delete(VOLATILE)
        with pytest.raises(DeviceBusyError, match="O100"):
            client.rename("other", "tpm-save-state")
        assert verb("rm", image, PERMANENT).returncode == 23
        tpm.tpm2("getrandom", "4")


def test_v80_sections_that_vanish_nevertheless_do_not_make_a_new_tpm(image: Path) -> None:
    """As if another program did it: through a name that the owner does not protect."""
    with vtpm_of(image, "--name", "x", *STARTED) as tpm:
        use(tpm, b"precious")
        assert tpm.end() == 0
    script = (
        "import sys, blobstore\n"
        "from blobstore import vtpm\n"
        "store = blobstore.open(sys.argv[1], open(sys.argv[2], 'rb').read())\n"
        "tpm = vtpm.Tpm(vtpm.StoreNvram(store, 'x'))\n"
        "assert tpm.start() == 0\n"
        "tpm.stop()\n"
        "store.delete('x-permanent-state')\n"
        "try:\n"
        "    tpm.start()\n"
        "except blobstore.BlobNotFoundError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, image, key_of(image)],
        capture_output=True,
        env=environment(),
        check=False,
    )
    assert done.stdout == b"refused\n", done.stderr.decode()
    with opened(image) as store, pytest.raises(BlobNotFoundError):
        store.get("x-permanent-state")


def test_v79_the_entry_goes_and_comes_with_the_image(image: Path) -> None:
    entry = entry_of(image)
    assert entry is not None
    with vtpm_of(image, *OUTGOING, *STARTED) as source, vtpm_of(image, *INCOMING) as target:
        use(source, b"precious")
        with found(image) as client:
            assert client.owner is not None
            assert client.owner[0] == source.process.pid
            client.put("other", b"by the source")
        states, before = state_of(source)
        assert not entry.exists()
        assert find_owner(image) is None
        assert give(target, states)[-1] == 0
        with found(image) as client:
            assert client.owner is not None
            assert client.owner[0] == target.process.pid
            assert client.get("other") == b"by the source"
            client.put("other", b"by the target")
        data = target.connect()
        assert remembered(data) == before
        data.close()
        # The source ends, and leaves the other one's entry alone.
        assert source.end() == 0
        assert entry.exists()
        assert target.end() == 0
        assert not entry.exists()
    with opened(image) as store:
        assert store.get("other") == b"by the target"


def test_v79_a_migration_that_fails_brings_the_entry_back(image: Path) -> None:
    with vtpm_of(image, *OUTGOING, *STARTED) as source:
        use(source, b"precious")
        state_of(source)
        assert find_owner(image) is None
        client = source.connect()
        remembered(client)  # takes the image again (V42)
        client.close()
        with found(image) as other:
            other.put("other", b"again")


def test_v79_a_client_that_waits_does_not_hold_up_a_migration(image: Path) -> None:
    with vtpm_of(image, *OUTGOING, *STARTED) as source:
        use(source, b"precious")
        with found(image) as idle, found(image) as other:
            assert idle.get("other") == b"before"
            state_of(source)
            with opened(image) as store:  # it is free
                store.put("other", b"by another")
            del other


def test_v79_a_runtime_directory_of_others_is_not_used(image: Path, runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    with vtpm_of(image, *STARTED) as tpm:
        tpm.tpm2("getrandom", "4")
        assert "others can write to the runtime directory" in tpm.said()
        assert find_owner(image) is None
        assert tpm.end() == 0


def test_v79_daemons_are_owners_when_the_one_that_was_started_ends(
    image: Path, tmp_path: Path
) -> None:
    ctrl, pid = tmp_path / "c", tmp_path / "pid"
    options = (
        "--daemon",
        "--seccomp",
        "action=none",
        "--runas",
        pwd.getpwuid(os.geteuid()).pw_name,
    )
    where = ("--ctrl", f"type=unixio,path={ctrl}", "--pid", f"file={pid}")
    subprocess.run(
        command(image, "--key-file", key_of(image), *options, *where),
        env=environment(),
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    process = int(pid.read_text())
    try:
        with found(image) as client:
            assert client.owner is not None
            assert client.owner[0] == process
            client.put("other", b"by a client")
    finally:
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while pid.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_v79_a_stale_entry_is_replaced(image: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        tpm.process.kill()
        tpm.process.wait()
    assert find_owner(image) is None
    with vtpm_of(image, *STARTED), found(image) as client:
        assert client.get("other") == b"before"
