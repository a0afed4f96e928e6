"""The kernel's protocol: bytes in, bytes out, without a kernel (M50, M59)."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.mount.dispatcher import Dispatcher
from blobstore.mount.settings import MountSettings
from blobstore.mount.tree import Tree
from formats.errors import FormatError
from formats.fuse import replies, requests
from formats.fuse.messages import REQUEST_SIZE, ROOT, Capability, Opcode, decode_header
from formats.fuse.replies import Attributes
from tests.support.mounts import KnownProcesses
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from blobstore.store.store import Store

SPECS = [spec("a", 700, b"old a"), spec("b", 700, b"old b")]


class Kernel:
    """Sends requests as the kernel does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.dispatcher = Dispatcher(Tree(store, MountSettings(), KnownProcesses()))

    def send(self, opcode: int, body: bytes = b"", node: int = ROOT) -> tuple[int, bytes]:
        """Return the error number and the body of the reply."""
        header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 7, node, 0, 0, 1, 0, 0)
        reply = self.dispatcher.answer(memoryview(header + body))
        assert reply is not None
        size, error, unique = struct.unpack_from("=IiQ", reply)
        assert (size, unique) == (len(reply), 7)
        return -error, reply[16:]

    def opened(self, name: bytes) -> tuple[int, int]:
        """Return node and handle of a file that is opened for writing."""
        error, entry = self.send(Opcode.LOOKUP, name + b"\0")
        assert error == 0
        node = struct.unpack_from("=Q", entry)[0]
        error, body = self.send(Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0), node)
        assert error == 0
        return node, struct.unpack_from("=Q", body)[0]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(open_store(image(SPECS, free=2 << 20)))


def write(handle: int, data: bytes, size: int | None = None) -> bytes:
    size = len(data) if size is None else size
    return struct.pack("=QQIIQII", handle, 0, size, 0, 0, 0, 0) + data


def test_m59_what_the_kernel_offers_is_taken_as_far_as_it_is_known(kernel: Kernel) -> None:
    flags = 0xFFFF_FFFF
    error, body = kernel.send(Opcode.INIT, struct.pack("=IIII", 7, 41, 4096, flags))
    assert (error, len(body)) == (0, 64)
    major, minor, readahead, taken, _, _, most = struct.unpack_from("=IIIIHHI", body)
    assert (major, minor, readahead, most) == (7, 38, 4096, 1 << 20)
    assert Capability(taken) == (
        Capability.ASYNC_READ
        | Capability.ATOMIC_O_TRUNC
        | Capability.BIG_WRITES
        | Capability.AUTO_INVAL_DATA
        | Capability.MAX_PAGES
    )
    assert kernel.send(Opcode.INIT, struct.pack("=IIII", 7, 30, 0, 0))[0] == errno.EPROTO


@pytest.mark.parametrize("size", [0, 8, 39])
def test_m59_what_has_no_header_is_no_request(kernel: Kernel, size: int) -> None:
    with pytest.raises(FormatError, match="no header"):
        kernel.dispatcher.answer(memoryview(bytes(size)))
    with pytest.raises(FormatError, match="says that it has"):
        decode_header(struct.pack("=IIQQIIIHH", 41, 1, 7, 1, 0, 0, 1, 0, 0))


@pytest.mark.parametrize("opcode", [o for o in Opcode if o not in (2, 36, 38, 42)])
def test_m59_a_body_that_ends_early_changes_nothing(kernel: Kernel, opcode: int) -> None:
    before = contents(kernel.store)
    for size in (0, 1, 7):
        error, _ = kernel.send(opcode, b"\xff" * size, ROOT)
        if opcode not in (Opcode.STATFS, Opcode.FSYNCDIR, Opcode.OPENDIR):
            assert error
    assert contents(kernel.store) == before


def test_m59_a_write_has_the_bytes_that_it_says(kernel: Kernel) -> None:
    node, handle = kernel.opened(b"a")
    assert kernel.send(Opcode.WRITE, write(handle, b"new", 4), node)[0] == errno.EIO
    assert kernel.send(Opcode.WRITE, write(handle, b"new"), node)[0] == 0
    body = struct.pack("=QII", handle, 0, 0)
    assert kernel.send(Opcode.FSYNC, body, node)[0] == 0
    assert kernel.store.get("a") == b"new a"
    kernel.dispatcher.close()
    assert kernel.send(Opcode.FSYNC, body, node)[0] == errno.EBADF


def test_m5_what_a_directory_of_sections_cannot_have(kernel: Kernel) -> None:
    for opcode in (Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.MKNOD):
        assert kernel.send(opcode, bytes(16) + b"x\0y\0")[0] == errno.EPERM
    assert kernel.send(Opcode.SETXATTR, bytes(8) + b"user.x\0y")[0] == errno.EOPNOTSUPP
    assert kernel.send(Opcode.RMDIR, b"x\0")[0] == errno.ENOSYS
    assert kernel.send(9999)[0] == errno.ENOSYS
    assert kernel.send(Opcode.LOOKUP, b"\xff\0")[0] == errno.EILSEQ
    assert kernel.send(Opcode.LOOKUP, b"x\0", 99)[0] == errno.ENOTDIR
    assert kernel.send(Opcode.GETATTR, bytes(16), 99)[0] == errno.ESTALE


def test_forgotten_nodes_are_not_kept(kernel: Kernel) -> None:
    node, _ = kernel.opened(b"a")
    body = struct.pack("=IIQQ", 1, 0, node, 1)
    header = struct.pack("=IIQQIIIHH", 40 + len(body), Opcode.BATCH_FORGET, 7, 0, 0, 0, 1, 0, 0)
    assert kernel.dispatcher.answer(memoryview(header + body)) is None
    assert kernel.send(Opcode.GETATTR, bytes(16), node)[0] == errno.ESTALE


def test_a_directory_is_read_in_pieces() -> None:
    entries = [(number, 0o100600, b"%03d" % number) for number in range(100)]
    seen: list[bytes] = []
    while part := replies.encode_directory(entries, len(seen), 200):
        assert len(part) <= 200
        place = 0
        while place < len(part):
            node, offset, size, kind = struct.unpack_from("=QQII", part, place)
            assert (node, offset, kind) == (len(seen), len(seen) + 1, 0o10)
            seen.append(part[place + 24 : place + 24 + size])
            place += -(-(24 + size) // 8) * 8
    assert seen == [name for _, _, name in entries]


def test_the_structures_have_the_sizes_of_linux() -> None:
    attributes = Attributes(2, 5, 0o100600, 1, 0, 0, 10**9 + 1, 2 * 10**9, 3)
    assert len(replies.encode_attributes(attributes)) == 104
    entry = replies.encode_entry(attributes)
    assert len(entry) == 128
    assert struct.unpack_from("=6Q3I", entry, 40) == (2, 5, 1, 1, 2, 0, 1, 0, 3)
    assert len(replies.encode_open(1)) == 16
    assert len(replies.encode_space(replies.Space(512, 1, 1, 1, 1, 200))) == 80
    body = bytes(range(88))
    assert requests.decode_setattr(memoryview(body)).size == int.from_bytes(body[16:24], "little")


@given(
    opcode=st.sampled_from([*Opcode]),
    node=st.integers(0, 4),
    body=st.binary(max_size=200),
    length=st.integers(0, 300),
)
def test_m59_any_bytes_are_answered(opcode: int, node: int, body: bytes, length: int) -> None:
    kernel = Kernel(_SHARED)
    kernel.opened(b"a")
    header = struct.pack("=IIQQIIIHH", 40 + length, opcode, 7, node, 0, 0, 1, 0, 0)
    message = memoryview(header + body)
    try:
        reply = kernel.dispatcher.answer(message)
    except FormatError:
        assert length > len(body)
    else:
        assert reply is None or len(reply) < REQUEST_SIZE


_SHARED = open_store(image(SPECS, free=2 << 20))
