"""A TPM in a process of its own: a table ``[[tpm]]`` of the configuration (V70 to V80)."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from blobstore.foreign.key_source import StateKeySource
from blobstore.foreign.states import tpm_section_names
from blobstore.owner.tpm_options import TpmOptions
from blobstore.owner.tpms import Tpms
from blobstore.vtpm import swtpm_options
from blobstore.vtpm.behaviour import Behaviour
from blobstore.vtpm.sockets import address_of
from formats.errors import ArgumentError
from formats.logs import LateLogger
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from blobstore.foreign.encryption import StateKey
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener

_log = LateLogger(__name__)


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
        """Refuse what is not possible.

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

    def sockets(self, image: Path) -> Mapping[str, Address | None]:
        """Return where its channels listen."""
        del image
        options = self.options(None)
        named = {f"{self.name}-ctrl": options.ctrl, f"{self.name}-server": options.data}
        return {name: address_of(one) for name, one in named.items() if one is not None}

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningTpm:
        """Be the TPM."""
        return RunningTpm(owner, self, list(listeners.values()))


class RunningTpm:
    """A TPM that the owner knows."""

    def __init__(self, owner: Owner, front: TpmFront, listeners: list[Listener]) -> None:
        """Start it; the sockets stay the caller's."""
        self._owner, self._front, self._listeners = owner, front, listeners
        self._running = ExitStack()
        self._tpms: Tpms | None = None
        self._left: bytes | None = None
        if not owner.released:
            self._start()
        owner.add(self)

    @property
    def reserved(self) -> dict[str, str]:
        """Names of its sections (V80)."""
        names = tpm_section_names(self._front.name).values()
        return dict.fromkeys(names, f"TPM {self._front.name!r}")

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep it between two commands in the block (V78)."""
        with ExitStack() as resting:
            if self._tpms is not None:
                resting.enter_context(self._tpms.at_rest())
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Let go of the store (V81).

        A successor has a TPM of its own, so this one is switched off in order first. Where
        the image goes to another host and may come back, it is kept between two commands.
        """
        if self._tpms is None:
            return
        if waiting:
            self._stop()
        else:
            self._tpms.suspend(waiting=False)
            self._left = self._fingerprint()

    def resume(self) -> None:
        """Go on, unless another process has had the TPM meanwhile: then begin again (V43)."""
        if self._tpms is not None and self._left == self._fingerprint():
            self._tpms.resume()
        elif self._tpms is not None:
            _log.error(
                "TPM %r was changed by another process meanwhile: it begins again [V43]",
                self._front.name,
            )
            self._tpms.discard()  # to end in order, it would store the state that it has
            self._stop()
        if self._tpms is None:
            self._start()

    def stop(self) -> None:
        """Switch it off in order (V77); twice is fine."""
        self._stop()

    def _start(self) -> None:
        with ExitStack() as running:
            source = self._front.migration_key
            key = source and running.enter_context(StateKeySource.parse(source).read())
            tpms = Tpms(
                self._owner.store, [self._front.options(key or None)], listeners=self._listeners
            )
            running.enter_context(tpms)
            self._running, self._tpms = running.pop_all(), tpms

    def _stop(self) -> None:
        self._tpms = None
        self._running.close()

    def _fingerprint(self) -> bytes:
        name = tpm_section_names(self._front.name)[Slot.PERMANENT]
        try:
            return hashlib.sha256(self._owner.store.get(name)).digest()
        except (BlobNotFoundError, UnwrittenBlobError):
            return b""
