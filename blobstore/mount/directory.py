"""The files that the directory has, by name (M1, M3, M4)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from blobstore.mount.failures import translated
from blobstore.mount.file import File
from blobstore.mount.names import names_for, require_name
from formats.fuse.messages import ROOT

if TYPE_CHECKING:
    from blobstore.mount.contents import Contents
    from blobstore.mount.settings import MountSettings
    from blobstore.store.description import SectionInfo
    from blobstore.store.store import Store


class Directory:
    """Names, and the files that were looked at; `Tree` has the lock.

    Attributes:
        files: Files by name: their attributes are nowhere else.
        root: The directory itself.
        began: When it was first served, in nanoseconds: the time of files that were there.
        last_node: The last number that a file got.
    """

    def __init__(self, store: Store, contents: Contents, settings: MountSettings) -> None:
        """Show the sections of a store, which stays the caller's."""
        self._store = store
        self._contents = contents
        self._settings = settings
        self._names = names_for(settings)
        self.files: dict[str, File] = {}
        self.began = time.time_ns()
        self.last_node = ROOT
        mode, now = 0o755 if settings.allow_other else 0o700, self.began
        self.root = File(ROOT, "", None, mode, os.getuid(), os.getgid(), now, now, now)

    def find(self, name: str) -> File | None:
        """Return a file that there is: in memory, or as a section."""
        known = self.files.get(name)
        if known is not None and known.section is None:
            return known
        require_name(name)
        section = self._names.section(name)
        found = None
        if section is not None:
            with translated(f"looking for {section!r}"):
                found = self._contents.found(section)
        if found is None or self._shown(found) != name:
            if known is not None:
                self._vanished(known)
            return known if known is not None and known.is_draft else None
        if known is None:
            owner = (os.getuid(), os.getgid())
            known = self.add(name, found.name, self._settings.mode, *owner, self.began)
        self._contents.follow(known, found)
        return known

    def all(self) -> list[File]:
        """Return the files that there are."""
        with translated("listing the sections"):
            sections = self._store.sections()
        names = [self._shown(section) for section in sections]
        for name in self.files.keys() - set(names):
            self.find(name)  # another front may have deleted its section
        found = {name: file for name in names if name and (file := self.find(name))}
        found |= {name: file for name, file in self.files.items() if file.section is None}
        return list(found.values())

    def add(self, name: str, section: str | None, mode: int, uid: int, gid: int, now: int) -> File:
        """Have a file that was not there before."""
        self.last_node += 1
        file = File(self.last_node, name, section, mode, uid, gid, now, now, now)
        self.files[name] = file
        return file

    def move(self, file: File, name: str) -> None:
        """Have a file under another name, which no other file has any more."""
        assert file.name is not None, "it is in the directory"
        del self.files[file.name]
        self.files[name] = file
        file.name = name

    def detach(self, file: File) -> None:
        """Take a file out; programs that have it open keep what is in memory of it."""
        if file.name is not None and self.files.get(file.name) is file:
            del self.files[file.name]
        file.name = file.section = None
        if not file.handles:
            self._contents.forget(file)

    def open_files(self) -> list[File]:
        """Return those that programs have open."""
        return [file for file in self.files.values() if file.handles]

    def is_full(self, most: int) -> bool:
        """Say whether so many files are in memory only."""
        files = self.files.values()
        return len(files) >= most and sum(file.section is None for file in files) >= most

    def _shown(self, section: SectionInfo) -> str | None:
        if section.size is None and section.kind == "blob" and not self._names.shows_unwritten:
            return None
        return self._names.file(section.name, section.type)

    def _vanished(self, file: File) -> None:
        """Another front deleted or renamed its section."""
        if file.is_draft:
            file.section = None  # it is made again when the file is committed
        else:
            self.detach(file)
