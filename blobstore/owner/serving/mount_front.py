"""Sections as files: a table ``[[mount]]`` of the configuration (O195 to O199)."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from blobstore.mount.mounting import mount, unmount
from blobstore.mount.names import names_for
from blobstore.mount.processes import SystemProcesses
from blobstore.mount.session import Session
from blobstore.mount.settings import (
    LARGEST_FILE,
    MEMORY,
    NEW_FILE,
    TEMPORARY,
    Growth,
    Layout,
    MountSettings,
)
from blobstore.mount.tree import Tree
from blobstore.owner.serving.fronts import DEFAULT_MODE, Mode
from formats.errors import ArgumentError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from blobstore.image.place import Place
    from blobstore.mount.mounting import Mounted
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: Any limit: what a section can have at most (C1).
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class MountFront(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True
):
    """Sections as files in a directory.

    Attributes:
        directory: An empty directory.
        name: What it is called.
        layout: ``sections``, files with the names of the sections; or ``swtpm``, the states of
            one TPM as swtpm names them.
        tpm: First part of the names of that TPM's sections.
        temporary: Patterns of names that programs give files until they rename them.
        growth: ``double``, sections become larger when their files do; or ``never``.
        new_file: Worst case of new sections, in bytes, unless their file is larger.
        largest_file: Bytes that a file may have.
        memory: Bytes of all content in memory.
        mode: Permissions of files that were there before.
        read_only: Take no changes.
        allow_other: Let other users in, as far as the permissions go.
        terminate: End the process when the directory is unmounted.
    """

    directory: str
    name: str = "mount"
    layout: Layout = Layout.SECTIONS
    tpm: str = "tpm"
    temporary: tuple[str, ...] = TEMPORARY
    growth: Growth = Growth.DOUBLE
    new_file: _Size = NEW_FILE
    largest_file: _Size = LARGEST_FILE
    memory: _Size = MEMORY
    mode: Mode = DEFAULT_MODE
    read_only: bool = False
    allow_other: bool = False
    terminate: bool = False

    def __post_init__(self) -> None:
        """Refuse an entry that contradicts itself.

        Raises:
            ArgumentError: As its message says.
        """
        if not self.directory:
            raise ArgumentError("directory must be the path of one")
        if self.memory < self.largest_file:
            raise ArgumentError("memory must be at least largest-file")
        names_for(self.settings())

    def settings(self) -> MountSettings:
        """Return how files are made of sections."""
        return MountSettings(
            layout=Layout(self.layout),  # which the command line says as text
            tpm=self.tpm,
            temporary=self.temporary,
            growth=Growth(self.growth),
            new_file=self.new_file,
            largest_file=self.largest_file,
            memory=self.memory,
            mode=self.mode,
            read_only=self.read_only,
            allow_other=self.allow_other,
        )

    @property
    def socket_names(self) -> tuple[str, ...]:
        """What systemd may give it: nothing."""
        return ()

    def sockets(self, image: Place) -> Mapping[str, Address | None]:
        """Return that it needs none."""
        del image
        return {}

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningMount:
        """Mount the directory."""
        del listeners
        running = RunningMount(
            owner.store, owner.image, self, check_free=owner.require_free, on_end=owner.on_end
        )
        try:
            owner.add(running)
        except BaseException:
            running.stop()
            raise
        return running


class RunningMount:
    """A directory that is mounted. It is mounted again after a hand-over that failed."""

    def __init__(
        self,
        store: Store,
        image: Place,
        front: MountFront,
        *,
        check_free: Callable[[str], None] = lambda _: None,
        on_end: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        """Mount it; the store stays the caller's.

        Args:
            store: What is shown.
            image: Where that is, for the table of mounts.
            front: How.
            check_free: Raises for a section that another front alone changes (O100).
            on_end: Called when a user unmounted the directory and the process is to end, or
                with what ended the thread that serves it.

        Raises:
            StorageError: It cannot be mounted.
        """
        self._image, self._front, self._on_end = image, front, on_end
        self._tree = Tree(store, front.settings(), SystemProcesses())
        self._tree.contents.check_free = check_free
        self._sessions: list[Session] = []
        self._mounted: Mounted | None = None
        self._waits = False
        self._mount()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let programs wait in the block; files are as they were committed last (M57)."""
        with self._tree.lock:
            self._in_order(self._tree.flush_windows)
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Close the windows; take the directory away if it is the next process's (M57).

        Raises:
            StorageError: What was written to windows cannot be committed.
        """
        if waiting:
            self._unmount()  # without the lock: the kernel may have something to ask
        self._tree.lock.acquire()
        try:
            self._in_order(self._tree.let_go)
        except BaseException:
            self._tree.lock.release()
            self._mount_again()
            raise
        self._tree.released = True
        if waiting:
            self._waits = True  # with the lock, which `resume` gives back in the same thread
        else:
            self._tree.lock.release()

    def resume(self) -> None:
        """Go on, at the same directory."""
        with self._tree.lock:
            self._tree.released = False
            self._in_order(self._tree.go_on)
        self._stop_waiting()
        self._mount_again()

    def stop(self) -> None:
        """Take the directory away. What programs did not commit is dropped, and logged (M54)."""
        self._unmount()
        self._stop_waiting()
        for session in self._sessions:
            session.stop()
        self._sessions = []

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._tree.lock.release()

    def _mount(self) -> None:
        directory = Path(self._front.directory)
        mounted = mount(directory, str(self._image), self._front.settings())
        self._mounted = mounted
        self._sessions.append(Session(self._tree, mounted.descriptor, self._ended))
        _log.debug("mounted at %s", directory)

    def _mount_again(self) -> None:
        """Mount what was taken away for a successor. The other fronts go on if this fails."""
        if self._mounted is None:
            try:
                self._mount()
            except StorageError as error:
                _log.error("%s is not mounted any more: %s", self._front.directory, error)

    def _unmount(self) -> None:
        mounted, self._mounted = self._mounted, None
        if mounted is not None:
            unmount(mounted)

    def _ended(self, failed: BaseException | None) -> None:
        """Hear, in the thread of a session, that its directory is not mounted any more."""
        if failed is None:
            if self._mounted is None:
                return  # taken away by this process
            _log.warning("%s was unmounted", self._front.directory)
        if self._on_end is None:
            if failed is not None:
                raise failed
        elif failed is not None or self._front.terminate:
            self._on_end(failed)

    def _in_order(self, done: Callable[[], None]) -> None:
        """Do something with windows, whose errors are again those of the store."""
        try:
            done()
        except OSError as error:
            if isinstance(error.__cause__, StorageError):
                raise error.__cause__ from error
            raise
