"""Interrupts at chosen bytecodes: a Ctrl-C at the worst possible moment.

A real signal arrives between two bytecodes of whatever Python code runs. Here the
interpreter traces every bytecode of the project's packages, and of `contextlib`,
which runs their context managers, and raises `KeyboardInterrupt` before the one
that was asked for. So a call can be interrupted at every point it has, in turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import FrameType

_ROOT = Path(__file__).resolve().parents[2]
_TRACED = (*(f"{_ROOT / name}{os.sep}" for name in ("blobstore", "formats", "luks")),)

#: Set in the environment, every point is tried instead of a sample.
EVERY_POINT = "BLOBSTORE_EVERY_INTERRUPT"


def interrupt_points(call: Callable[[], object]) -> int:
    """Return how many bytecodes of traced code ``call`` executes."""
    tracer = _Tracer(0)
    with tracer:
        call()
    return tracer.executed


def interrupted_at(point: int) -> AbstractContextManager[None]:
    """Raise `KeyboardInterrupt` before traced bytecode number ``point``, from 1 on, in the block.

    A block that executes fewer is not interrupted. Only this thread is traced.
    """
    return _Tracer(point)


def chosen_points(total: int, sample: int) -> list[int]:
    """Return the points to try: a fixed sample of them, or all if the environment asks for that."""
    points = range(1, total + 1)
    if os.environ.get(EVERY_POINT) or total <= sample:
        return list(points)
    return sorted(random.Random(total).sample(points, sample))


class _Tracer(contextlib.AbstractContextManager[None]):
    def __init__(self, point: int) -> None:
        self._point = point
        self.executed = 0

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter_frame(
        self, frame: FrameType, _event: str, _arg: object
    ) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if not (name.startswith(_TRACED) or name == contextlib.__file__):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._trace

    def _trace(self, _frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "opcode":
            self.executed += 1
            if self.executed == self._point:
                raise KeyboardInterrupt(f"at bytecode {self._point}")
        return self._trace
