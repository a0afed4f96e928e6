"""The directory: names, and what is done to files by name or by handle (M1 to M43).

This is all of the semantics; it knows nothing of FUSE and can be tested without it.
`blobstore.mount.dispatcher` calls it for the kernel.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Final

from blobstore.mount.contents import Contents
from blobstore.mount.directory import Directory
from blobstore.mount.failures import failure, translated
from blobstore.mount.file import Handle
from blobstore.mount.names import names_for
from formats.container.model import MAX_NAME_SIZE
from formats.fuse.replies import Attributes, Space
from formats.logs import LateLogger

if TYPE_CHECKING:
    from blobstore.mount.file import File
    from blobstore.mount.processes import Processes
    from blobstore.mount.settings import MountSettings
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: Flags of renameat2(2).
NOREPLACE: Final = 1
#: Files that are in memory only, with a name or without.
MOST_FILES: Final = 4096

_XATTRS: Final = ("kind", "type", "generation", "max-size")
_PREFIX: Final = "user.blobstore."


class Tree:
    """The one directory of a mounted store, and its files. Threads may share it.

    All methods raise OSError, with the numbers that the calls of the system have.

    Attributes:
        lock: Held while anything is done; who holds it keeps all programs waiting.
        contents: The content of the files.
        directory: The files by name.
        released: Whether the image is another process's, so that nothing may be changed.
    """

    def __init__(self, store: Store, settings: MountSettings, processes: Processes) -> None:
        """Show the sections of a store, which stays the caller's.

        Raises:
            ValueError: The name of the TPM breaks a rule.
        """
        self._store = store
        self._settings = settings
        self._processes = processes
        self._names = names_for(settings)
        self.lock = threading.RLock()
        self.contents = Contents(store, self._names, settings)
        self.released = False
        self.directory = Directory(store, self.contents, settings)

    # -------------------------------------------------------------- names

    def lookup(self, name: str) -> File:
        """Return a file by its name."""
        file = self.directory.find(name)
        if file is None:
            raise failure(errno.ENOENT, name)
        return file

    def listing(self) -> list[tuple[int, int, str]]:
        """Return node, mode and name of all files."""
        files = self.directory.all()
        return [(one.node, stat.S_IFREG | one.mode, one.name) for one in files if one.name]

    def create(self, name: str, flags: int, mode: int, owner: tuple[int, int], pid: int) -> Handle:
        """Open a file that is made if it is not there (M17).

        Args:
            name: Of the file.
            flags: Of open(2).
            mode: Its permissions, if it is made.
            owner: User and group that it then has.
            pid: The thread that opens it.
        """
        self._require_writable()
        self._names.section(name)
        file = self.directory.find(name)
        if file is not None:
            if flags & os.O_EXCL:
                raise failure(errno.EEXIST, name)
            return self.open(file, flags, pid)
        if self.directory.is_full(MOST_FILES):
            raise failure(errno.ENOSPC, name)
        file = self.directory.add(name, None, mode & 0o7777, *owner, time.time_ns())
        file.content = bytearray()
        handle = Handle(file, flags, pid, self._processes)
        handle.made = file.is_draft = True
        return handle

    def unlink(self, name: str) -> None:
        """Remove a file; programs that have it open keep it (M24)."""
        self._require_writable()
        file = self.lookup(name)
        self._keep(file)
        if file.section is not None:
            self.contents.require_free(file.section)
            with translated(f"deleting {file.section!r}"):
                self._store.delete(file.section)
        self.directory.detach(file)

    def rename(self, old: str, new: str, flags: int) -> None:
        """Give a file another name, and commit what it has, in one transaction (M20 to M22)."""
        self._require_writable()
        if flags & ~NOREPLACE:
            raise failure(errno.EINVAL, new)
        file, target = self.lookup(old), self.directory.find(new)
        section = self._names.section(new)
        if target is not None and flags & NOREPLACE:
            raise failure(errno.EEXIST, new)
        if file is target:
            return
        if section is None and file.section is not None:
            raise failure(errno.EPERM, new)  # it would not outlive this process
        if target is not None:
            self._keep(target)
        if file.section is None and self._names.is_temporary(new):
            if target is not None and target.section is not None:
                self.unlink(new)
        else:
            assert section is not None, "a name that is kept in memory only is temporary"
            self._rename_section(file, new, section)
        if target is not None:
            self.directory.detach(target)
        self.directory.move(file, new)
        file.ctime = time.time_ns()

    def _rename_section(self, file: File, new: str, section: str) -> None:
        """Let a section of the new name have what the file has; the old one is gone then."""
        contents = self.contents
        old = file.section
        for name in (section, old):
            if name is not None:
                contents.require_free(name)
        with translated(f"renaming {file.name!r} to {new!r}"):
            there = section in self._store
            if file.window is not None or (there and self._is_window(section)):
                raise failure(errno.EBUSY, new)
            if old is not None and self._is_window(old):
                if there:
                    raise failure(errno.EPERM, new)
                self._store.rename(old, section)
                file.section = section
                return
            if there or old is None or file.is_draft:
                contents.load(file)
            with self._store.transaction() as changes:
                if old is not None and not there:
                    changes.rename(old, section)
                    if file.is_draft:
                        contents.stage_renamed(changes, file, section)
                else:
                    contents.stage(changes, file, section, new)
                    if old is not None:
                        changes.delete(old)
        contents.committed(file, section, changes.generation)

    def _is_window(self, section: str) -> bool:
        return self._store.section(section).kind == "window"

    # ------------------------------------------------------------ handles

    def open(self, file: File, flags: int, pid: int) -> Handle:
        """Open a file; with O_TRUNC it is empty then, which is committed later (M16)."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing:
            self._require_writable()
        section = self.contents.look(file)
        if section is not None and section.kind == "window" and file.window is None:
            with translated(f"opening window {section.name!r}"):
                file.window = self._store.shared_window(section.name)
        handle = Handle(file, flags, pid, self._processes)
        if writing and flags & os.O_TRUNC and file.window is None:
            try:
                self.contents.truncate(file, 0)
            except OSError:
                file.handles.discard(handle)
                raise
            handle.made = True
        return handle

    def write(self, handle: Handle, offset: int, data: memoryview, pid: int) -> None:
        """Write to a file, in memory (M10); ``pid`` is 0 for what the kernel writes out."""
        self._require_writable()
        self.contents.write(handle.file, offset, data)
        handle.changed(pid, self._processes)

    def truncate(self, file: File, size: int, handle: Handle | None, pid: int) -> None:
        """Set the size of a file; without a handle it is committed at once (M18)."""
        self._require_writable()
        self.contents.look(file)
        if handle is not None:
            self.contents.truncate(file, size)
            handle.changed(pid, self._processes)
        elif file.pending():
            self.contents.truncate(file, size)
        else:
            opened = self.open(file, os.O_WRONLY, pid)  # for a window
            try:
                self.contents.truncate(file, size)
                self.contents.commit(file)
            except OSError:
                self._drop(file)
                raise
            finally:
                self._close(opened)

    def fsync(self, handle: Handle) -> None:
        """Commit what a file has (M12)."""
        if handle.file.is_draft or handle.file.window is not None:
            self._require_writable()
        self.contents.commit(handle.file)

    def flush(self, handle: Handle, pid: int) -> None:
        """Commit what a process wrote that closes the file, or one of its descriptors (M13)."""
        if not (handle.wrote or handle.made):
            return
        if self._processes.is_killed(pid):
            handle.killed = True
        elif handle.by_opener and handle.group(pid, self._processes) == handle.opener:
            self.fsync(handle)

    def release(self, handle: Handle) -> None:
        """Let go of a file that was closed everywhere; commit what is left (M14, M15)."""
        file = handle.file
        others = [other for other in file.pending() if other is not handle]
        pending = handle.wrote or handle.made
        if pending and not others:
            if handle.killed and file.window is None:
                _log.warning("%r: a signal ended the program: its changes are dropped", file.name)
                self._drop(file)
            else:
                try:
                    self.fsync(handle)
                except OSError as error:
                    _log.error("%r: what was written is lost: %s", file.name, error.strerror)
                    self._drop(file)
        self._close(handle)

    def give_up(self, handle: Handle) -> None:
        """Let go of a file without a commit: no program can use it any more (M19)."""
        file = handle.file
        if (handle.wrote or handle.made) and file.window is None:
            _log.warning("%r: what was not committed is dropped", file.name)
            self._drop(file)
        self._close(handle)

    def _close(self, handle: Handle) -> None:
        file = handle.file
        file.handles.discard(handle)
        if file.handles:
            return
        window, file.window = file.window, None
        if window is not None:
            with translated(f"closing window {file.section!r}"):
                window.close()
        if not file.is_in_memory_only or file.name is None:
            self.contents.forget(file)

    def _drop(self, file: File) -> None:
        """Go back to what was committed; a file that never was is gone (M15)."""
        self.contents.forget(file)
        for handle in file.handles:
            handle.committed()
        file.mtime = file.ctime = time.time_ns()
        if file.section is None:
            self.directory.detach(file)

    # --------------------------------------------------------- attributes

    def attributes(self, file: File, *, looks: bool = True) -> Attributes:
        """Return what stat(2) says of a file, or of the directory.

        Args:
            file: The file.
            looks: Whether to look at its section, which `lookup` has done.
        """
        if file is self.directory.root:
            kind, links = stat.S_IFDIR, 2
        else:
            if looks:
                self.contents.look(file)
            kind, links = stat.S_IFREG, int(file.name is not None)
        size = file.window.size if file.window is not None else file.length
        return Attributes(
            file.node,
            size,
            kind | file.mode,
            links,
            file.uid,
            file.gid,
            file.atime,
            file.mtime,
            file.ctime,
        )

    def xattrs(self, file: File) -> dict[str, bytes]:
        """Return what its section is, as extended attributes (M42)."""
        section = None if file is self.directory.root else self.contents.look(file)
        if section is None:
            return {}
        values = (section.kind, section.type, section.generation, section.max_size)
        return {
            _PREFIX + name: str(value).encode() for name, value in zip(_XATTRS, values, strict=True)
        }

    def space(self) -> Space:
        """Return how much room there is (M33)."""
        with translated("looking at the store"):
            info = self._store.info()
            count = len(self._store)
        size = info.block_size
        return Space(size, info.size // size, info.free // size, count, MOST_FILES, MAX_NAME_SIZE)

    # ------------------------------------------------------------ the end

    def forget(self, file: File, lookups: int) -> None:
        """Note that the kernel has dropped so many of its references to a file."""
        file.lookups = max(0, file.lookups - lookups)

    def let_go(self) -> None:
        """Commit and close the windows: another process is to have the image (M57)."""
        for file in self.directory.open_files():
            if file.window is not None:
                with translated(f"closing window {file.section!r}"):
                    file.window.close()
                file.window = None

    def go_on(self) -> None:
        """Open the windows again of files that are open."""
        for file in self.directory.open_files():
            section = self.contents.look(file)
            if section is not None and section.kind == "window":
                file.window = self._store.shared_window(section.name)

    def flush_windows(self) -> None:
        """Commit what was written to windows. Files are as programs left them last (M57)."""
        for file in self.directory.open_files():
            if file.window is not None:
                self.contents.commit(file)

    # ----------------------------------------------------------- internal

    def _keep(self, file: File) -> None:
        """Have the content in memory of a file that loses its section and is open."""
        if file.handles and file.window is None:
            self.contents.load(file)

    def _require_writable(self) -> None:
        if self._settings.read_only or self.released:
            raise failure(errno.EROFS)
