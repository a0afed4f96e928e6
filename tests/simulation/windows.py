"""What a window may hold: the last flushed content, or one that was written since, whole.

One client writes each window, block by block. A buffered window is committed as a whole, so what a
recovery finds is the state after some of its writes, in order, from the last flush on; never a
mixture. The client sees what it wrote, and after an owner that died, what the recovery found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from tests.simulation.scheduler import Scheduler

BLOCK: Final = 512
_State = tuple[int, ...]


def block_of(number: int) -> bytes:
    """Return a block that a write made; 0 is one that was never written."""
    return (b"%016d" % number) * (BLOCK // 16) if number else bytes(BLOCK)


class WindowHistory:
    """The states that a window may be found in.

    Attributes:
        name: Of its section.
        blocks: How many it has.
        flushes: Acknowledged ones.
        recoveries: How often an owner found it: a request that one lies in does not count.
    """

    def __init__(
        self, scheduler: Scheduler, name: str, blocks: int, *, replays: bool = False
    ) -> None:
        """Have no content yet.

        Args:
            scheduler: For the trace.
            name: Of the section.
            blocks: How many it has.
            replays: Whether its client writes once more what was not flushed, in its order,
                when it is connected again (N66): then blocks are old or new each by itself.
        """
        self._scheduler = scheduler
        self.name, self.blocks, self._replays = name, blocks, replays
        self.recoveries = 0
        self.flushes = 0
        self._number = 0
        self._states: list[_State] = [(0,) * blocks]
        # How many states, from the last one back, the client may read: one of which it knows that
        # it was written, and those of which it does not know it.
        self._doubtful = 1

    def write(self, block: int) -> bytes:
        """Return what to write to a block now."""
        self._number += 1
        state = list(self._states[-1])
        state[block] = self._number
        self._states.append(tuple(state))
        self._doubtful += 1
        return block_of(self._number)

    def written(self) -> None:
        """Note that the write was acknowledged."""
        self._doubtful = 1

    def flushed(self) -> None:
        """Note that a flush was acknowledged: nothing before the last write may be seen again."""
        self.flushes += 1
        del self._states[:-1]
        self._doubtful = 1

    def was_read(self, content: bytes) -> None:
        """Note what the client reads from the owner to which it wrote."""
        self._settle(self._found(content, self._states[-self._doubtful :], "is read as"))

    def was_read_again(self, content: bytes) -> None:
        """Note what a client reads that does not know what became of its last writes."""
        self._settle(self._found(content, self._states, "is read again as"))

    def was_recovered(self, content: bytes | None) -> None:
        """Note what an owner finds; None if it was never written."""
        self.recoveries += 1
        found = self._found(content or b"", self._states, "is found as")
        if not self._replays:
            self._states, self._doubtful = [found], 1

    def _settle(self, state: _State) -> None:
        """Have only this one of the states that are in doubt; earlier ones may still be durable."""
        known = self._states[: len(self._states) - self._doubtful + 1]
        self._states = known if state == known[-1] else [*known, state]
        self._doubtful = 1

    def _found(self, content: bytes, possible: list[_State], verb: str) -> _State:
        """Return the state that this content is; refuse one that is not possible."""
        content = content.ljust(self.blocks * BLOCK, b"\0")
        blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
        state = tuple(map(_number_in, blocks))
        if state in possible:
            return state
        if self._replays and all(
            number in {one[block] for one in possible} for block, number in enumerate(state)
        ):
            return state
        text = f"window {self.name} {verb} {state}, which is none of {possible}"
        self._scheduler.note(text)
        raise SimulationError(text)


def _number_in(block: bytes) -> int:
    try:
        number = int(block[:16]) if any(block) else 0
    except ValueError:
        return -1
    return number if block == block_of(number) else -1
