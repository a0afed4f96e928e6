"""The process of a TPM, from its owner's end: how it begins, rests and ends (V70 to V78).

It may have begun under another owner, which passed it on (V85).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.foreign.states import tpm_section_names
from blobstore.owner import problems
from blobstore.owner.tpm.lives import Child, Passed
from blobstore.owner.tpm.messages import (
    Begin,
    End,
    Ended,
    Failed,
    Key,
    Lines,
    Listening,
    LogHere,
    Ready,
    Rest,
    Resting,
    Resume,
    ToOwner,
)
from blobstore.owner.tpm.states import StatesServer
from blobstore.vtpm.tpm import not_at_rest
from formats.errors import DeviceError, FormatError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.owner.tpm.lives import Life
    from blobstore.owner.tpm.options import TpmOptions
    from blobstore.store.store import Store
    from blobstore.vtpm.sockets import Channel

_log = LateLogger(__name__)

#: Seconds that a process has to read its states and to start its TPM.
_START_TIME: Final = 60.0
_PACKAGES: Final = Path(__file__).resolve().parents[3]
#: Seconds for the last messages of a process that has ended, which are there already.
_LAST_TIME: Final = 1.0
_STDERR: Final = 2


class PassedTpm(NamedTuple):
    """A TPM at rest, as one owner passes it to the next (V85).

    Attributes:
        rests: How often it has rested.
        descriptors: Of the connection for messages, of that for its store, and of its process.
            `TpmProcess.adopt` takes them out.
    """

    rests: int
    descriptors: list[int]


class TpmProcess:
    """One process that is one TPM. `rest`, `resume` and `close` are for one thread at a time.

    Attributes:
        name: Of the TPM.
        was_killed: Whether `kill` was called.
    """

    def __init__(
        self, store: Store, name: str, life: Life, control: socket.socket, nvram: socket.socket
    ) -> None:
        """Answer a process that runs; `start` and `adopt` make one of these.

        Args:
            store: Whose sections of this TPM it gets.
            name: Of the TPM.
            life: The process.
            control: The connection for messages.
            nvram: The connection by which it reaches its store.
        """
        self.name = name
        self.was_killed = False
        self._store, self._life = store, life
        self._store_end, self._lines = nvram, Lines(control)
        self._rests = 0
        self._was_switched_off = False
        self._serve()

    @classmethod
    def start(cls, store: Store, options: TpmOptions, descriptors: Sequence[int]) -> TpmProcess:
        """Start a process; it does not serve yet.

        Args:
            store: Whose sections of this TPM it gets.
            options: Of the TPM.
            descriptors: The listening sockets of its channels.

        Raises:
            DeviceError: The system has no more processes or descriptors.
        """
        name = options.name
        _log.info("TPM %r is being started", name)
        try:
            ours, control = socket.socketpair()
            store_end, nvram = socket.socketpair()
            with control, nvram:
                passed = (control.fileno(), nvram.fileno())
                process = subprocess.Popen(  # noqa: S603  this very program
                    [
                        *(sys.executable, "-P", "-m", "blobstore.owner.tpm.worker"),
                        *(name, *map(str, passed)),
                    ],
                    pass_fds=(*passed, *descriptors),
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": _python_path()},
                    start_new_session=True,  # Ctrl-C is for the owner, which says when to end
                )
            life = Child(process)
        except OSError as error:
            raise DeviceError(f"TPM {name!r} gets no process: {error.strerror}") from error
        started = cls(store, name, life, ours, store_end)
        started._lines.send(_begin(options, descriptors))
        return started

    @classmethod
    def adopt(cls, store: Store, name: str, passed: PassedTpm) -> TpmProcess:
        """Go on with a process that another owner passed on; it rests until `resume`.

        Args:
            store: The same that it had there.
            name: Of the TPM.
            passed: Its descriptors are taken.
        """
        control, nvram, process = passed.descriptors
        passed.descriptors.clear()
        sockets = [socket.socket(fileno=one) for one in (control, nvram)]
        for one in sockets:
            one.setblocking(True)  # which the other owner may have changed
        adopted = cls(store, name, Passed(process), *sockets)
        adopted._rests = passed.rests
        return adopted

    def wait_until_ready(self) -> None:
        """Wait until the TPM serves (V73).

        Raises:
            StorageError, ValueError: Why it does not.
        """
        try:
            answer = self._receive(_START_TIME)
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
                answer = self._receive(max(deadline - time.monotonic(), 0))
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

    def pass_on(self) -> PassedTpm | None:
        """Return what another owner goes on with, and answer nothing until `take_back`.

        The TPM rests. Descriptors stay those of this process; None where the system does not
        know descriptors of processes.
        """
        process = self._life.descriptor
        if process is None:
            return None
        self._states.pause()
        self._serving.join()
        return PassedTpm(self._rests, [self._lines.fileno(), self._store_end.fileno(), process])

    def take_back(self) -> None:
        """Answer again, after `pass_on`: no other owner has it."""
        self._states.close()
        self._serve()

    def log_here(self) -> None:
        """Have the TPM write messages where this process does (V85)."""
        self._lines.send(LogHere(), [_STDERR])

    def ask_end(self) -> None:
        """Have it end in order; again is fine."""
        self._lines.send(End())

    def ends_within(self, seconds: float | None) -> bool:
        """Wait for its end, without a limit if that is None; say whether it came."""
        return self._life.ends_within(seconds)

    def failure(self) -> str | None:
        """Say how a process ended that was not switched off in order (V74, V75)."""
        code = self._life.code()
        if code is None:
            with suppress(TimeoutError, FormatError):
                while self._receive(_LAST_TIME) is not None:
                    pass
            return None if self._was_switched_off else "it does not say why"
        return f"signal {-code}" if code < 0 else f"exit code {code}" if code else None

    def kill(self) -> None:
        """End it without order, and wait for that."""
        self.was_killed = True
        self._life.kill()

    def close(self) -> None:
        """Let go of a process that has ended, after the last thing that it asked for."""
        with suppress(OSError):
            self._store_end.shutdown(socket.SHUT_RD)
        self.leave()

    def leave(self) -> None:
        """Let go of a process that another owner has, after `pass_on`, or that has ended."""
        self._serving.join()
        for one in (self._states, self._store_end, self._lines, self._life):
            one.close()

    def _receive(self, seconds: float) -> ToOwner | None:
        answer: ToOwner | None = self._lines.receive(
            Ready | Failed | Resting | Ended,  # type: ignore[arg-type]
            seconds,
        )
        self._was_switched_off |= isinstance(answer, Ended)
        return answer

    def _serve(self) -> None:
        """Answer what the process asks its store, in a thread."""
        names = tpm_section_names(self.name).values()
        self._states = StatesServer(self._store_end, self._store, names)
        self._serving = threading.Thread(
            target=self._answer, name=f"store of TPM {self.name}", daemon=True
        )
        self._serving.start()

    def _answer(self) -> None:
        if not self._states.serve():
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
