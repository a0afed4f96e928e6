"""Opening the window of a section: which kind, and with which content (C62)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.errors import SectionMismatchError
from blobstore.store.windows.buffered import BufferedWindow
from blobstore.store.windows.in_place import InPlaceWindow
from blobstore.store.windows.sharing import SharedWindow
from blobstore.store.windows.window import Window
from formats.container.model import HEAD_SIZE, Kind, State
from formats.state.padded_flash import padding_of

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy
    from blobstore.store.windows.window import Host
    from formats.state.padded_flash import Padding


#: Seconds after which buffered writes are committed: without another one, and in any case.
IDLE: Final = 0.05
LONGEST: Final = 1.0


def open_shared(host: Host, name: str, *, in_place: bool, accept_unverified: bool) -> SharedWindow:
    """Open the window of a section, or share it; as `Store.shared_window`."""
    window = host.lookup.windows.get(name)
    if not (isinstance(window, Window) and window.users):
        window = open_window(
            host,
            name,
            in_place=in_place,
            idle=IDLE,
            longest=LONGEST,
            accept_unverified=accept_unverified,
        )
    return SharedWindow(host, window)


def open_window(
    host: Host,
    name: str,
    *,
    in_place: bool,
    idle: float,
    longest: float,
    accept_unverified: bool,
) -> Window:
    """Open the window of a section; arguments and errors as `Store.window`."""
    section = host.lookup.find(name)
    newest = section.newest
    identity = newest.identity
    if identity.kind is not Kind.WINDOW:
        raise SectionMismatchError(
            f"section {name!r} is a blob and has no window",
            hint="register a section of kind 'window' for a device that writes like a disk",
        )
    host.lookup.require_no_window(name)
    read_only = host.read_only or identity.copies == 1
    if in_place and not host.read_only and identity.copies == 1:
        raise SectionMismatchError(f"section {name!r} has one copy, which is only read")
    unverified = accept_unverified and newest.version.state is State.IN_PLACE
    padding = padding_of(identity.type, identity.max_size)
    window: Window
    if in_place and not read_only and unverified:
        window = InPlaceWindow(host, name, identity.max_size, padding)
    else:
        content = _content(host.container, newest, padding, unverified=unverified)
        if in_place and not read_only:
            window = InPlaceWindow(host, name, identity.max_size, padding)
            window.begin(content)
        else:
            whole = newest.version.state is State.LIVE and newest.version.size == len(content)
            buffered = BufferedWindow(
                host,
                name,
                content,
                read_only=read_only,
                padding=padding,
                committed=whole,
                idle=idle,
                longest=longest,
            )
            if unverified and not read_only:
                buffered.mark_changed()
            window = buffered
    host.lookup.windows[name] = window
    return window


def _content(
    container: OpenContainer, newest: Copy, padding: Padding | None, *, unverified: bool
) -> bytearray:
    """Return what a window shows as far as the section reaches: the blob, and zeros after it.

    After that of a flash, there is what the flash consists of there (F60).
    """
    content = bytearray(newest.identity.max_size)
    version = newest.version
    if padding is not None and padding.filler != b"\0":
        content[version.size :] = padding.filler * (len(content) - version.size)
    if unverified:
        container.device.read_into(newest.offset + HEAD_SIZE, memoryview(content)[: version.size])
    elif version.state is not State.UNWRITTEN:
        content[: version.size] = container.blobs.read(newest)
    return content
