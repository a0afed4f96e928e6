"""What is wrong with a flash of variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Flaws are listed up to so many; a last one says that there are more.
MOST: Final = 100


@dataclass(frozen=True, slots=True)
class Flaw:
    """What breaks a rule of a store of variables, or is left of an interrupted write.

    Attributes:
        offset: Of the first byte that does, in the flash.
        rule: Its name in ``spec/foreign-state.md``.
        message: What is wrong.
    """

    offset: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} at byte {self.offset} [{self.rule}]"


class Flaws:
    """Collects what is wrong, the first `MOST` of it."""

    def __init__(self) -> None:
        self._found: list[Flaw] = []

    def add(self, offset: int, rule: str, message: str) -> None:
        """Note a flaw."""
        if len(self._found) < MOST:
            self._found.append(Flaw(offset, rule, message))
        elif len(self._found) == MOST:
            self._found.append(Flaw(offset, rule, "more is wrong, and not listed,"))

    def all(self) -> tuple[Flaw, ...]:
        """Return them, in the order in which they were found."""
        return tuple(self._found)
