"""The process of a TPM, from its owner's end: how it begins, rests and ends (V70 to V78)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blobstore.foreign.states import tpm_section_names
from blobstore.owner import problems
from blobstore.owner.tpm.messages import (
    Begin,
    End,
    Failed,
    Key,
    Lines,
    Listening,
    Ready,
    Rest,
    Resting,
    Resume,
    ToOwner,
)
from blobstore.owner.tpm.states import StatesServer
from blobstore.vtpm.tpm import not_at_rest
from formats.errors import DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from blobstore.owner.tpm.options import TpmOptions
    from blobstore.store.store import Store
    from blobstore.vtpm.sockets import Channel

_log = LateLogger(__name__)

#: Seconds that a process has to read its states and to start its TPM.
_START_TIME: Final = 60.0
_PACKAGES: Final = Path(__file__).resolve().parents[3]


class TpmProcess:
    """One process that is one TPM. `rest`, `resume` and `close` are for one thread at a time.

    Attributes:
        name: Of the TPM.
        was_killed: Whether `kill` was called.
    """

    def __init__(self, store: Store, options: TpmOptions, descriptors: Sequence[int]) -> None:
        """Start it; it does not serve yet.

        Args:
            store: Whose sections of this TPM it gets.
            options: Of the TPM.
            descriptors: The listening sockets of its channels.

        Raises:
            DeviceError: The system has no more processes or descriptors.
        """
        self.name = options.name
        self._rests = 0
        self.was_killed = False
        _log.info("TPM %r is being started", self.name)
        try:
            ours, control = socket.socketpair()
            self._store_end, nvram = socket.socketpair()
            with control, nvram:
                passed = (control.fileno(), nvram.fileno())
                self._process = subprocess.Popen(  # noqa: S603  this very program
                    [
                        *(sys.executable, "-P", "-m", "blobstore.owner.tpm.worker"),
                        *(options.name, *map(str, passed)),
                    ],
                    pass_fds=(*passed, *descriptors),
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": _python_path()},
                    start_new_session=True,  # Ctrl-C is for the owner, which says when to end
                )
        except OSError as error:
            raise DeviceError(f"TPM {self.name!r} gets no process: {error.strerror}") from error
        self._lines = Lines(ours)
        names = tpm_section_names(options.name).values()
        self._serving = threading.Thread(
            target=self._serve, args=(store, names), name=f"store of TPM {self.name}", daemon=True
        )
        self._serving.start()
        self._lines.send(_begin(options, descriptors))

    def wait_until_ready(self) -> None:
        """Wait until the TPM serves (V73).

        Raises:
            StorageError, ValueError: Why it does not.
        """
        try:
            answer: ToOwner | None = self._lines.receive(
                Ready | Failed | Resting,  # type: ignore[arg-type]
                _START_TIME,
            )
        except TimeoutError:
            raise DeviceError(f"TPM {self.name!r} does not start in time [V73]") from None
        if isinstance(answer, Failed):
            raise problems.error_of(answer.status, answer.problem)
        if answer is None:
            raise DeviceError(f"the process of TPM {self.name!r} ended before it served [V73]")

    def rest(self, seconds: float) -> None:
        """Keep the TPM between two commands until `resume`; one that has ended is.

        Raises:
            DeviceBusyError: Its command takes longer than so many seconds; it goes on.
        """
        self._rests += 1
        self._lines.send(Rest(self._rests))
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer: ToOwner | None = self._lines.receive(
                    Ready | Failed | Resting,  # type: ignore[arg-type]
                    max(deadline - time.monotonic(), 0),
                )
            except TimeoutError:
                self.resume()
                raise not_at_rest(f"TPM {self.name!r} executes a command") from None
            if answer is None:
                # It has ended, and what it asked for before that may still be done.
                self._serving.join(max(deadline - time.monotonic(), 0))
                if self._serving.is_alive():
                    raise not_at_rest(f"TPM {self.name!r} is stored")
                return
            # An earlier one was not waited for.
            if isinstance(answer, Resting) and answer.number == self._rests:
                return

    def resume(self) -> None:
        """Let the TPM go on."""
        self._lines.send(Resume(self._rests))

    def ask_end(self) -> None:
        """Have it end in order; again is fine."""
        self._lines.send(End())

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end; say whether it came."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal."""
        return self._process.wait()

    def kill(self) -> None:
        """End it without order, and wait for that."""
        self.was_killed = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of a process that has ended, after the last thing that it asked for."""
        with suppress(OSError):
            self._store_end.shutdown(socket.SHUT_RD)
        self._serving.join()
        self._store_end.close()
        self._lines.close()

    def _serve(self, store: Store, names: Collection[str]) -> None:
        StatesServer(self._store_end, store, names).serve()
        with suppress(OSError):  # the process ends with this connection, if it has not yet
            self._store_end.shutdown(socket.SHUT_RDWR)


def _begin(options: TpmOptions, descriptors: Sequence[int]) -> Begin:
    import logging  # noqa: PLC0415, TID251  the process logs what this one does

    behaviour = options.behaviour
    by_channel = dict(zip(options.channels, descriptors, strict=True))
    key = behaviour.migration_key
    return Begin(
        name=options.name,
        version=None if options.version is None else str(options.version),
        ctrl=_listening(options.ctrl, by_channel),
        data=_listening(options.data, by_channel),
        needs_init=options.needs_init,
        startup=str(options.startup),
        auto_shutdown=behaviour.auto_shutdown,
        reject_locality_4=behaviour.reject_locality_4,
        allow_set_locality=behaviour.allow_set_locality,
        migration_key=None if key is None else Key.of(key),
        log_level=logging.getLogger().getEffectiveLevel(),
    )


def _listening(channel: Channel | None, descriptors: dict[Channel, int]) -> Listening | None:
    if channel is None:
        return None
    return Listening(descriptors[channel], channel.disconnect, channel.terminate)


def _python_path() -> str:
    """Return where the process finds these packages: where this one did, and nowhere else."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_PACKAGES), *([before] if before else [])])
