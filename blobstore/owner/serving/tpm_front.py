"""A TPM in a process of its own: a table ``[[tpm]]`` of the configuration (V70 to V80)."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec

from blobstore.foreign.key_source import StateKeySource
from blobstore.owner.serving.fronts import Passed
from blobstore.owner.tpm.messages import PROTOCOL
from blobstore.owner.tpm.options import TpmOptions
from blobstore.owner.tpm.process import PassedTpm
from blobstore.owner.tpm.tpms import Tpms
from blobstore.vtpm import swtpm_options
from blobstore.vtpm.behaviour import Behaviour
from blobstore.vtpm.sockets import address_of
from formats.errors import ArgumentError
from formats.state.swtpm import TpmVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from blobstore.foreign.encryption import StateKey
    from blobstore.image.place import Place
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener


class TpmFront(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True
):
    """A TPM. The texts are those that swtpm takes for options of these names.

    Attributes:
        name: First part of the names of its sections; its sockets are called by it, with
            ``-ctrl`` and ``-server`` at the end.
        ctrl: The control channel, such as ``type=unixio,path=tpm.sock``.
        server: The data channel; None if connections come through the other one.
        version: ``1.2`` or ``2.0``; None is the one that the image has, and 2.0 for a new one.
        flags: ``not-need-init``, ``startup-clear`` and others.
        locality: ``reject-locality-4``, ``allow-set-locality``.
        migration_key: Where the key is that encrypts state on its way, such as
            ``file=FILE,mode=aes-cbc``.
    """

    name: str = "tpm"
    ctrl: str | None = None
    server: str | None = None
    version: str | None = None
    flags: str | None = None
    locality: str | None = None
    migration_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse an entry that contradicts itself.

        Raises:
            ArgumentError: As its message says.
        """
        try:
            self.options(None)
            if self.migration_key is not None:
                StateKeySource.parse(self.migration_key)
        except ValueError as error:
            raise ArgumentError(str(error)) from error

    def options(self, migration_key: StateKey | None) -> TpmOptions:
        """Return this as values, with the key that was read.

        Raises:
            ValueError: A text is not what swtpm takes.
        """
        flags = swtpm_options.Flags()
        if self.flags is not None:
            flags = swtpm_options.parse_flags(self.flags)
        locality: set[str] = set()
        if self.locality is not None:
            locality = swtpm_options.parse_locality(self.locality)
        behaviour = Behaviour(
            reject_locality_4="reject-locality-4" in locality,
            allow_set_locality="allow-set-locality" in locality,
            auto_shutdown=flags.auto_shutdown,
            migration_key=migration_key,
        )
        return TpmOptions(
            name=self.name,
            ctrl=None if self.ctrl is None else swtpm_options.parse_control(self.ctrl),
            data=None if self.server is None else swtpm_options.parse_server(self.server),
            version=None if self.version is None else TpmVersion(self.version),
            behaviour=behaviour,
            needs_init=flags.needs_init,
            startup=flags.startup,
        )

    @property
    def socket_names(self) -> tuple[str, ...]:
        """The names of its sockets."""
        return (f"{self.name}-ctrl", f"{self.name}-server")

    def sockets(self, image: Place) -> Mapping[str, Address | None]:
        """Return where its channels listen."""
        del image
        options = self.options(None)
        channels = zip(self.socket_names, (options.ctrl, options.data), strict=True)
        return {name: address_of(one) for name, one in channels if one is not None}

    @property
    def kind(self) -> str:
        """Say what is passed to the next owner: a worker that speaks this protocol (V86)."""
        return f"tpm-{PROTOCOL}"

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningTpm:
        """Be the TPM."""
        return RunningTpm(owner, self, list(listeners.values()))

    def start_passed(
        self, owner: Owner, listeners: Mapping[str, Listener], passed: Passed
    ) -> RunningTpm | None:
        """Go on with a TPM that runs, if it was told the same (V85)."""
        if passed.said.get("entry") != msgspec.to_builtins(self):
            return None
        found = PassedTpm(int(passed.said["rests"]), passed.descriptors)
        return RunningTpm(owner, self, list(listeners.values()), found)


class RunningTpm:
    """A TPM that the owner knows."""

    def __init__(
        self,
        owner: Owner,
        front: TpmFront,
        listeners: list[Listener],
        passed: PassedTpm | None = None,
    ) -> None:
        """Start it, at once or when the owner has the image; the sockets stay the caller's.

        Args:
            owner: Of the image.
            front: What is said of it.
            listeners: Its sockets.
            passed: What runs already, and goes on with `resume`.

        Raises:
            StorageError: It cannot be started; nothing of it runs.
        """
        self._front = front
        with ExitStack() as running:
            source = front.migration_key
            key = None
            if source is not None:
                key = running.enter_context(StateKeySource.parse(source).read())
            self._tpms = Tpms(
                owner.store,
                [front.options(key)],
                listeners=listeners,
                passed=None if passed is None else {front.name: passed},
            )
            owner.add(self)  # which suspends it where the image is another process's
            try:
                running.enter_context(self._tpms)
            except BaseException:
                owner.remove(self)
                raise
            self._running = running.pop_all()

    @property
    def reserved(self) -> dict[str, str]:
        """Names of its sections (V80)."""
        return self._tpms.reserved

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep it between two commands in the block (V78)."""
        with self._tpms.at_rest():
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Keep it between two commands until `resume`: the image is given up (V81)."""
        self._tpms.suspend(waiting=waiting)

    def resume(self) -> None:
        """Let it go on, from the state that the store has now (V82)."""
        self._tpms.resume()

    def pass_on(self) -> Passed | None:
        """Return its worker, for the next owner (V85)."""
        found = self._tpms.pass_on().get(self._front.name)
        if found is None:
            return None
        said = {"entry": msgspec.to_builtins(self._front), "rests": found.rests}
        return Passed(self._front.name, self._front.kind, said, found.descriptors)

    def withhold(self) -> None:
        """Leave it as it is: `stop` ends it, for the image is not this process's (V82)."""

    def stop(self) -> None:
        """Switch it off in order, or end it where the image is not there (V77, V82).

        One that was passed on is left to the next owner.
        """
        self._running.close()
