"""Interrupts at chosen bytecodes: a Ctrl-C at the worst possible moment.

A real signal arrives between two bytecodes of whatever Python code runs. Here the
interpreter traces every bytecode of the project's packages, and of `contextlib`,
which runs their context managers, and raises `KeyboardInterrupt` before the one
that was asked for. So a call can be interrupted at every point it has, in turn.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import CodeType, FrameType

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

    def _trace(self, frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "opcode":
            self.executed += 1
            if 0 < self._point <= self.executed and _is_safe(frame):
                self._point = 0
                raise KeyboardInterrupt(f"at bytecode {self.executed}")
        return self._trace


def _is_safe(frame: FrameType) -> bool:
    """Say whether an exception may be raised before the bytecode that a frame is at.

    Between the names of keyword arguments and their call it may not: the interpreter
    keeps the names for whatever it calls next, if that call never happens. It looks
    for no signals there. And what is raised in a finalizer reaches nobody.
    """
    if frame.f_lasti in _calls_with_names(frame.f_code):
        return False
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "__del__":
            return False
        caller = caller.f_back
    return True


@functools.cache
def _calls_with_names(code: CodeType) -> frozenset[int]:
    found = []
    named = False
    for instruction in dis.get_instructions(code):
        if named and instruction.opname in ("PRECALL", "CALL"):
            found.append(instruction.offset)
        named = instruction.opname == "KW_NAMES" or (named and instruction.opname == "PRECALL")
    return frozenset(found)
