"""Requests of the kernel, and what of the directory answers them (M50, M59)."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from blobstore.mount.failures import failure, number_of
from formats.errors import FormatError, StorageError
from formats.fuse import replies, requests
from formats.fuse.messages import (
    LEAST_MINOR,
    MAJOR,
    ROOT,
    Capability,
    Opcode,
    decode_header,
    encode_reply,
)
from formats.fuse.requests import Changed
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.mount.file import File, Handle
    from blobstore.mount.tree import Tree
    from formats.fuse.messages import Header

_log = LateLogger(__name__)

_WANTED: Final = (
    Capability.ASYNC_READ
    | Capability.ATOMIC_O_TRUNC
    | Capability.BIG_WRITES
    | Capability.AUTO_INVAL_DATA
    | Capability.MAX_PAGES
)
#: That have no reply.
_SILENT: Final = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)
#: What a directory of sections cannot have (M5).
_IMPOSSIBLE: Final = (Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.LINK)
#: Of fallocate(2): only to have the room, and with the size.
_PLAIN_FALLOCATE: Final = 0


class Dispatcher:
    """Answers requests, one after the other; it has no descriptor, so bytes can be tried.

    Attributes:
        tree: The directory.
        nodes: Files by the numbers that the kernel has of them.
        handles: What programs have open, by the numbers that the kernel has of it.
        listings: What is read of the directory, likewise.
        last_handle: The last number that was given to one of these.
    """

    def __init__(self, tree: Tree) -> None:
        """Answer from a directory, which others may serve, too."""
        self.tree = tree
        self.nodes: dict[int, File] = {ROOT: tree.directory.root}
        self.handles: dict[int, Handle] = {}
        self.listings: dict[int, list[tuple[int, int, bytes]]] = {}
        self.last_handle = 0
        self._answers: dict[int, Callable[[Header, memoryview], bytes]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget_many,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.UNLINK: self._unlink,
            Opcode.RENAME: lambda header, body: self._rename(header, body, flagged=False),
            Opcode.RENAME2: lambda header, body: self._rename(header, body, flagged=True),
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.FSYNC: self._fsync,
            Opcode.RELEASE: self._release,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: lambda _header, _body: b"",  # names are durable at once
            Opcode.STATFS: lambda _header, _body: replies.encode_space(tree.space()),
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.DESTROY: lambda _header, _body: b"",
        }

    def answer(self, message: memoryview) -> bytes | None:
        """Return the reply to a request; None if it has none.

        Raises:
            FormatError: It has no header.
        """
        header, body = decode_header(message)
        if header.opcode in _SILENT and header.opcode not in self._answers:
            return None
        reply, number = b"", 0
        try:
            with self.tree.lock:
                reply = self._answer(header, body)
        except OSError as error:
            number = error.errno or errno.EIO
        except (StorageError, ValueError) as error:
            number = errno.EIO if isinstance(error, FormatError) else number_of(error)
            _log.error("request %d: %s", header.opcode, error)
        return None if header.opcode in _SILENT else encode_reply(header.unique, number, reply)

    def close(self) -> None:
        """Let go of all files; what is not committed is dropped (M54)."""
        with self.tree.lock:
            for handle in self.handles.values():
                try:
                    self.tree.give_up(handle)
                except OSError as error:
                    _log.error("%r: %s", handle.file.name, error.strerror)
            self.handles.clear()

    def _answer(self, header: Header, body: memoryview) -> bytes:
        answer = self._answers.get(header.opcode)
        if answer is not None:
            return answer(header, body)
        if header.opcode in _IMPOSSIBLE:
            raise failure(errno.EPERM)
        if header.opcode in (Opcode.SETXATTR, Opcode.REMOVEXATTR):
            raise failure(errno.EOPNOTSUPP)
        raise failure(errno.ENOSYS)

    # -------------------------------------------------------------- names

    def _init(self, _header: Header, body: memoryview) -> bytes:
        found = requests.decode_init(body)
        if found.major != MAJOR or found.minor < LEAST_MINOR:
            _log.error("the kernel speaks FUSE %d.%d, and not 7.31", found.major, found.minor)
            raise failure(errno.EPROTO)
        return replies.encode_init(
            found.minor, found.max_readahead, _WANTED & Capability(found.flags & _WANTED)
        )

    def _lookup(self, header: Header, body: memoryview) -> bytes:
        return self._entry(self.tree.lookup(self._name(header, body)))

    def _entry(self, file: File) -> bytes:
        found = replies.encode_entry(self.tree.attributes(file, looks=False))
        file.lookups += 1
        self.nodes[file.node] = file
        return found

    def _forget(self, header: Header, body: memoryview) -> bytes:
        self._forget_one(header.node, requests.decode_long(body))
        return b""

    def _forget_many(self, _header: Header, body: memoryview) -> bytes:
        for node, lookups in requests.decode_forgets(body):
            self._forget_one(node, lookups)
        return b""

    def _forget_one(self, node: int, lookups: int) -> None:
        file = self.nodes.get(node)
        if file is not None and node != ROOT:
            self.tree.forget(file, lookups)
            if not file.lookups:
                del self.nodes[node]

    def _unlink(self, header: Header, body: memoryview) -> bytes:
        self.tree.unlink(self._name(header, body))
        return b""

    def _rename(self, header: Header, body: memoryview, *, flagged: bool) -> bytes:
        asked = requests.decode_rename(body, flagged=flagged)
        if header.node != ROOT or asked.directory != ROOT:
            raise failure(errno.ENOTDIR)
        self.tree.rename(_text(asked.old), _text(asked.new), asked.flags)
        return b""

    # --------------------------------------------------------- attributes

    def _getattr(self, header: Header, body: memoryview) -> bytes:
        handle = requests.decode_getattr(body)
        file = self._file(header.node) if handle is None else self._handle(handle).file
        return replies.encode_attributes(self.tree.attributes(file))

    def _setattr(self, header: Header, body: memoryview) -> bytes:
        asked = requests.decode_setattr(body)
        valid = asked.valid
        handle = self._handle(asked.handle) if valid & Changed.HANDLE else None
        file = self._file(header.node)
        if valid & Changed.SIZE:
            self.tree.truncate(file, asked.size, handle, header.pid)
        if valid & Changed.MODE:
            file.mode = asked.mode & 0o7777
        if valid & Changed.UID:
            file.uid = asked.uid
        if valid & Changed.GID:
            file.gid = asked.gid
        now = time.time_ns()
        if valid & Changed.ATIME:
            file.atime = now if valid & Changed.ATIME_NOW else asked.atime
        if valid & Changed.MTIME:
            file.mtime = now if valid & Changed.MTIME_NOW else asked.mtime
        file.ctime = now
        return replies.encode_attributes(self.tree.attributes(file))

    def _getxattr(self, header: Header, body: memoryview) -> bytes:
        name = _text(requests.decode_xattr_name(body))
        value = self.tree.xattrs(self._file(header.node)).get(name)
        if value is None:
            raise failure(errno.ENODATA)
        return _sized(value, requests.decode_xattr_size(body))

    def _listxattr(self, header: Header, body: memoryview) -> bytes:
        names = self.tree.xattrs(self._file(header.node))
        listed = b"".join(name.encode() + b"\0" for name in names)
        return _sized(listed, requests.decode_xattr_size(body))

    # -------------------------------------------------------------- files

    def _open(self, header: Header, body: memoryview) -> bytes:
        flags = requests.decode_open(body)
        return self._opened(self.tree.open(self._file(header.node), flags, header.pid))

    def _create(self, header: Header, body: memoryview) -> bytes:
        asked = requests.decode_create(body)
        self._require_root(header)
        owner = (header.uid, header.gid)
        name = _text(asked.name)
        handle = self.tree.create(name, asked.flags, asked.mode, owner, header.pid)
        return self._entry(handle.file) + self._opened(handle)

    def _opened(self, handle: Handle) -> bytes:
        self.last_handle += 1
        self.handles[self.last_handle] = handle
        return replies.encode_open(self.last_handle)

    def _read(self, _header: Header, body: memoryview) -> bytes:
        asked = requests.decode_read(body)
        file = self._handle(asked.handle).file
        return self.tree.contents.read(file, asked.offset, asked.size)

    def _write(self, header: Header, body: memoryview) -> bytes:
        asked = requests.decode_write(body)
        # What was written through a mapping, any thread may have written.
        pid = 0 if asked.flags & requests.WRITE_CACHE else header.pid
        self.tree.write(self._handle(asked.handle), asked.offset, asked.data, pid)
        return replies.encode_count(len(asked.data))

    def _flush(self, header: Header, body: memoryview) -> bytes:
        self.tree.flush(self._handle(requests.decode_handle(body)), header.pid)
        return b""

    def _fsync(self, _header: Header, body: memoryview) -> bytes:
        self.tree.fsync(self._handle(requests.decode_handle(body)))
        return b""

    def _release(self, _header: Header, body: memoryview) -> bytes:
        handle = self.handles.pop(requests.decode_handle(body), None)
        if handle is not None:
            self.tree.release(handle)
        return b""

    def _fallocate(self, header: Header, body: memoryview) -> bytes:
        asked = requests.decode_fallocate(body)
        if asked.mode != _PLAIN_FALLOCATE:
            raise failure(errno.EOPNOTSUPP)
        handle = self._handle(asked.handle)
        end = asked.offset + asked.size
        if end > self.tree.attributes(handle.file).size:
            self.tree.truncate(handle.file, end, handle, header.pid)
        return b""

    # -------------------------------------------------------- directories

    def _opendir(self, header: Header, _body: memoryview) -> bytes:
        self._require_root(header)
        found = [(node, mode, _bytes(name)) for node, mode, name in self.tree.listing()]
        root = (ROOT, self.tree.attributes(self.tree.directory.root).mode)
        self.last_handle += 1
        self.listings[self.last_handle] = [(*root, b"."), (*root, b".."), *found]
        return replies.encode_open(self.last_handle)

    def _readdir(self, _header: Header, body: memoryview) -> bytes:
        asked = requests.decode_read(body)
        entries = self.listings.get(asked.handle)
        if entries is None:
            raise failure(errno.EBADF)
        return replies.encode_directory(entries, asked.offset, asked.size)

    def _releasedir(self, _header: Header, body: memoryview) -> bytes:
        self.listings.pop(requests.decode_handle(body), None)
        return b""

    # ----------------------------------------------------------- internal

    def _name(self, header: Header, body: memoryview) -> str:
        self._require_root(header)
        return _text(requests.names(body, 1)[0])

    def _require_root(self, header: Header) -> None:
        if header.node != ROOT:
            raise failure(errno.ENOTDIR)

    def _file(self, node: int) -> File:
        file = self.nodes.get(node)
        if file is None:
            raise failure(errno.ESTALE)
        return file

    def _handle(self, number: int) -> Handle:
        handle = self.handles.get(number)
        if handle is None:
            raise failure(errno.EBADF)
        return handle


def _sized(value: bytes, most: int) -> bytes:
    """Return a value, or its size if that is all that is asked for."""
    if not most:
        return replies.encode_count(len(value))
    if len(value) > most:
        raise failure(errno.ERANGE)
    return value


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise failure(errno.EILSEQ) from error


def _bytes(name: str) -> bytes:
    return name.encode()
