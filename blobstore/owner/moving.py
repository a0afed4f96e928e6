"""The re-encryption of an image whose owner goes on to serve it (O210 to O219).

A thread moves the payload piece by piece. Between two pieces everything else goes on: the store
uses the payload through what moves it, which knows for each byte where it is by now. The thread
keeps the store only while it gets its new key, once.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Final

import luks
from blobstore.image.moving import SERVED_ZONE, MovingPayload
from blobstore.reencryption.running import may_be_last, require_block_size
from blobstore.store.moving import move, protect, require_movable, settle
from formats.errors import DeviceBusyError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from blobstore.image.place import Place
    from blobstore.store.store import Store
    from formats.devices.device import BlockDevice

    Begin = Callable[[BlockDevice, luks.Place | None], luks.Reencryption]

_log = LateLogger(__name__)

#: Seconds for which others have the image after each step, and between two lines of progress.
_PAUSE: Final = 0.0005
_LINES: Final = 0.25


class MovingImage:
    """The re-encryption of one image. Threads may share it."""

    def __init__(self, store: Store, resting: AbstractContextManager[object]) -> None:
        """Re-encrypt the image of ``store``, when told to.

        Args:
            store: Stays the caller's.
            resting: Held while it begins and while it is stopped, so that an image that is kept
                as it is meanwhile is not changed (O175).
        """
        self._store, self._resting = store, resting
        self._one = threading.Lock()  # held by who begins, stops or ends
        self._changed = threading.Condition()
        self._moving: MovingPayload | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._is_finished = False
        self._error: Exception | None = None
        self._last: luks.ReencryptionStatus | None = None
        self._zone = SERVED_ZONE
        self._as_bytes = False

    # ------------------------------------------------------------ what there is

    @property
    def status(self) -> luks.ReencryptionStatus | None:
        """How far it is, or was; None if there was none in this process."""
        return self._last

    @property
    def is_running(self) -> bool:
        """Whether the payload is being moved at this moment."""
        return self._thread is not None

    @property
    def is_finished(self) -> bool:
        """Whether nothing was left to move."""
        return self._is_finished

    @property
    def error(self) -> Exception | None:
        """What ended it before its end, other than `stop`."""
        return self._error

    def on_disk(self) -> luks.ReencryptionStatus | None:
        """Return how far one is that the LUKS header tells of, and that is not carried on here.

        Raises:
            StorageError: As `luks.reencryption_status`.
        """
        layers = self._store.session.layers
        if layers is None or layers.volume is None:
            return None
        if layers.header_path is None:
            return luks.reencryption_status(layers.device)
        from blobstore.image.place import for_luks  # noqa: PLC0415  few headers are detached

        with for_luks(layers.header_path) as header:
            return luks.reencryption_status(layers.device, header=header)

    def watch(self) -> Iterator[None]:
        """Yield whenever there is something new to tell, several times in a second, to the end."""
        while self.is_running:
            yield
            with self._changed:
                self._changed.wait(_LINES)
        yield

    # ----------------------------------------------------------------- changing

    def begin(
        self,
        begin: Begin,
        secret: luks.Secret,
        *,
        mode: str,
        header_path: Place | None,
        sector_size: int | None,
        zone: int = SERVED_ZONE,
        as_bytes: bool = False,
        runs: bool = True,
    ) -> None:
        """Begin, or resume, and go on in a thread unless told otherwise.

        Args:
            begin: Calls a function of `luks`.
            secret: Opens the volume; the caller's to wipe.
            mode: What is done: ``"reencrypt"``, ``"encrypt"``, ``"decrypt"`` or ``"resume"``. To
                encrypt, others wait meanwhile, because a part of the payload may be moved at once.
            header_path: Of a detached header.
            sector_size: Of the new payload, if it is said.
            zone: Bytes that a step moves at most.
            as_bytes: Leave the store as it is.
            runs: Whether to go on at once.

        Raises:
            DeviceBusyError: One is in progress in this process, or is just being begun.
            StorageError, ArgumentError: As `require_movable` and ``begin``; nothing changed.
        """
        if not self._one.acquire(blocking=False):
            raise DeviceBusyError("another client has a re-encryption begun or stopped [O217]")
        try:
            session = self._store.session
            # Encrypting moves a part of the payload at once; otherwise nothing is moved before
            # the store uses what moves it.
            with self._resting, session.lock if mode == "encrypt" else nullcontext():
                layers = require_movable(session, protect=not as_bytes)
                if sector_size is not None:
                    require_block_size(session.container.block_size, sector_size)
                moving = MovingPayload(begin, layers.device, secret, header_path)
                self._take(moving, began=mode != "resume", zone=zone, as_bytes=as_bytes)
            if runs:
                self._run_on()
        finally:
            self._one.release()

    def _take(self, moving: MovingPayload, *, began: bool, zone: int, as_bytes: bool) -> None:
        """Have the store use the payload; if it cannot, take back what was begun just now."""
        session = self._store.session
        try:
            require_block_size(session.container.block_size, moving.status.new_sector_size)
            move(session, moving)
        except BaseException:
            with closing(moving):
                if began:
                    self._take_back(moving)
            raise
        self._moving = moving
        self._zone, self._as_bytes = zone, as_bytes
        self._is_finished, self._error, self._last = False, None, moving.status

    def _take_back(self, moving: MovingPayload) -> None:
        try:
            moving.reencryption.take_back()
        except BaseException:
            # The payload may not be any more where the store looks for it.
            self._store.session.container.writer.give_up()
            raise

    def carry_on(self, *, as_bytes: bool = False) -> None:
        """Go on with what was stopped, or failed, or was resumed when the image was opened.

        Raises:
            DeviceBusyError: It is running.
            NoReencryptionError: There is none in this process.
        """
        with self._one:
            layers = self._store.session.layers
            found = None if layers is None else layers.moving
            if found is None:
                raise luks.NoReencryptionError(
                    "no re-encryption was stopped by this process [O221]"
                )
            if self.is_running:
                raise DeviceBusyError("the re-encryption is running already [O217]")
            if self._moving is not found:
                self._moving, self._as_bytes, self._zone = found, as_bytes, SERVED_ZONE
                self._last, self._is_finished = found.status, False
            self._error = None
            self._run_on()

    def stop(self) -> None:
        """End after the step that is being done; it is resumed later. Nothing to do is fine.

        An image that is encrypted throughout is served from then on as any other.

        Raises:
            StorageError: The volume cannot be opened as it is now; the store goes on.
        """
        with self._one:
            self._join()
            moving = self._moving
            if moving is None or moving.status.mode != "reencrypt":
                return
            with self._resting:
                settle(self._store.session, moving.reopen())
            self._moving, self._error = None, None
            moving.close()

    def end(self) -> None:
        """End after the step that is being done, because the process ends."""
        with self._one:
            self._join()

    # ------------------------------------------------------------------ the thread

    def _run_on(self) -> None:
        self._stopping = False
        thread = threading.Thread(target=self._run, name="re-encryption", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def _join(self) -> None:
        thread = self._thread
        self._stopping = True
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        moving = self._moving
        assert moving is not None, "there is something to run"
        began = time.monotonic()
        try:
            self._move(moving)
        except (StorageError, ValueError) as error:
            _log.error("the re-encryption of the image has stopped: %s", error)
            self._error = error
        finally:
            _log.info("moved for %.1f s", time.monotonic() - began)
            with self._changed:
                self._thread = None
                self._changed.notify_all()

    def _move(self, moving: MovingPayload) -> None:
        session = self._store.session
        is_protected = self._as_bytes
        goes_on = True
        while goes_on:
            if self._stopping:
                return
            status = moving.status
            if not is_protected and may_be_last(status, self._zone):
                wanted = moving.becomes_encrypted
                if status.mode == "reencrypt" or session.container.header.encrypted is not wanted:
                    protect(session, encrypted=wanted)
                is_protected = True
            goes_on = moving.reencryption.step()
            with self._changed:
                self._last = moving.status
                self._changed.notify_all()
            time.sleep(_PAUSE)  # who waits for the image has it now
        settle(session, moving.reopen())
        self._moving = None
        self._is_finished = True
        moving.close()
