"""The content of files: in memory until it is committed as a whole (M10 to M19, M30 to M32)."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from blobstore.mount.failures import failure, translated
from blobstore.mount.settings import Growth
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.mount.file import File
    from blobstore.mount.names import Names
    from blobstore.mount.settings import MountSettings
    from blobstore.store.description import SectionInfo
    from blobstore.store.protocol import Changes
    from blobstore.store.store import Store

_log = LateLogger(__name__)


class Contents:
    """Loads, changes and commits the content of files. `Tree` has the lock.

    Attributes:
        check_free: Raises for a section that another front alone changes (O100).
    """

    def __init__(self, store: Store, names: Names, settings: MountSettings) -> None:
        """Use a store, which stays the caller's."""
        self._store = store
        self._names = names
        self._settings = settings
        self._used = 0
        # Those with content, in the order in which they were used; the order is a dict's.
        self._loaded: dict[File, None] = {}
        self.check_free: Callable[[str], None] = lambda _: None

    # ------------------------------------------------------------ reading

    def look(self, file: File) -> SectionInfo | None:
        """See how the section of a file is now; content that is not a draft follows it (M43).

        Returns:
            The section; None if the file has none.

        Raises:
            OSError: ENOENT: the section is gone.
        """
        if file.section is None:
            return None
        with translated(f"looking at {file.section!r}"):
            found = self._store.section(file.section)
        self.follow(file, found)
        return found

    def follow(self, file: File, found: SectionInfo) -> None:
        """As `look`, for a caller that has looked at the section just now."""
        if found.generation != file.generation and not file.is_draft:
            if file.generation is not None:
                self.forget(file)
                file.mtime = file.ctime = time.time_ns()
            file.generation = found.generation
            file.size = found.window_size if found.kind == "window" else found.size or 0

    def load(self, file: File) -> bytearray:
        """Return the content of a file, and keep it in memory.

        Raises:
            OSError: EIO: it cannot be read, or does not verify. EFBIG: it is larger than files
                may be. ENOMEM: there is no room in memory.
        """
        if not file.is_draft:
            self.look(file)
        if file.content is None:
            if file.size > self._settings.memory:
                raise failure(errno.EFBIG, file.name)
            self._make_room(file.size, file, errno.ENOMEM)
            with translated(f"reading {file.section!r}"):
                file.content = bytearray(b"" if file.section is None else self._blob(file.section))
            self._used += len(file.content)
        self._loaded.pop(file, None)
        self._loaded[file] = None
        return file.content

    def read(self, file: File, offset: int, size: int) -> bytes:
        """Return bytes of a file, as far as there are any; errors as `load`."""
        if file.window is not None:
            with translated(f"reading window {file.section!r}"):
                return file.window.read(offset, max(0, min(size, file.window.size - offset)))
        return bytes(memoryview(self.load(file))[offset : offset + size])

    def adopt(self, file: File) -> None:
        """Count the content of a file that another process had in memory (M61)."""
        self._used += file.length
        self._loaded[file] = None

    def forget(self, file: File) -> None:
        """Drop the content from memory, the draft too."""
        if file.content is not None:
            self._used -= len(file.content)
            file.content = None
        file.is_draft = False
        self._loaded.pop(file, None)

    # ----------------------------------------------------------- changing

    def write(self, file: File, offset: int, data: memoryview) -> None:
        """Change bytes of a file in memory; a gap before them is zeros.

        Raises:
            OSError: EFBIG: the file would be too large (M31). ENOSPC: there is no room in
                memory (M32), or in a window. Others as `load`.
        """
        if file.window is not None:
            if offset + len(data) > file.window.size:
                raise failure(errno.ENOSPC, file.name)
            with translated(f"writing window {file.section!r}"):
                file.window.write(offset, data)
            return
        content = self._draft(file, offset + len(data))
        if offset + len(data) > len(content):
            self._resize(file, content, offset + len(data))
        content[offset : offset + len(data)] = data
        self._touched(file)

    def truncate(self, file: File, size: int) -> None:
        """Cut a file, or fill it up with zeros; a window keeps its size (M35). As `write`."""
        if file.window is not None:
            if size > file.window.size:
                raise failure(errno.EFBIG, file.name)
            with translated(f"writing window {file.section!r}"):
                file.window.discard(size, file.window.size - size)
            return
        if size == 0 and not file.is_draft:  # what it was does not have to be read
            self.forget(file)
            file.content, file.is_draft = bytearray(), True
        content = self._draft(file, size)
        self._resize(file, content, size)
        self._touched(file)

    def _draft(self, file: File, size: int) -> bytearray:
        if size > self._settings.largest_file:
            raise failure(errno.EFBIG, file.name)
        content = self.load(file)
        file.is_draft = True
        return content

    def _resize(self, file: File, content: bytearray, size: int) -> None:
        more = size - len(content)
        if more > 0:
            self._make_room(more, file, errno.ENOSPC)
            content.extend(bytes(more))
        else:
            del content[size:]
        self._used += more

    def _make_room(self, size: int, keep: File, number: int) -> None:
        """Have room for that many bytes: what can be read again is dropped."""
        for other in list(self._loaded):
            if self._used + size <= self._settings.memory:
                return
            if other is not keep and not other.is_in_memory_only:
                self.forget(other)
        if self._used + size > self._settings.memory:
            _log.error("the content of files takes up all of its memory [M32]")
            raise failure(number, keep.name)

    def _touched(self, file: File) -> None:
        file.mtime = file.ctime = time.time_ns()

    # --------------------------------------------------------- committing

    def commit(self, file: File) -> None:
        """Make the draft of a file durable, as one put (M11).

        Nothing happens where there is no draft, or the file has no name that lasts (M23, M24).

        Raises:
            OSError: As `write`; EROFS, EBUSY, ENOSPC, EFBIG or EIO of the store. The draft
                stays, so it can be tried again.
        """
        if file.window is not None:
            with translated(f"committing window {file.section!r}"):
                file.window.flush()
        elif file.is_draft and (section := self.place(file)) is not None:
            assert file.name is not None, "a file without a name has no section"
            self.require_free(section)
            with (
                translated(f"committing {section!r}"),
                self._store.transaction() as changes,
            ):
                self.stage(changes, file, section, file.name)
            self.committed(file, section, changes.generation)

    def require_free(self, section: str) -> None:
        """Refuse to change a section that another front alone changes.

        Raises:
            OSError: EBUSY: it does.
        """
        with translated(f"changing {section!r}"):
            self.check_free(section)

    def place(self, file: File) -> str | None:
        """Return the section that a file is committed to; None if it stays in memory."""
        if file.section is not None or file.name is None:
            return file.section
        return None if self._names.is_temporary(file.name) else self._names.section(file.name)

    def committed(self, file: File, section: str, generation: int | None) -> None:
        """Note that a section holds the content of a file, since this generation."""
        file.section, file.generation, file.is_draft = section, generation, False
        file.size = file.length
        for handle in file.handles:
            handle.committed()

    def stage(self, changes: Changes, file: File, section: str, name: str) -> None:
        """Have a transaction put the content of a file into a section.

        Args:
            changes: The transaction.
            file: Whose content it is.
            section: That gets it; made if it is not there, and made larger if it must be.
            name: The file that it is then.
        """
        content = self.load(file)
        found = self.found(section)
        if found is None:
            worst = self._worst_case(len(content), self._names.worst_case(name))
            changes.register(section, worst, type=self._names.type(name))
        else:
            self._require_same(found, name)
            if len(content) > found.max_size:
                changes.resize(section, self._grown(file, len(content)))
        changes.put(section, bytes(content))

    def stage_renamed(self, changes: Changes, file: File, section: str) -> None:
        """As `stage`, of a section that the same transaction has renamed."""
        content = self.load(file)
        assert file.section is not None, "it had a section"
        if len(content) > self._store.section(file.section).max_size:
            changes.resize(section, self._grown(file, len(content)))
        changes.put(section, bytes(content))

    def _require_same(self, found: SectionInfo, name: str) -> None:
        """Refuse to put a file into the section of another, such as that of a TPM 1.2."""
        if self._names.file(found.name, found.type) != name or found.kind == "window":
            raise failure(errno.EEXIST, name)

    def found(self, section: str) -> SectionInfo | None:
        """Return what is known of a section; None if there is none."""
        try:
            return self._store.section(section)
        except BlobNotFoundError:
            return None

    def _grown(self, file: File, size: int) -> int:
        if self._settings.growth == Growth.NEVER:
            raise failure(errno.EFBIG, file.name)
        return self._worst_case(size, 0)

    def _worst_case(self, size: int, least: int) -> int:
        """Return the next power of two if the least worst case is too small (M30)."""
        if size <= least:
            return least
        return max(size, min(1 << (size - 1).bit_length(), self._settings.largest_file))

    def _blob(self, section: str) -> bytes:
        try:
            return self._store.get(section)
        except UnwrittenBlobError:
            return b""
