"""The TPMs of an owner, each in a process that is started again when it ends (V70 to V78)."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Self

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from blobstore.foreign.states import tpm_section_names
from blobstore.owner.tpm.process import TpmProcess
from blobstore.vtpm import sockets
from blobstore.vtpm.tpm import REST_TIME, not_at_rest
from formats.errors import ArgumentError, StorageError
from formats.logs import LateLogger
from formats.state.swtpm import Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from blobstore.owner.tpm.options import TpmOptions
    from blobstore.owner.tpm.process import PassedTpm
    from blobstore.sockets.listening import Listener
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: Seconds that a TPM has to end (V77).
_END_TIME: Final = 10.0
#: Ends without order after which a TPM is given up, within so many seconds (V75).
_MOST_FAILURES: Final = 5
_FAILURES_WITHIN: Final = 60.0
_PAUSE: Final = 0.2


class Tpms:
    """All TPMs of an owner: a front. They serve from `start` to `stop`."""

    def __init__(
        self,
        store: Store,
        options: Iterable[TpmOptions],
        *,
        listeners: Sequence[Listener] | None = None,
        passed: Mapping[str, PassedTpm] | None = None,
    ) -> None:
        """Be ready to start.

        Args:
            store: Open for writing; open for as long as these run.
            options: Of each TPM.
            listeners: The sockets of all channels, in their order, which stay the
                caller's to close; None makes them as ``options`` say.
            passed: TPMs that run already, by their names; they rest until `resume` (V85).

        Raises:
            ArgumentError: Two have one name.
        """
        given = None if listeners is None else iter(listeners)
        passed = passed or {}
        self._tpms = [_Tpm(store, one, given, passed.get(one.name)) for one in options]
        names = [one.name for one in self._tpms]
        for name in names:
            if names.count(name) > 1:
                raise ArgumentError(f"there are two TPMs with the name {name!r} [V71]")
        self._running = ExitStack()

    @property
    def reserved(self) -> dict[str, str]:
        """Names of sections that their TPM alone changes, and which TPM that is (V80)."""
        return {
            name: f"TPM {one.name!r}"
            for one in self._tpms
            for name in tpm_section_names(one.name).values()
        }

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep all of them between two commands in the block (V78).

        Raises:
            DeviceBusyError: One of them executes a command for too long.
        """
        with ExitStack() as resting:
            for one in self._tpms:
                resting.enter_context(one.at_rest())
            yield

    def suspend(self, *, waiting: bool = True) -> None:
        """Keep all of them between two commands until `resume`: the image is given up (V81).

        Before `start` it has that begin without processes, which `resume` lets start.

        Args:
            waiting: Is not asked: a command that is answered with an error would be one that
                failed, so clients wait in any case.

        Raises:
            DeviceBusyError: One of them executes a command for too long; all go on.
        """
        del waiting
        with ExitStack() as going_on:
            for one in self._tpms:
                one.suspend()
                going_on.callback(one.resume)
            going_on.pop_all()

    def resume(self) -> None:
        """Let them go on, from the states that the store has now (V82)."""
        for one in self._tpms:
            one.resume()

    def pass_on(self) -> dict[str, PassedTpm]:
        """Return those that another owner can go on with, after `suspend` (V85).

        `stop` leaves them to that owner, unless `resume` comes before.
        """
        found = {one.name: one.pass_on() for one in self._tpms}
        return {name: passed for name, passed in found.items() if passed is not None}

    def start(self) -> None:
        """Serve from now on; all of them when this returns (V73).

        Raises:
            StorageError: One of them cannot; none is left.
        """
        with ExitStack() as running:
            for one in self._tpms:
                one.start()
                running.callback(one.stop)
            self._running = running.pop_all()

    def stop(self) -> None:
        """End all of them in order (V77); twice is fine."""
        for one in self._tpms:
            one.ask_end()
        self._running.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Tpm:
    """One TPM: its sockets, and the process that it has now."""

    def __init__(
        self,
        store: Store,
        options: TpmOptions,
        listeners: Iterator[Listener] | None,
        passed: PassedTpm | None,
    ) -> None:
        self.name = options.name
        self._passed = passed
        self._given = listeners and [next(listeners) for _ in options.channels]
        self._store, self._options = store, options
        self._descriptors: list[int] = []
        self._process: TpmProcess | None = None
        # Held while a process is started, and while the image is at rest: not both (V78).
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._failures: list[float] = []
        # What the TPM was when the image was given up; None while the owner has it.
        self._left: bytes | None = None
        # Whether another owner has the process, too: then only `resume` makes it this one's.
        self._is_shared = False
        self._sockets = ExitStack()
        self._thread = threading.Thread(
            target=self._supervise, name=f"TPM {self.name}", daemon=True
        )

    def start(self) -> None:
        with ExitStack() as making:
            own = [] if self._given else map(sockets.listener, self._options.channels)
            for listening in self._given or own:
                assert listening is not None, "it has a path or a port"
                if not self._given:
                    making.callback(listening.close)
                self._descriptors.append(listening.socket.fileno())
            if self._passed is not None:
                self._adopt(self._passed)
            elif self._left is None:
                self._process = self._begin()
            self._thread.start()
            self._sockets = making.pop_all()

    def ask_end(self) -> None:
        """Have it end, without waiting for that."""
        self._ending.set()
        if self._process is not None and self._left is None:
            self._process.ask_end()

    def stop(self) -> None:
        if self._is_shared:
            self._leave()
            return
        process = self._abandoned() if self._left is not None else self._ended()
        if process is not None and not process.ends_within(_END_TIME):
            _log.error("TPM %r does not end, and was killed [V77]", self.name)
            process.kill()
        self._thread.join()
        self._sockets.close()
        if process is not None:
            process.close()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        self._rest()
        try:
            yield
        finally:
            self._go_on()

    def suspend(self) -> None:
        self._rest()
        try:
            self._left = self._state()
        except BaseException:
            self._go_on()
            raise

    def resume(self) -> None:
        """Go on from the state that was left, or have the next process go on from another."""
        left, self._left = self._left, None
        if self._is_shared and self._process is not None:
            self._is_shared = False
            if self._passed is None:
                self._process.take_back()
            else:
                self._passed = None
                self._process.log_here()
        try:
            if left != self._state() and self._process is not None:
                _log.warning("TPM %r was changed by another process meanwhile [V82]", self.name)
                self._process.kill()
        finally:
            self._go_on()

    def pass_on(self) -> PassedTpm | None:
        passed = None if self._process is None else self._process.pass_on()
        self._is_shared = passed is not None
        return passed

    def _adopt(self, passed: PassedTpm) -> None:
        """Have the process of another owner, as if this one had suspended it."""
        self._left = self._state()
        self._process = TpmProcess.adopt(self._store, self.name, passed)
        self._is_shared = True
        self._lock.acquire()

    def _leave(self) -> None:
        """Let go of a process that another owner goes on with.

        The thread waits for its end on: it is what reaps the process, where this one lives on.
        """
        assert self._process is not None, "it was passed on"
        self._ending.set()
        self._lock.release()
        self._sockets.close()
        self._process.leave()

    def _rest(self) -> None:
        if not self._lock.acquire(timeout=REST_TIME):
            raise not_at_rest(f"TPM {self.name!r} is being started")
        try:
            if self._process is not None:
                self._process.rest(REST_TIME)
        except BaseException:
            self._lock.release()
            raise

    def _go_on(self) -> None:
        if self._process is not None:
            self._process.resume()
        self._lock.release()

    def _state(self) -> bytes:
        """Return what tells one permanent state from another."""
        try:
            blob = self._store.get(tpm_section_names(self.name)[Slot.PERMANENT])
        except (BlobNotFoundError, UnwrittenBlobError):
            blob = b""
        return hashlib.sha256(blob).digest()

    def _ended(self) -> TpmProcess | None:
        """Ask the process to end; return it."""
        with self._lock:  # what is just being started gets to hear of it, too
            self.ask_end()
            return self._process

    def _abandoned(self) -> TpmProcess | None:
        """End the process of an image that was given up: nothing is stored any more (V82)."""
        self._ending.set()
        if self._process is not None:
            self._process.kill()
        self._left = None
        self._lock.release()
        return self._process

    def _begin(self) -> TpmProcess:
        process = TpmProcess.start(self._store, self._options, self._descriptors)
        try:
            process.wait_until_ready()
        except BaseException:
            process.kill()
            process.close()
            raise
        return process

    def _supervise(self) -> None:
        """Start a process whenever one has ended, until that is enough."""
        while not self._ending.is_set():
            if self._process is not None:
                self._process.ends_within(None)
            with self._lock:
                if self._ending.is_set():
                    return
                self._replace()
            if self._is_hopeless():
                _log.error("TPM %r ends again and again, and is given up [V75]", self.name)
                self._sockets.close()
                for listening in self._given or ():
                    listening.close()
                return
            if self._process is None:
                self._ending.wait(_PAUSE)

    def _replace(self) -> None:
        if self._process is not None:
            self._note_end(self._process)
            self._process.close()
            self._process = None
        if self._is_hopeless():
            return
        try:
            self._process = self._begin()
        except StorageError as error:
            _log.error("TPM %r cannot be started again: %s", self.name, error)
            self._failures.append(time.monotonic())

    def _note_end(self, process: TpmProcess) -> None:
        failure = process.failure()
        if failure is None:
            _log.info("TPM %r was switched off", self.name)
        elif not process.was_killed:
            _log.error("the process of TPM %r ended: %s [V75]", self.name, failure)
            self._failures.append(time.monotonic())

    def _is_hopeless(self) -> bool:
        since = time.monotonic() - _FAILURES_WITHIN
        self._failures = [one for one in self._failures if one > since]
        return len(self._failures) >= _MOST_FAILURES
