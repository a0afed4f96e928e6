"""Which passphrase opens the volume: after a change that ended the new one, else one of the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import luks
from luks.errors import NoKeyslotMatchError
from luks.model import Pbkdf2
from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import BlockDevice
    from tests.simulation.scheduler import Scheduler

_Result = TypeVar("_Result")

#: As cheap as a key derivation may be: its cost is not what is tested.
CHEAP: Final = Pbkdf2(hash_name="sha256", iterations=1000)
FIRST: Final = b"passphrase 0"


class KeyHistory:
    """The passphrases of one volume.

    Attributes:
        changes: Acknowledged ones.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._possible = [FIRST]
        self._number = 0
        self.changes = 0

    def change(self, device: BlockDevice) -> None:
        """Change the passphrase, as an administrator does while the image is in use."""
        if len(self._possible) > 1:
            self._look(device)
        (old,) = self._possible
        self._number += 1
        new = b"passphrase %d" % self._number
        self._possible = [old, new]
        luks.change_keyslot(device, old, new, kdf=CHEAP)
        self._possible = [new]
        self.changes += 1
        if self._opens(device, old):
            raise SimulationError(f"{old!r} opens the volume after it was changed to {new!r}")

    def unlocked(self, unlock: Callable[[bytes], _Result]) -> _Result:
        """Return what ``unlock`` returns with a passphrase that opens the volume."""
        for passphrase in reversed(self._possible):
            try:
                return unlock(passphrase)
            except NoKeyslotMatchError:
                continue
        raise SimulationError(f"none of {self._possible} opens the volume")

    def _look(self, device: BlockDevice) -> None:
        """Find out what became of a change that did not end: it is old or new."""
        opening = [one for one in self._possible if self._opens(device, one)]
        if len(opening) != 1:
            raise SimulationError(f"of {self._possible}, {opening} open the volume")
        self._possible = opening

    def _opens(self, device: BlockDevice, passphrase: bytes) -> bool:
        try:
            luks.open(device, passphrase, read_only=True)
        except NoKeyslotMatchError:
            return False
        return True
