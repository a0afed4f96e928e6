"""The client in C (``contrib/c``), with sanitizers, beside a real owner and beside impostors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner.connection import Limits
from formats.errors import ArgumentError
from tests.support.c_client import (
    LOST,
    NO_OWNER,
    SOURCES,
    TOO_LARGE,
    UNTRUSTED,
    USAGE,
    CClient,
    CError,
    failure,
)
from tests.support.owners import OwnerProcess, owner_thread

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ["/", "..", ".", "a/b/../c", "%2F", "?x=1", "#", " ", "+", "ü€", "a&b", "😀" * 50]


@pytest.fixture
def connected(c: CClient, server: object, tmp_path: Path) -> CClient:
    del server
    c.open(path=tmp_path / "socket")
    return c


def test_a_put_is_what_get_returns_o21_o22(connected: CClient, store: blobstore.Store) -> None:
    assert connected.put("a", b"new") == 2
    assert store.get("a") == b"new"
    assert connected.get("a", 3) == (b"new", 2)
    assert connected.put("a", bytes(5000)) == 3
    assert connected.get("a", 5000) == (bytes(5000), 3)
    connected.put("b", b"")
    assert connected.get("b", 0)[0] == b""
    store.register("large", 3 << 20)
    large = os.urandom(3 << 20)
    connected.put("large", large)
    assert connected.get("large", 3 << 20)[0] == large


def test_sections_are_registered_described_and_deleted(
    connected: CClient, store: blobstore.Store
) -> None:
    made = connected.register("c", 100)
    found = store.section("c")
    assert made == (False, 0, 100, found.generation)
    assert connected.register("c", 50) == made
    assert connected.register("c", 200).max_size == 200
    connected.register("w", 512, "window")
    assert store.section("w").kind == "window"
    connected.put("c", b"12")
    assert connected.info("c") == (True, 2, 200, store.section("c").generation)
    connected.delete("c")
    assert "c" not in store


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_one_o13(connected: CClient, store: blobstore.Store, name: str) -> None:
    connected.register(name, 10)
    connected.put(name, b"12")
    assert store.get(name) == connected.get(name)[0] == b"12"
    assert connected.info(name).size == 2
    connected.delete(name)
    assert name not in store


def test_changes_are_conditional_o23(connected: CClient, store: blobstore.Store) -> None:
    made = connected.register("n", 10)
    new = connected.put("n", b"1", made.generation)
    for change in (
        lambda: connected.put("n", b"2", made.generation),
        lambda: connected.delete("n", 1),
    ):
        refused = failure(change)
        assert (refused.result, refused.kind) == (78, "GenerationMismatchError")
        assert not refused.maybe_done
    assert connected.get("n") == (b"1", new)
    assert connected.put("n", b"2", new) == new + 1
    connected.delete("n", new + 1)
    assert "n" not in store


def test_errors_are_those_of_the_store_o30(connected: CClient, store: blobstore.Store) -> None:
    """Class, message and exit code are what the store in the owner's process raises."""
    store.put("a", bytes(100))
    failing: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: store.get("c"), lambda: connected.get("c")),
        (lambda: store.get("b"), lambda: connected.get("b")),
        (lambda: store.get(""), lambda: connected.get("")),
        (lambda: store.section("ü"), lambda: connected.info("ü")),
        (lambda: store.section('"\\'), lambda: connected.info('"\\')),
        (lambda: store.put("c", b""), lambda: connected.put("c", b"")),
        (lambda: store.put("b", bytes(3001)), lambda: connected.put("b", bytes(3001))),
        (lambda: store.put("b", bytes(1 << 22)), lambda: connected.put("b", bytes(1 << 22))),
        (lambda: store.register("a", 9, "window"), lambda: connected.register("a", 9, "window")),
        (lambda: store.register("c", 1, "none"), lambda: connected.register("c", 1, "none")),
        (lambda: store.register("", 1), lambda: connected.register("", 1)),
        (lambda: store.register("x" * 201, 1), lambda: connected.register("x" * 201, 1)),
        (lambda: store.register("c", 1 << 62), lambda: connected.register("c", 1 << 62)),
        (lambda: store.delete("c"), lambda: connected.delete("c")),
    ]
    before = store.digest()
    for number, (there, here) in enumerate(failing):
        with pytest.raises((blobstore.StorageError, ValueError)) as info:
            there()
        error, found = info.value, failure(here)
        usage = 2 if isinstance(error, ArgumentError) else 1
        exit_code = getattr(error, "exit_code", usage)
        assert (found.kind, found.message) == (type(error).__name__, str(error)), number
        assert (found.result, found.exit_code) == (exit_code, exit_code)
        assert not found.maybe_done
    assert store.digest() == before


def test_damage_keeps_its_class_o33(
    connected: CClient, store: blobstore.Store, image: Path
) -> None:
    store.put("a", b"needle" * 100)
    content = bytearray(image.read_bytes())
    place = content.index(b"needle" * 100)
    with image.open("r+b") as file:
        file.seek(place + 5)
        file.write(b"X")
    found = failure(lambda: connected.get("a"))
    assert (found.result, found.kind) == (65, "CorruptBlobError")


def test_a_blob_that_does_not_fit_is_an_error_o42(connected: CClient) -> None:
    connected.put("a", b"12345")
    found = failure(lambda: connected.get("a", 4))
    assert (found.result, found.maybe_done) == (TOO_LARGE, False)
    assert connected.get("a", 5)[0] == b"12345"


def test_a_connection_that_ended_is_made_again_o11(
    c: CClient, store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    with owner_thread(store, image, tmp_path / "socket", Limits(idle=0.05)):
        c.open(path=tmp_path / "socket")
        c.put("a", b"1")
        time.sleep(0.3)
        assert c.get("a")[0] == b"1"
    assert failure(lambda: c.get("a")).result == NO_OWNER


def test_signals_do_not_disturb(connected: CClient, store: blobstore.Store) -> None:
    store.register("large", 3 << 20)
    connected.interrupt(200)
    for number in range(3):
        large = bytes([number]) * (3 << 20)
        connected.put("large", large)
        assert connected.get("large", 3 << 20)[0] == large
    connected.interrupt(0)


def test_the_owner_is_found_by_its_image_o2_o3(
    driver: Path, image: Path, runtime: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    owner = OwnerProcess(image, runtime)
    try:
        user = {**owner.environment, "XDG_RUNTIME_DIR": str(tmp_path)}
        with CClient(driver, owner.environment) as c:
            for name in (image, link):
                c.open(name)
                c.put("a", b"1")
            for name in (tmp_path / "missing", driver):
                assert failure(lambda: c.open(name)).result == NO_OWNER  # noqa: B023  called here
            c.open(image)
            c.close()
            assert failure(lambda: c.get("a")).result == USAGE
            c.open(image)
            owner.end()
            assert failure(lambda: c.get("a")).result == NO_OWNER
            assert failure(lambda: c.open(image)).result == NO_OWNER
        del user["BLOBSTORE_RUNTIME_DIR"]
        with CClient(driver, user) as c:
            expected = "/run/blobstore" if os.geteuid() == 0 else f"{tmp_path}/blobstore"
            assert expected in failure(lambda: c.open(image)).message
            assert failure(lambda: c.open(path="x" * 108)).result == USAGE
    finally:
        owner.end()


def test_an_owner_of_another_user_is_refused_o5(driver: Path) -> None:
    """Only root can be two others: elsewhere this shows that the same user is trusted."""
    script = (
        "import os, socket, sys; os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])\n"
        "os.chmod(sys.argv[1], 0o777); s.listen(); print(flush=True); sys.stdin.read()"
    )
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="owner-") as directory:
        image, place = Path(directory, "image"), Path(directory, "run")
        place.mkdir()
        image.touch()
        if root:
            for each in (Path(directory), place):
                each.chmod(0o777)
        found = image.stat()
        entry = place / f"{found.st_dev}-{found.st_ino}.sock"
        with subprocess.Popen(
            [sys.executable, "-c", script, entry, "12345" if root else str(os.geteuid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            environment = {**os.environ, "BLOBSTORE_RUNTIME_DIR": str(place)}
            binary = Path(directory, "driver")
            binary.write_bytes(driver.read_bytes())
            binary.chmod(0o755)
            for user in (12345, 23456, 0) if root else (os.geteuid(),):
                with CClient(binary, environment, user if root else None) as c:
                    if user == 23456:
                        refused = failure(lambda: c.open(image))
                        assert refused.result == UNTRUSTED
                        assert "[O5]" in refused.message
                    else:
                        c.open(image)
            other.communicate()


def test_nothing_that_was_acknowledged_is_lost_o22_o34(
    driver: Path, image: Path, runtime: Path
) -> None:
    """SIGKILL while the client puts: what was acknowledged last is there, or the next."""
    acknowledged = 0
    for kill_after in (3, 7, 1, 5):
        owner = OwnerProcess(image, runtime)
        with CClient(driver, owner.environment) as c:
            c.open(image)
            killer = threading.Thread(target=owner.end, args=(signal.SIGKILL,))
            last, failed = acknowledged, None
            while failed is None:
                if last == acknowledged + kill_after:
                    killer.start()
                try:
                    c.put("a", f"{last + 1:0900}".encode())
                    last += 1
                except CError as error:
                    failed = error
            killer.join(60)
        assert failed.result in (LOST, NO_OWNER)
        with blobstore.open(image) as store:
            found = int(store.get("a"))
            assert last <= found <= last + failed.maybe_done
            assert store.verify()
        acknowledged = found


def test_the_client_stays_small() -> None:
    sources = [SOURCES / "blobstore.h", SOURCES / "blobstore.c"]
    assert sum(source.read_text().count("\n") for source in sources) < 300
    assert max(len(line) for one in sources for line in one.read_text().splitlines()) <= 100


def test_the_example_counts(image: Path, runtime: Path, tmp_path: Path) -> None:
    directory = tmp_path / "c"
    shutil.copytree(SOURCES, directory)
    subprocess.run(["make", "-C", directory, "check"], check=True, capture_output=True)
    owner = OwnerProcess(image, runtime)

    def count(*words: object) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [directory / "example", *map(str, words)],
            env=owner.environment,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    try:
        assert [count(image) for _ in range(3)] == [(0, b"%d\n" % n, b"") for n in (1, 2, 3)]
        assert count(image, "other") == (0, b"1\n", b"")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: count(image, "many"), range(24)))
        assert sorted(int(said) for _, said, _ in found) == list(range(1, 25))
        assert owner.run("put", image, "a", "-", stdin=b"far too long").returncode == 0
        code, said, complaint = count(image, "a")
        assert (code, said) == (20, b"")
        assert b"not enough room" in complaint
        assert owner.run("get", image, "a").stdout == b"far too long"
    finally:
        owner.end()
    assert count(image)[0] == 20
