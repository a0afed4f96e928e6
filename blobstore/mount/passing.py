"""What is open in a directory, on its way from one process to another (M60 to M62).

The kernel knows files and handles by numbers that this process gave it. They go on to mean the
same in another process, which has the descriptor of ``/dev/fuse``, if that knows all of them,
with the drafts. They are passed in a file in memory, which no other process sees.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from blobstore.mount.file import File, Handle
from formats.errors import DeviceError, FormatError

if TYPE_CHECKING:
    from blobstore.mount.dispatcher import Dispatcher

#: Of what is passed, and of what was agreed with the kernel: change it with either.
VERSION: Final = 1

_LENGTH: Final = 8


class _File(msgspec.Struct, array_like=True):
    """A file; ``content`` is its size if that follows, and None if the store has it."""

    node: int
    name: str | None
    section: str | None
    mode: int
    uid: int
    gid: int
    atime: int
    mtime: int
    ctime: int
    generation: int | None
    size: int
    is_draft: bool
    lookups: int
    is_known: bool
    content: int | None


class _Handle(msgspec.Struct, array_like=True):
    """A handle, of the file with a node."""

    number: int
    node: int
    said: dict[str, int | bool]


_OF_FILES: Final = [name for name in _File.__struct_fields__ if name not in ("is_known", "content")]


class _State(msgspec.Struct, array_like=True):
    """All that a dispatcher and its directory know. Contents follow in the order of files."""

    began: int
    last_node: int
    last_handle: int
    root: _File
    files: list[_File]
    handles: list[_Handle]
    listings: dict[int, list[tuple[int, int, bytes]]]


def save(dispatcher: Dispatcher) -> int:
    """Return a descriptor of a file in memory with all that is open; the caller closes it.

    Nothing is changed. Windows are not part of it: `Tree.let_go` has closed them.

    Raises:
        DeviceError: There is no memory for it.
    """
    directory = dispatcher.tree.directory
    known = set(dispatcher.nodes.values()) - {directory.root}
    handles = dispatcher.handles
    files = list(known | set(directory.files.values()) | {one.file for one in handles.values()})
    state = _State(
        began=directory.began,
        last_node=directory.last_node,
        last_handle=dispatcher.last_handle,
        root=_saved(directory.root, is_known=True),
        files=[_saved(file, is_known=file in known) for file in files],
        handles=[
            _Handle(number, one.file.node, {name: getattr(one, name) for name in Handle.PASSED})
            for number, one in handles.items()
        ],
        listings=dispatcher.listings,
    )
    head = msgspec.msgpack.encode(state)
    try:
        descriptor = os.memfd_create("blobstore-mount", os.MFD_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"cannot pass open files on: {error.strerror} [M61]") from error
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as stored:
            stored.write(len(head).to_bytes(_LENGTH, "little") + head)
            for one, saved in zip(files, state.files, strict=True):
                if saved.content is not None and one.content is not None:
                    stored.write(one.content)
    except OSError as error:
        os.close(descriptor)
        raise DeviceError(f"cannot pass open files on: {error.strerror} [M61]") from error
    return descriptor


def restore(dispatcher: Dispatcher, descriptor: int) -> None:
    """Let a dispatcher, of which nothing is open yet, know what another one knew.

    Args:
        dispatcher: It and its directory are changed, unless this fails.
        descriptor: As `save` returned it; it stays open.

    Raises:
        FormatError: It is not what `save` writes.
    """
    try:
        with os.fdopen(os.dup(descriptor), "rb") as stored:
            whole = stored.seek(0, os.SEEK_END)
            stored.seek(0)
            size = int.from_bytes(stored.read(_LENGTH), "little")
            if size > whole:
                raise _broken(f"it has {whole} bytes of {size}")
            state = msgspec.msgpack.decode(stored.read(size), type=_State)
            files = {}
            if any(not 0 <= (one.content or 0) <= whole for one in state.files):
                raise _broken("a file is larger than all of it")
            for saved in state.files:
                content = None if saved.content is None else bytearray(stored.read(saved.content))
                if content is not None and len(content) != saved.content:
                    raise _broken("a file is not whole")
                files[saved.node] = _restored(saved, content)
    except (OSError, msgspec.MsgspecError) as error:
        raise _broken(str(error)) from error
    for one in state.handles:
        if one.node not in files or one.said.keys() != set(Handle.PASSED):
            raise _broken(f"handle {one.number} is not one of a file")
    directory = dispatcher.tree.directory
    directory.began, directory.last_node = state.began, state.last_node
    for name in _OF_FILES:
        setattr(directory.root, name, getattr(state.root, name))
    for saved in state.files:
        file = files[saved.node]
        if file.name is not None:
            directory.files[file.name] = file
        if saved.is_known:
            dispatcher.nodes[file.node] = file
        if file.content is not None:
            dispatcher.tree.contents.adopt(file)
    for one in state.handles:
        dispatcher.handles[one.number] = Handle.restored(files[one.node], one.said)
    dispatcher.listings.update(state.listings)
    dispatcher.last_handle = state.last_handle


def _saved(file: File, *, is_known: bool) -> _File:
    content = len(file.content) if file.content is not None and file.is_in_memory_only else None
    copied = {name: getattr(file, name) for name in _OF_FILES}
    return _File(**copied, is_known=is_known, content=content)


def _restored(saved: _File, content: bytearray | None) -> File:
    return File(**{name: getattr(saved, name) for name in _OF_FILES}, content=content)


def _broken(reason: str) -> FormatError:
    return FormatError(f"what another process had open cannot be understood: {reason}", rule="M61")
