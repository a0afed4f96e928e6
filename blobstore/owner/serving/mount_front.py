"""Sections as files: a table ``[[mount]]`` of the configuration (O195 to O199)."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from blobstore.mount import passing
from blobstore.mount.dispatcher import Dispatcher
from blobstore.mount.mounting import Mounted, mount, unmount
from blobstore.mount.names import names_for
from blobstore.mount.processes import SystemProcesses, namespaces
from blobstore.mount.session import Session
from blobstore.mount.settings import MountSettings
from blobstore.mount.tree import Tree
from blobstore.owner.serving.fronts import Passed
from formats.errors import ArgumentError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from blobstore.image.place import Place
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener
    from blobstore.store.store import Store

_log = LateLogger(__name__)


class MountFront(
    MountSettings, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True
):
    """Sections as files in a directory: how, and where.

    Attributes:
        directory: An empty directory.
        name: What it is called.
        terminate: End the process when the directory is unmounted.
    """

    directory: str
    name: str = "mount"
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
        names_for(self)

    @property
    def socket_names(self) -> tuple[str, ...]:
        """What systemd may give it: nothing."""
        return ()

    def sockets(self, image: Place) -> Mapping[str, Address | None]:
        """Return that it needs none."""
        del image
        return {}

    @property
    def kind(self) -> str:
        """Say what the next owner goes on with: a directory that says the same (M62)."""
        entry = msgspec.structs.replace(
            self, directory=str(Path(self.directory).absolute()), terminate=False
        )
        said = msgspec.json.encode([entry, os.geteuid(), *namespaces()])
        return f"mount-{passing.VERSION}-{hashlib.sha256(said).hexdigest()[:32]}"

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningMount:
        """Mount the directory."""
        del listeners
        return self._start(owner, None)

    def start_passed(
        self, owner: Owner, listeners: Mapping[str, Listener], passed: Passed
    ) -> RunningMount:
        """Go on with a directory that is mounted (M60)."""
        del listeners
        return self._start(owner, passed)

    def _start(self, owner: Owner, passed: Passed | None) -> RunningMount:
        running = RunningMount(
            owner.store,
            owner.image,
            self,
            check_free=owner.require_free,
            on_end=owner.on_end,
            passed=passed,
        )
        try:
            owner.add(running)
        except BaseException:
            running.stop()
            raise
        return running


class RunningMount:
    """A directory that is mounted, and that the next owner may go on with."""

    def __init__(
        self,
        store: Store,
        image: Place,
        front: MountFront,
        *,
        check_free: Callable[[str], None] = lambda _: None,
        on_end: Callable[[BaseException | None], None] | None = None,
        passed: Passed | None = None,
    ) -> None:
        """Mount it; the store stays the caller's.

        Args:
            store: What is shown.
            image: Where that is, for the table of mounts.
            front: How.
            check_free: Raises for a section that another front alone changes (O100).
            on_end: Called when a user unmounted the directory and the process is to end, or
                with what ended the thread that serves it.
            passed: A directory that another owner had mounted; it goes on with `resume`. Its
                descriptors are taken.

        Raises:
            StorageError: It cannot be mounted.
        """
        self._image, self._front, self._on_end = image, front, on_end
        self._tree = Tree(store, front, SystemProcesses())
        self._tree.contents.check_free = check_free
        # The last one is that of the directory; files of the others may still be open.
        self._sessions: list[Session] = []
        self._mounted: Mounted | None = None
        # Whether another owner has the directory, too: then only `resume` makes it this one's.
        self._is_shared = False
        self._state: int | None = None
        if passed is None:
            self._mount()
        else:
            self._adopt(passed)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let programs wait in the block; files are as they were committed last (M57)."""
        with self._tree.lock:
            self._in_order(self._tree.flush_windows)
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Close the windows; let programs wait, or refuse changes (M57, M60).

        Raises:
            StorageError: What was written to windows cannot be committed.
        """
        if waiting:
            self._pause()  # without the lock: a request may be in progress
        try:
            with self._tree.lock:
                self._in_order(self._tree.let_go)
                self._tree.released = True
        except BaseException:
            self._go_on()
            raise

    def resume(self) -> None:
        """Go on, at the same directory."""
        self._forget_state()
        self._is_shared = False
        try:
            with self._tree.lock:
                self._tree.released = False
                self._in_order(self._tree.go_on)
        finally:
            self._go_on()
        self._mount_again()

    def pass_on(self) -> Passed | None:
        """Return the directory and what is open in it, for the next owner (M61)."""
        mounted, others, session = self._mounted, self._sessions[:-1], self._sessions[-1]
        if mounted is None or session.is_over or any(one.dispatcher.handles for one in others):
            return None
        try:
            self._state = passing.save(session.dispatcher)
        except StorageError as error:
            _log.error("%s", error)
            return None
        self._is_shared = True
        said = {"directory": str(mounted.directory), "number": mounted.number}
        descriptors = [session.descriptor, self._state]
        return Passed(self._front.name, self._front.kind, said, descriptors)

    def withhold(self) -> None:
        """Take the directory away: the next owner mounts another one (M62)."""
        self._forget_state()
        self._is_shared = False
        self._go_on()  # the kernel may have something to ask
        self._unmount()
        self._pause()

    def stop(self) -> None:
        """Take the directory away. What programs did not commit is dropped, and logged (M54).

        One that was passed on is left to the next owner.
        """
        if self._is_shared:
            self._mounted = None
            self._sessions.pop().leave()
            self._forget_state()
        self._unmount()
        for session in self._sessions:
            session.stop()
        self._sessions = []

    def _mount(self) -> None:
        directory = Path(self._front.directory)
        self._begin(mount(directory, str(self._image), self._front), Dispatcher(self._tree))
        self._go_on()
        _log.debug("mounted at %s", directory)

    def _adopt(self, passed: Passed) -> None:
        descriptor, state = passed.descriptors
        dispatcher = Dispatcher(self._tree)
        passing.restore(dispatcher, state)
        os.close(state)
        passed.descriptors.clear()
        self._tree.released = self._is_shared = True
        directory, number = Path(passed.said["directory"]), passed.said["number"]
        self._begin(Mounted(directory, descriptor, number), dispatcher)

    def _begin(self, mounted: Mounted, dispatcher: Dispatcher) -> None:
        self._mounted = mounted
        self._sessions.append(Session(dispatcher, mounted.descriptor, self._ended))

    def _pause(self) -> None:
        for session in self._sessions:
            session.pause()

    def _go_on(self) -> None:
        for session in self._sessions:
            session.go_on()

    def _forget_state(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            os.close(state)

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
