"""A file as it is in memory, and the handles through which programs use it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blobstore.mount.processes import Processes
    from blobstore.store.protocol import AnyWindow


@dataclass(eq=False, repr=False, slots=True)  # content is in no message
class File:
    """A file of the directory, or one that is open and has no name any more.

    Attributes:
        node: Its number.
        name: In the directory; None if it is not there any more.
        section: That holds it; None if none does, or it has no name.
        mode: Permissions, without the kind of file.
        uid: Of its owner.
        gid: Of its group.
        atime: When it was read, in nanoseconds; only programs set it.
        mtime: When it was written.
        ctime: When anything of it changed.
        generation: Of the section, when it was last looked at.
        size: Of the section's blob, likewise.
        content: All of it, where it is in memory: bytes as they were committed, or a draft.
        is_draft: Whether the content is to be committed.
        window: Its window, while it is open and its section is one.
        handles: That are open.
        lookups: How often the kernel was told of it and has not forgotten.
    """

    node: int
    name: str | None
    section: str | None
    mode: int
    uid: int
    gid: int
    atime: int
    mtime: int
    ctime: int
    generation: int | None = None
    size: int = 0
    content: bytearray | None = None
    is_draft: bool = False
    window: AnyWindow | None = None
    handles: set[Handle] = field(default_factory=set)
    lookups: int = 0

    @property
    def is_in_memory_only(self) -> bool:
        """Whether it is lost when it is forgotten."""
        return self.section is None or self.is_draft

    @property
    def length(self) -> int:
        """Its size in bytes, as it is now."""
        return self.size if self.content is None else len(self.content)

    def pending(self) -> list[Handle]:
        """Return the handles whose changes are not committed."""
        return [handle for handle in self.handles if handle.wrote or handle.made]


class Handle:
    """A file that a program has opened.

    Attributes:
        file: The file.
        writable: Whether it was opened for writing.
        opener: The process that opened it; 0 if that is not visible here.
        made: Whether opening it made or truncated the file, and nothing was committed since.
        wrote: Whether it changed the content, and nothing was committed since.
        by_opener: Whether its opener did so.
        killed: Whether a process was ended by a signal while it had it (M15).
        groups: Processes by their threads, as far as they were asked for.
    """

    #: What is to be known of one in another process.
    PASSED: Final = ("by_opener", "killed", "made", "opener", "writable", "wrote")
    __slots__ = ("groups", "file", *PASSED)

    def __init__(self, file: File, flags: int, thread: int, processes: Processes) -> None:
        """Be one that a thread opens with these flags of open(2)."""
        self.file = file
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.groups: dict[int, int] = {0: 0}
        self.opener = self.group(thread, processes) if self.writable else 0
        self.made = self.wrote = self.by_opener = self.killed = False
        file.handles.add(self)

    @classmethod
    def restored(cls, file: File, said: Mapping[str, int]) -> Handle:
        """Be one that another process had, as its attributes `PASSED` say (M61)."""
        handle = cls.__new__(cls)
        handle.file, handle.groups = file, {0: 0}
        for name in cls.PASSED:
            setattr(handle, name, said[name])
        file.handles.add(handle)
        return handle

    def group(self, thread: int, processes: Processes) -> int:
        """Return the process of a thread, which is asked for once."""
        found = self.groups.get(thread)
        if found is None:
            found = self.groups[thread] = processes.group(thread)
        return found

    def changed(self, thread: int, processes: Processes) -> None:
        """Note that a thread changed the content; 0 is a mapping that the kernel wrote out."""
        self.wrote = True
        if not thread or self.group(thread, processes) == self.opener:
            self.by_opener = True

    def committed(self) -> None:
        """Note that everything is committed."""
        self.made = self.wrote = self.by_opener = False
