"""A mounted directory as one front of several (O195 to O199, M57)."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import ConfigError
from blobstore.owner import MountFront, Owner, ServeConfig, load_serve_config
from formats.errors import ArgumentError, DeviceBusyError, ReadOnlyError
from tests.support.mounts import MountProcess, refused, wait_for
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.fixture
def owner(image: Path) -> Iterator[Owner]:
    with blobstore.open(image, direct=True) as store:
        store.register("w", 4096, "window")
        yield Owner(store, image)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_o195_a_table_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        '[[mount]]\ndirectory = "/mnt/tpm"\nlayout = "swtpm"\ngrowth = "never"\nmode = 0o640\n'
        '[[mount]]\nname = "other"\ndirectory = "/mnt/other"\ntemporary = ["*.new"]\n'
    )
    first, second = load_serve_config(file).mount
    assert (first.layout, first.mode) == ("swtpm", 0o640)
    assert second.temporary == ("*.new",)
    file.write_text('[[mount]]\ndirectory = "/mnt/tpm"\nlayout = "flat"\n')
    with pytest.raises(ConfigError, match="layout"):
        load_serve_config(file)
    with pytest.raises(ArgumentError, match="two fronts"):
        ServeConfig(mount=(first, first))
    with pytest.raises(ArgumentError, match="memory"):
        MountFront(directory="x", memory=10)
    with pytest.raises(ArgumentError, match="directory"):
        MountFront(directory="")
    with pytest.raises(ArgumentError, match="name"):
        MountFront(directory="x", layout=first.layout, tpm="x" * 200)


def test_o198_at_one_moment_drafts_are_not_part_of_it(owner: Owner, directory: Path) -> None:
    running = MountFront(directory=str(directory)).start(owner, {})
    try:
        draft = os.open(directory / "a", os.O_WRONLY)
        os.write(draft, b"NEW")
        window = os.open(directory / "w", os.O_WRONLY)
        os.write(window, b"window")
        with owner.at_rest():
            assert owner.store.get("a") == b"old a"
            assert owner.store.get("w")[:6] == b"window"
            waiting = threading.Thread(target=(directory / "b").write_bytes, args=(b"later",))
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
        waiting.join(10)
        os.close(draft)
        os.close(window)
        assert owner.store.get("a") == b"NEW a"
        assert owner.store.get("b") == b"later"
    finally:
        owner.remove(running)
        running.stop()
    assert not os.path.ismount(directory)


def test_o198_a_released_image_is_only_read(owner: Owner, directory: Path) -> None:
    running = MountFront(directory=str(directory)).start(owner, {})
    try:
        window = os.open(directory / "w", os.O_RDWR)
        os.write(window, b"window")
        owner.release()
        assert (directory / "a").read_bytes() == b"old a"
        assert os.pread(window, 6, 0) == b"window"
        with refused(errno.EROFS):
            os.write(window, b"x")
        with refused(errno.EROFS):
            os.open(directory / "a", os.O_WRONLY)
        with refused(errno.EROFS):
            os.unlink(directory / "a")
        with pytest.raises(ReadOnlyError):
            owner.store.put("a", b"x")
        owner.take_over()
        os.pwrite(window, b"WIN", 0)
        os.close(window)
        (directory / "a").write_bytes(b"new a")
        assert owner.store.get("w")[:6] == b"WINdow"
        assert owner.store.get("a") == b"new a"
    finally:
        owner.remove(running)
        running.stop()


def test_m60_o199_a_hand_over_that_fails_is_only_a_pause(owner: Owner, directory: Path) -> None:
    running = MountFront(directory=str(directory)).start(owner, {})
    try:
        kept = os.open(directory / "a", os.O_RDWR)
        window = os.open(directory / "w", os.O_RDWR)
        owner.release(waiting=True)
        assert running.pass_on() is not None
        waiting = threading.Thread(target=os.write, args=(kept, b"NEW"))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        owner.take_over()
        waiting.join(10)
        os.close(kept)
        os.write(window, b"window")
        os.close(window)
        assert (directory / "a").read_bytes() == b"NEW a"
        assert owner.store.get("w")[:6] == b"window"
    finally:
        owner.remove(running)
        running.stop()
    assert not os.path.ismount(directory)


def test_m63_to_name_who_has_the_image_asks_nothing_of_the_directory(
    owner: Owner, image: Path, directory: Path
) -> None:
    """Who asks waits, and the directory may be waiting for the one who asks."""
    running = MountFront(directory=str(directory)).start(owner, {})
    program = "import sys; file = open(sys.argv[1]); print(1, flush=True); input()"
    user = subprocess.Popen(
        [sys.executable, "-c", program, directory / "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert user.stdout is not None
        user.stdout.readline()
        owner.release(waiting=True)
        failures: list[BaseException] = []

        def take() -> None:
            try:
                owner.take_over()
            except DeviceBusyError as error:
                failures.append(error)

        with blobstore.open(image, direct=True):
            taking = threading.Thread(target=take, daemon=True)
            taking.start()
            taking.join(10)
            waits = taking.is_alive()
            if waits:
                subprocess.run(["umount", "-f", directory], check=False)  # ends what waits
        assert not waits
        assert len(failures) == 1
        owner.take_over()
        assert (directory / "a").read_bytes() == b"old a"
    finally:
        user.communicate(b"\n")
        owner.remove(running)
        running.stop()


def test_m62_a_directory_that_the_next_owner_cannot_have_is_mounted_again(
    owner: Owner, directory: Path
) -> None:
    running = MountFront(directory=str(directory)).start(owner, {})
    try:
        kept = os.open(directory / "a", os.O_RDWR)
        owner.release(waiting=True)
        running.withhold()
        assert not os.path.ismount(directory)
        owner.take_over()
        assert os.path.ismount(directory)
        assert (directory / "a").read_bytes() == b"old a"
        os.write(kept, b"NEW")
        os.close(kept)
        assert (directory / "a").read_bytes() == b"NEW a"
        # What programs have open of the first directory is not passed on with the second.
        owner.release(waiting=True)
        assert running.pass_on() is not None
        owner.take_over()
    finally:
        owner.remove(running)
        running.stop()
    assert not os.path.ismount(directory)


def test_m62_a_successor_that_says_otherwise_mounts_it_anew(
    image: Path, runtime: Path, directory: Path
) -> None:
    before = MountProcess(image, directory, verb="serve")
    kept = os.open(directory / "a", os.O_RDWR)
    after = OwnerProcess(
        image, runtime, "--mount", directory, "--mount-new-file", "4K", "--replace"
    )
    assert before.ended()[0] == 0
    with refused(errno.ENOTCONN):
        os.write(kept, b"x")
    (directory / "b").write_bytes(b"after")
    assert after.end()[0] == 0
    assert not os.path.ismount(directory)


def test_o196_what_belongs_to_a_tpm_is_only_read(
    image: Path, tmp_path: Path, directory: Path
) -> None:
    mounted = MountProcess(
        image,
        directory,
        *("--mount-layout", "swtpm"),
        *("--tpm", f"ctrl=type=unixio,path={tmp_path / 'c'},flags=not-need-init,startup-clear"),
        verb="serve",
    )
    path = directory / "tpm2-00.permall"
    state = path.read_bytes()
    assert state
    with pytest.raises(OSError) as caught:
        path.write_bytes(b"another TPM")
    assert caught.value.errno == errno.EBUSY
    with refused(errno.EBUSY):
        os.unlink(path)
    (directory / "TMP2-00.permall").write_bytes(b"another TPM")
    with refused(errno.EBUSY):
        os.rename(directory / "TMP2-00.permall", path)
    assert path.read_bytes() == state
    assert mounted.end()[0] == 0


def test_o131_o197_fronts_come_and_go_while_it_serves(
    image: Path, tmp_path: Path, runtime: Path, directory: Path
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("")
    process = OwnerProcess(image, runtime, "--config", file)
    file.write_text(f'[[mount]]\ndirectory = "{directory}"\n')
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: os.path.ismount(directory))
    assert (directory / "a").read_bytes() == b"old a"
    file.write_text("")
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: not os.path.ismount(directory))
    file.write_text(f'[[mount]]\ndirectory = "{directory}"\nlayout = "swtpm"\n')
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: os.path.ismount(directory))
    os.system(f"umount {directory}")
    found = process.run("ls", image, "--json")
    assert {one["name"] for one in json.loads(found.stdout)} == {"a", "b"}
    assert process.end()[0] == 0


def test_other_verbs_go_through_the_owner(mounted: MountProcess) -> None:
    mounted.run("put", mounted.image, "a", "-", stdin=b"by a verb")
    assert (mounted.directory / "a").read_bytes() == b"by a verb"
    (mounted.directory / "a").write_bytes(b"by a program")
    assert mounted.run("get", mounted.image, "a") == b"by a program"
    mounted.run("mv", mounted.image, "a", "z")
    assert sorted(os.listdir(mounted.directory)) == ["b", "z"]
    mounted.run("rm", mounted.image, "z")
    assert os.listdir(mounted.directory) == ["b"]
