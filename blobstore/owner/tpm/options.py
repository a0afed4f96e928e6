"""What is said of a TPM that an owner offers (V71)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobstore.foreign.states import tpm_section_names
from blobstore.vtpm.behaviour import Behaviour
from blobstore.vtpm.commands import Startup
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from blobstore.vtpm.sockets import Channel
    from formats.state.swtpm import TpmVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmOptions:
    """One TPM of an owner (V71).

    Attributes:
        name: First part of the names of its sections.
        ctrl: The control channel.
        data: The data channel; None if connections come through the other one.
        version: Which TPM it is; None is the one that the image has, and 2.0 for a new one.
        behaviour: The image is given up by the owner alone, so it has nothing of that.
        needs_init: Whether it waits for INIT.
        startup: What it is told when it starts without.
    """

    name: str = "tpm"
    ctrl: Channel | None = None
    data: Channel | None = None
    version: TpmVersion | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
    needs_init: bool = True
    startup: Startup = Startup.NONE

    def __post_init__(self) -> None:
        """Refuse what cannot be, or what no client could use.

        Raises:
            ArgumentError: The options contradict each other.
        """
        if not self.name:
            raise ArgumentError("a TPM needs a name [V71]")
        tpm_section_names(self.name)
        channels = self.channels
        if not channels:
            raise ArgumentError(f"TPM {self.name!r} has neither ctrl nor server [V71]")
        if self.ctrl is None and self.needs_init:
            raise ArgumentError(
                f"without ctrl nothing could start TPM {self.name!r}: add flags=not-need-init"
            )
        if any(one.listening is not None or one.connected is not None for one in channels):
            raise ArgumentError(f"TPM {self.name!r} needs a path or a port: no descriptor [V71]")
        if self.behaviour.incoming or self.behaviour.release_outgoing:
            raise ArgumentError("the image is given up as a whole, not by one TPM [V71]")

    @property
    def channels(self) -> list[Channel]:
        """Those that it has."""
        return [one for one in (self.ctrl, self.data) if one is not None]
