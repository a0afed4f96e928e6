"""Real clients: libnbd's programs, its Python binding, and QEMU (N1 to N27)."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
from blobstore.nbd.exports import NbdSections
from blobstore.nbd.server import NbdServer
from tests.support.foreign import ForeignProgramError, program, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.store.store import Store

pytestmark = pytest.mark.interop

SIZE = 540_672  # that of OVMF's variables
BLOB = b"a blob of 31 bytes, not aligned"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with blobstore.create(tmp_path / "image", {}, encrypted=False) as opened:
        opened.register("vars", SIZE, kind="window")
        opened.register("odd", 1001, kind="window")
        opened.register("blob", 100)
        opened.put("blob", BLOB)
        yield opened


@pytest.fixture(params=["unix", "tcp"])
def server(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Iterator[NbdServer]:
    address = tmp_path / "s" if request.param == "unix" else ("127.0.0.1", 0)
    with NbdServer(address, NbdSections(store)) as started:
        yield started


def uri(server: NbdServer, name: str) -> str:
    address = server.address
    if isinstance(address, tuple):
        return f"nbd://{address[0]}:{address[1]}/{name}"
    return f"nbd+unix:///{name}?socket={address}"


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_nbdinfo_lists_what_there_is(server: NbdServer) -> None:
    found = json.loads(run("nbdinfo", "--json", "--list", uri(server, "")))
    assert found["protocol"] == "newstyle-fixed"
    assert found["structured"] is True
    exports = {one["export-name"]: one for one in found["exports"]}
    assert set(exports) == {"vars", "odd", "blob"}
    assert exports["vars"]["export-size"] == SIZE
    assert exports["odd"]["export-size"] == 1001
    assert exports["blob"]["is_read_only"] is True
    for can in ("flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn"):
        assert exports["vars"][f"can_{can}"] is True
    assert exports["vars"]["contexts"] == ["base:allocation"]


def test_nbdinfo_maps_zeros(store: Store, server: NbdServer) -> None:
    store.put("vars", bytes(8192) + b"x" * 4096)
    rows = run("nbdinfo", "--map", uri(server, "vars")).decode().split("\n")
    assert [row.split() for row in rows if row] == [
        ["0", "8192", "2", "zero"],
        ["8192", "4096", "0", "data"],
        ["12288", str(SIZE - 12288), "2", "zero"],
    ]


@pytest.mark.parametrize(("name", "size"), [("vars", SIZE), ("odd", 1001)])
def test_nbdcopy_copies_in_both_directions(
    store: Store, server: NbdServer, tmp_path: Path, name: str, size: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content(size))
    # On several connections at once, as it does where CAN_MULTI_CONN is offered.
    run("nbdcopy", "--flush", "--connections=4", source, uri(server, name))
    assert store.get(name) == content(size)
    run("nbdcopy", uri(server, name), target)
    assert target.read_bytes() == content(size)
    # And from one export to another server's, and back.
    run("nbdcopy", uri(server, "blob"), target)
    assert target.read_bytes()[: len(BLOB)] == BLOB


def test_qemu_img_converts_in_both_directions(
    store: Store, server: NbdServer, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content(100_352) + bytes(SIZE - 100_352))
    export = uri(server, "vars")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, export)
    assert store.get("vars") == source.read_bytes()
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", export, target)
    assert target.read_bytes() == source.read_bytes()
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", export, target)
    found = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", export))
    assert found["virtual-size"] == SIZE
    mapped = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", export))
    assert [one["zero"] for one in mapped] == [False, True]


def test_qemu_io_writes_flushes_and_discards(store: Store, server: NbdServer) -> None:
    commands = ["write -P 7 1000 5000", "flush", "write -f -P 8 512 512", "write -z 2048 1024"]
    commands += ["discard 4096 512", "read -P 8 512 512", "read -P 0 2048 1024"]
    arguments = [part for command in commands for part in ("-c", command)]
    said = run("qemu-io", "-f", "raw", *arguments, uri(server, "vars")).decode()
    assert "failed" not in said
    expected = bytearray(SIZE)
    expected[1000:6000] = b"\7" * 5000
    expected[512:1024] = b"\x08" * 512
    expected[2048:3072] = bytes(1024)
    expected[4096:4608] = bytes(512)
    assert store.get("vars") == expected


def test_qemu_does_not_write_what_is_only_read(store: Store, server: NbdServer) -> None:
    with pytest.raises(ForeignProgramError, match=r"Permission denied|read-only"):
        run("qemu-io", "-f", "raw", "-c", "write 0 16", uri(server, "blob"))
    with pytest.raises(ForeignProgramError, match=r"never written|no section"):
        run("qemu-img", "info", uri(server, "absent"))
    assert store.get("blob") == BLOB


def fio(uri: str, *options: str) -> dict[str, Any]:
    """Have fio work on an export through libnbd; return what it says of its jobs together."""
    said = run(
        *("fio", "--output-format=json", "--group_reporting", "--name=job", "--ioengine=nbd"),
        *(f"--uri={uri}", "--verify_state_save=0", *options),
    )
    (job,) = json.loads(said[said.index(b"{\n") :])["jobs"]
    assert job["error"] == 0
    found: dict[str, Any] = job
    return found


def test_fio_finds_what_it_wrote(store: Store, server: NbdServer) -> None:
    export = uri(server, "vars")
    # Random places of three connections at once, each with its own part of the export; then
    # each block is read again, and its checksum is compared.
    done = fio(
        export,
        *("--rw=randwrite", "--bs=4k", "--size=160k", "--offset_increment=160k", "--numjobs=3"),
        *("--iodepth=4", "--fsync=8", "--verify=crc32c", "--do_verify=1", "--randseed=7"),
    )
    assert done["write"]["total_ios"] == done["read"]["total_ios"] == 3 * 40
    assert done["sync"]["total_ios"] > 0
    generation = store.section("vars").generation
    assert generation > 5  # they were commits
    fio(export, "--rw=randtrim", "--bs=4k", "--size=64k")
    fio(export, "--rw=read", "--bs=64k", "--size=528k")
    assert store.get("vars")[: 64 << 10] == bytes(64 << 10)


SCRIPT = """
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
assert h.get_structured_replies_negotiated()
assert h.get_size() == 540672 and h.can_multi_conn() and not h.is_read_only()
assert (h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_MAXIMUM)) == (1, 32 << 20)
h.set_strict_mode(0)  # send what libnbd would refuse
h.pwrite(b"abcdef", 3, nbd.CMD_FLAG_FUA)
assert h.pread(8, 2) == b"\\0abcdef\\0"
assert h.pread(8, 2, nbd.CMD_FLAG_DF) == b"\\0abcdef\\0"
h.zero(2, 4, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.trim(1, 8)
h.cache(4096, 0)
assert h.pread(8, 2) == b"\\0a\\0\\0de\\0\\0"
extents = []
h.block_status(540672, 0, lambda context, offset, found, error: extents.extend(found))
assert extents == [4096, 0, 540672 - 4096, 2], extents
for fails, number in (
    (lambda: h.pread(8, 540672), "EINVAL"),
    (lambda: h.pwrite(b"x", 540672), "ENOSPC"),
    (lambda: h.pread(8, 0, nbd.CMD_FLAG_FAST_ZERO), "EINVAL"),
):
    try:
        fails()
    except nbd.Error as error:
        assert error.errno == number, error
    else:
        raise AssertionError(number)
many = [h.aio_pwrite(bytes([n]) * 512, 8192 + 512 * n) for n in range(100)]
while h.aio_in_flight():
    h.poll(-1)
for cookie in many:
    assert h.aio_command_completed(cookie)
h.flush()
h.shutdown()
print("done")
"""


def test_libnbd_finds_every_command_as_the_protocol_has_it(
    store: Store, server: NbdServer, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("sys.argv[1]", repr(uri(server, "vars"))))
    done = subprocess.run(
        [program("nbdsh"), "-c", f"exec(open({str(script)!r}).read())"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    found = store.get("vars")
    assert found[3:9] == b"a\0\0de\0"
    assert found[8192 : 8192 + 51200] == b"".join(bytes([n]) * 512 for n in range(100))
