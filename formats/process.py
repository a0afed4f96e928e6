"""Which process an object belongs to, and what happens to it in a fork (C64).

A fork copies everything except the other threads: locks that no thread will release,
buffers that both processes would write, descriptors that keep an image locked
after its owner has closed it. An object that holds such things therefore belongs to the
process that opened it. In a child every use is refused, without waiting for a lock, and
the descriptors are closed before any code of the child runs.
"""

from __future__ import annotations

import _thread
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar
from weakref import WeakSet

from formats.errors import ForkedProcessError

if TYPE_CHECKING:
    from collections.abc import Callable


class Closable(Protocol):
    """What has a descriptor, and closes it without telling the other end."""

    def close(self) -> None:
        """Close it."""


_Closable = TypeVar("_Closable", bound=Closable)

# Number of forks between the first process with this module and this one: process ids
# do not suffice, because processes in different namespaces can have the same id.
_forks = 0

# Descriptors to close in children, with device and inode of the file they were opened
# on: a number that was closed elsewhere may belong to another file now.
_descriptors: dict[int, tuple[int, int]] = {}

# What else children close, by its own method: an object would close a descriptor a second time.
_closable: WeakSet[Closable] = WeakSet()

# Held while a descriptor is opened or closed, and during a fork, so that none is missed.
# It is reentrant because a signal handler may fork in the middle of that. It is never
# replaced: a child has it as the thread that forked had it.
_registering = threading.RLock()

_getpid = os.getpid


class Owner:
    """The process that opened an object."""

    __slots__ = ("_forks", "_pid", "_what")

    def __init__(self, what: str) -> None:
        """Record the current process as the owner of ``what``, which messages name."""
        self._what = what
        self._pid = os.getpid()
        self._forks = _forks

    @property
    def is_other(self) -> bool:
        """Whether the current process is a child of the owner."""
        # Python does not learn of every fork, so the process id is asked for.
        return os.getpid() != self._pid or self._forks != _forks

    def require(self) -> None:
        """Refuse to continue in a child.

        Raises:
            ForkedProcessError: This is not the process that opened it.
        """
        if _getpid() != self._pid or self._forks != _forks:
            raise ForkedProcessError(
                f"{self._what} was opened by process {self._pid}, and this is process"
                f" {os.getpid()}, forked from it [C64]",
                hint="open it again in this process, or fork before it is opened",
            )


class OwnedLock(_thread.RLock):  # type: ignore[misc]  # which CPython permits
    """A lock between the threads of one process, which the same thread can take again.

    A child does not wait for it: it is refused.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._pid = os.getpid()
        self._forks = _forks

    def __enter__(self) -> bool:  # type: ignore[override]
        # The code of `Owner.require`, without the calls that would slow down each put; that is
        # also why this is a subclass.
        if _getpid() != self._pid or self._forks != _forks:
            self.owner.require()
        return self.acquire()


class Owned:
    """Base of objects that belong to one process, and so are neither pickled nor copied."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} belongs to the process that opened it, and cannot be pickled"
            " or copied: hand over the path, and open it there"
        )


def open_descriptor(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file whose descriptor children close; for `close_descriptor`.

    Raises:
        OSError: As `os.open`.
    """
    with _registering:
        fd = os.open(path, flags)
        found = os.fstat(fd)
        _descriptors[fd] = found.st_dev, found.st_ino
        return fd


def close_descriptor(fd: int) -> None:
    """Close what `open_descriptor` opened in this process."""
    with _registering:
        _descriptors.pop(fd, None)
        os.close(fd)


def closed_in_children(make: Callable[[], _Closable]) -> _Closable:
    """Return what ``make`` opens, such as a socket, and have children close it.

    Args:
        make: Called while no other thread can fork; does not wait for anything.
    """
    with _registering:
        made = make()
        _closable.add(made)
        return made


def _after_fork_in_child() -> None:
    global _forks  # noqa: PLW0603  a process has one of it
    _forks += 1
    for one in list(_closable):
        with suppress(OSError):
            one.close()
        _closable.discard(one)
    for fd, opened in list(_descriptors.items()):
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == opened:
                os.close(fd)
        except OSError:
            pass  # closed elsewhere
        _descriptors.pop(fd, None)


if hasattr(os, "register_at_fork"):
    # The lock's own methods, not Python functions: Python looks for signals where a function
    # begins, and what a handler raises there is dropped together with the rest of the
    # function. Then the lock would stay taken, and each other thread would wait for ever.
    os.register_at_fork(
        before=_registering.acquire,
        after_in_parent=_registering.release,
        after_in_child=_registering.release,
    )
    # Twice for the same reason: what the first leaves, the second does.
    os.register_at_fork(after_in_child=_after_fork_in_child)
    os.register_at_fork(after_in_child=_after_fork_in_child)
