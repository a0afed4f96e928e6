"""Interrupts at chosen bytecodes: a Ctrl-C at the worst possible moment.

A real signal arrives between two bytecodes of whatever Python code runs. Here the
interpreter traces every bytecode of the project's packages, and of `contextlib`,
which runs their context managers, and raises `KeyboardInterrupt` before the one
that was asked for. So a call can be interrupted at every point it has, in turn.

CI tries a sample of the points. With ``BLOBSTORE_EVERY_INTERRUPT=1`` all are tried, which
takes hours where a call computes much: checks of JSON, tables of qcow2, and anti-forensic
splitting pass the same bytecode thousands of times between two uses of the device. With
``BLOBSTORE_EVERY_INTERRUPT=classes`` two kinds are left out:

- A point after a bytecode that only loads, compares or jumps, if the same handler of exceptions
  is in force before and after it. Such a bytecode changes nothing but the stack of its own
  frame, which an exception discards: the point is the one before it once more.
- Repetitions. Points are of one class if they have the same call stack, bytecode by bytecode,
  and as many uses of the device (reads, writes, flushes, changes of size, locks) lie before
  them. They differ only in how far loops are that use no device meanwhile. Of each class the
  first, second, middle and last point are tried: before such a loop, after its first step,
  within, and before its last step. So an interrupt is missed that does harm in another
  step but in none of these. Most of what loops compute is seen by nobody before they
  end; those that change what outlives the call, such as `follow` of a commit, have no more
  than four steps in these tests.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import os
import random
import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import CodeType, FrameType

    _Trace = Callable[[FrameType, str, Any], Any]

_ROOT = Path(__file__).resolve().parents[2]
_TRACED = (*(f"{_ROOT / name}{os.sep}" for name in ("blobstore", "formats", "luks")),)

#: Set in the environment, every point is tried instead of a sample; or "classes" of them.
EVERY_POINT = "BLOBSTORE_EVERY_INTERRUPT"
_CLASSES = "classes"

#: Functions, of whatever device, and files with nothing but locks, that use the device.
_USES = {"read_into", "write", "flush", "resize", "discard", "reserve", "close"}
_LOCKS = ("/devices/locks.py", "/header/lock.py")

#: Bytecodes that change nothing but the stack of their frame, by the beginning of their names.
_PASSIVE = (
    *("LOAD_", "JUMP_", "POP_JUMP_", "COMPARE_", "CONTAINS_", "IS_", "BUILD_", "BINARY_SUBSCR"),
    *("PUSH_NULL", "COPY", "SWAP", "RESUME", "NOP", "PRECALL", "KW_NAMES", "EXTENDED_ARG"),
)


class InterruptPoints:
    """The points at which a call can be interrupted, from 1 on.

    Attributes:
        total: How many there are.
        by_class: Whether those that repeat others are left out.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        """Find them, by running ``call`` once in this thread. Only this thread is traced."""
        self.by_class = os.environ.get(EVERY_POINT) == _CLASSES
        counter = _Counter(by_class=self.by_class)
        with counter:
            call()
        self._activations, self._indices = counter.activations, counter.indices
        self._classes = counter.classes
        self.total = len(counter.indices)

    def chosen(self, sample: int, first: int = 1, last: int | None = None) -> list[int]:
        """Return what to try from ``first`` to ``last``: a fixed sample, or what is asked for."""
        points = range(first, (last or self.total) + 1)
        if self.by_class:
            ends = (
                {numbers[0], numbers[min(1, len(numbers) - 1)], numbers[len(numbers) // 2]}
                | {numbers[-1]}
                for numbers in self._classes.values()
            )
            return sorted(set().union(*ends).intersection(points))
        if os.environ.get(EVERY_POINT) or len(points) <= sample:
            return list(points)
        return sorted(random.Random(len(points)).sample(points, sample))

    def interrupted_at(self, point: int) -> AbstractContextManager[object]:
        """Raise `KeyboardInterrupt` at ``point`` of the same call in the block."""
        return _Interrupter(self._activations[point - 1], self._indices[point - 1])

    def __str__(self) -> str:
        classes = f" in {len(self._classes)} classes" if self.by_class else ""
        return f"{self.total} points{classes}"


@contextlib.contextmanager
def collecting_what_is_new() -> Iterator[None]:
    """Have collections of garbage leave out what is there when the block begins.

    A test collects after each point, to close what an interrupt left in a circle. To look
    through all that pytest has imported takes longer than the interrupted call.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Tracer(contextlib.AbstractContextManager["_Tracer"]):
    """Traces frames of the project; each time one is entered or resumed is an activation."""

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        self._bottom = sys._getframe(1)
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter_frame(self, frame: FrameType, _event: str, _arg: object) -> _Trace | None:
        name = frame.f_code.co_filename
        if not (name.startswith(_TRACED) or name == contextlib.__file__):
            return None
        trace = self._entered(frame)
        if trace is not None:
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        return trace

    def _entered(self, frame: FrameType) -> _Trace | None:
        raise NotImplementedError


class _Counter(_Tracer):
    """Notes of each point the activation, and which bytecode of it; and what class it is of."""

    def __init__(self, *, by_class: bool) -> None:
        self._by_class = by_class
        self._number = 0
        self._uses = 0
        self._stacks: dict[object, int] = {}
        self.activations = array("L")
        self.indices = array("L")
        self.classes: dict[object, array[int]] = {}

    def _entered(self, frame: FrameType) -> _Trace | None:
        self._number += 1
        activation, index = self._number, 0
        unsafe = _unsafe(frame.f_code)
        finalizing = _is_finalizing(frame)
        stack = self._stack(frame) if self._by_class else 0
        passive = _passive(frame.f_code)
        handlers = _handlers(frame.f_code)
        before = None

        def trace(frame: FrameType, event: str, _arg: object) -> _Trace:
            nonlocal index, before
            if event == "opcode":
                index += 1
                at = frame.f_lasti
                if at in unsafe:
                    before = None  # it may be a call, after which everything has changed
                elif not finalizing:
                    self.activations.append(activation)
                    self.indices.append(index)
                    if self._by_class and before != (self._number, handlers.get(at)):
                        key = (stack, at, self._uses)
                        self.classes.setdefault(key, array("L")).append(len(self.indices))
                    before = (self._number, handlers.get(at)) if at in passive else None
            return trace

        return trace

    def _stack(self, frame: FrameType) -> int:
        """Count a use of the device, if it is one; return a number for the stack."""
        code = frame.f_code
        self._uses += code.co_name in _USES or code.co_filename.endswith(_LOCKS)
        stack: list[object] = [code]
        caller = frame.f_back
        while caller is not None and caller is not self._bottom:
            stack += (caller.f_code, caller.f_lasti)
            caller = caller.f_back
        return self._stacks.setdefault(tuple(stack), len(self._stacks))


class _Interrupter(_Tracer):
    """Raises once; only the activation in question is traced bytecode by bytecode."""

    def __init__(self, activation: int, index: int) -> None:
        self._activation, self._index = activation, index
        self._number = 0
        self._is_overdue = False

    def _entered(self, frame: FrameType) -> _Trace | None:
        del frame
        self._number += 1
        is_due = self._number == self._activation or self._is_overdue
        return self._trace if is_due else None

    def _trace(self, frame: FrameType, event: str, _arg: object) -> _Trace:
        if event == "opcode":
            self._index -= 1
            if (self._index <= 0 or self._is_overdue) and _is_safe(frame):
                raise KeyboardInterrupt(f"at bytecode {frame.f_lasti} of {frame.f_code.co_name}")
        elif event == "return":
            self._is_overdue = True  # it went another way than when it was counted
        return self._trace


def _is_safe(frame: FrameType) -> bool:
    """Say whether an exception may be raised before the bytecode that a frame is at.

    At some it may not, see `_unsafe`. And what is raised in a finalizer reaches nobody.
    """
    return frame.f_lasti not in _unsafe(frame.f_code) and not _is_finalizing(frame)


def _is_finalizing(frame: FrameType) -> bool:
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "__del__":
            return True
        caller = caller.f_back
    return False


@functools.cache
def _passive(code: CodeType) -> frozenset[int]:
    """Return where bytecodes are after which nothing has changed."""
    instructions = dis.get_instructions(code)
    return frozenset(one.offset for one in instructions if one.opname.startswith(_PASSIVE))


@functools.cache
def _handlers(code: CodeType) -> dict[int, object]:
    """Return what is in force at each bytecode when an exception is raised there."""
    entries: Any = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    return {at: entry for entry in entries for at in range(entry.start, entry.end, 2)}


@functools.cache
def _unsafe(code: CodeType) -> frozenset[int]:
    """Return bytecodes before which nothing may be raised, as no signal is looked for there.

    - Between the names of keyword arguments and their call: the interpreter keeps the
      names for whatever it calls next, if that call never happens.
    - Between a ``with`` block and its `__exit__`, which would not be called: a program
      loses no lock there, but here the next thread would wait for it without end.
    """
    instructions = list(dis.get_instructions(code))
    found = set()
    named = False
    for number, instruction in enumerate(instructions):
        if named and instruction.opname in ("PRECALL", "CALL"):
            found.add(instruction.offset)
        named = instruction.opname == "KW_NAMES" or (named and instruction.opname == "PRECALL")
        found.update(_end_of_with(instructions[number : number + 5]))
        # What a ``return`` in the block returns; or where a loop or an ``if`` in it ends.
        if instruction.opname in ("SWAP", "NOP"):
            found.update(_end_of_with(instructions[number + 1 : number + 6], instruction.offset))
    return frozenset(found)


def _end_of_with(instructions: list[dis.Instruction], *more: int) -> list[int]:
    """Return where these are and ``more``, if they call `__exit__` as no exception was raised."""
    names = [instruction.opname for instruction in instructions if instruction.opname != "PRECALL"]
    values = [instruction.argval for instruction in instructions[:3]]
    if names[:4] != ["LOAD_CONST"] * 3 + ["CALL"] or values != [None] * 3:
        return []
    return [*more, *(one.offset for one in instructions[: 3 + len(instructions) - len(names) + 1])]
