"""The process of one TPM of an owner, which has neither its image nor a key (V70 to V78).

    python -m blobstore.owner.tpm.worker NAME CONTROL STORE

CONTROL and STORE are descriptors of connections to the owner, which starts it
(`blobstore.owner.tpm.tpms`). NAME is what a list of processes shows.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from blobstore.owner import problems
from blobstore.owner.tpm.messages import (
    Begin,
    End,
    Ended,
    Failed,
    Lines,
    Listening,
    LogHere,
    Ready,
    Rest,
    Resting,
    Resume,
    ToWorker,
)
from blobstore.owner.tpm.states import StatesClient
from blobstore.vtpm.behaviour import Behaviour
from blobstore.vtpm.commands import Startup
from blobstore.vtpm.nvram import StoreNvram
from blobstore.vtpm.server import Server
from blobstore.vtpm.sockets import Channel
from blobstore.vtpm.tpm import Tpm
from formats.errors import DeviceBusyError, StorageError
from formats.logs import LateLogger, configure_with
from formats.state.swtpm import TpmVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.foreign.encryption import StateKey

_log = LateLogger(__name__)

#: How this ends when its owner has gone: nothing is left to be done in order (V76).
_ABANDONED = 70
_STDERR = 2


def main(arguments: list[str]) -> int:
    """Be the TPM that the owner describes, until it says that it is enough."""
    control, store = (socket.socket(fileno=int(number)) for number in arguments[1:3])
    lines = Lines(control)
    begin = lines.receive(Begin)
    if begin is None:
        return _ABANDONED
    configure_with(lambda: _log_as(begin))
    _end_without(store)
    try:
        tpm, server = _make(begin, StatesClient(store))
    except (StorageError, ValueError) as error:
        lines.send(Failed(*problems.problem_of(error)))
        return 1
    Obedience(lines, tpm, server.end).start()
    lines.send(Ready())
    try:
        server.run()
    except StorageError as error:
        _log.error("%s", error)
        return error.exit_code
    finally:
        server.close()
        tpm.stop()
    lines.send(Ended())
    return 0


def _make(begin: Begin, client: StatesClient) -> tuple[Tpm, Server]:
    version = None if begin.version is None else TpmVersion(begin.version)
    behaviour = Behaviour(
        reject_locality_4=begin.reject_locality_4,
        allow_set_locality=begin.allow_set_locality,
        auto_shutdown=begin.auto_shutdown,
        migration_key=_key(begin),
    )
    tpm = Tpm(StoreNvram(client, begin.name), version, behaviour)
    if not begin.needs_init:
        tpm.power_on(Startup(begin.startup))
    return tpm, Server(tpm, _channel(begin.data), _channel(begin.ctrl))


def _end_without(store: socket.socket) -> None:
    """Have the process end at once when the connection to its store does (V76)."""
    watched = store.dup()

    def watch() -> NoReturn:
        poll = select.poll()
        poll.register(watched, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
        poll.poll()
        os._exit(_ABANDONED)

    threading.Thread(target=watch, name="watch", daemon=True).start()


def _key(begin: Begin) -> StateKey | None:
    if begin.migration_key is None:
        return None
    from blobstore.foreign.encryption import StateKey  # noqa: PLC0415  few TPMs have one

    made_of = begin.migration_key
    return StateKey(made_of.secret, made_of.source, made_of.mode)


def _channel(listening: Listening | None) -> Channel | None:
    if listening is None:
        return None
    return Channel(
        listening=listening.descriptor,
        disconnect=listening.disconnect,
        terminate=listening.terminate,
    )


class Obedience:
    """Does what the owner says, beside the TPM.

    One thread receives, so that it learns at once that the owner has gone; another one
    waits for commands to end.
    """

    def __init__(
        self,
        lines: Lines,
        tpm: Tpm,
        end: Callable[[], None],
        abandoned: Callable[[], None] = lambda: os._exit(_ABANDONED),
    ) -> None:
        """Be ready to start.

        Args:
            lines: To the owner.
            tpm: What rests.
            end: Called when it is to end.
            abandoned: Called when the owner has gone.
        """
        self._lines, self._tpm, self._end, self._abandoned = lines, tpm, end, abandoned
        self._wishes: queue.SimpleQueue[Rest | Resume] = queue.SimpleQueue()

    def start(self) -> None:
        """Obey from now on."""
        for target in (self._receive, self._rest):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def _receive(self) -> None:
        while True:
            message: ToWorker | None = self._lines.receive(
                Rest | Resume | LogHere | End  # type: ignore[arg-type]
            )
            if message is None:
                self._abandoned()
                return
            if isinstance(message, End):
                self._end()
            elif isinstance(message, LogHere):
                _log_to(self._lines.descriptors.pop())
            elif not isinstance(message, Begin):
                self._wishes.put(message)

    def _rest(self) -> NoReturn:
        while True:
            wish = self._wishes.get()
            if isinstance(wish, Resume):
                continue  # after a rest that did not come in time
            try:
                with self._tpm.at_rest():
                    self._lines.send(Resting(wish.number))
                    self._wishes.get()  # the owner always says when that is over
            except DeviceBusyError as error:
                _log.warning("%s", error)


def _log_to(descriptor: int) -> None:
    """Write all that this process says to a descriptor, which is taken."""
    for own in (1, _STDERR):
        os.dup2(descriptor, own)
    os.close(descriptor)


def _log_as(begin: Begin) -> None:
    import logging  # noqa: PLC0415, TID251  only if there is something to say

    from formats.patient_log import PatientHandler  # noqa: PLC0415  likewise

    logging.raiseExceptions = False
    name = begin.name.replace("%", "%%")
    form = f"blobstore: TPM {name}: %(message)s"
    logging.basicConfig(level=begin.log_level, format=form, handlers=[PatientHandler(_STDERR)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
