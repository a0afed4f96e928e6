"""Two copies of U-Boot's environment in one EEPROM (E-ENV6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import ByteOrder, Fill, Tail, UInt8
from formats.eeprom.parts.padding import BLANK
from formats.eeprom.uboot_env import (
    CODEC as ENVIRONMENT,
)
from formats.eeprom.uboot_env import (
    UbootEnvironment,
    Variables,
    encode_area,
)
from formats.errors import FieldError, FormatError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

#: Bytes of each copy when two copies are written and the size is not given.
_UNIT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCopy:
    """One of the two copies.

    Attributes:
        flags: See E-ENV6.
        variables: In their order.
        tail: The bytes after the variables.
        fill: The byte that fills the rest.
    """

    flags: UInt8 = 1
    variables: Variables = field(default_factory=dict)
    tail: Tail = b""
    fill: Fill = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RedundantEnvironment:
    """Both copies.

    Attributes:
        first: In the first half of the EEPROM.
        second: In the second half; None if that is blank.
        byte_order: Of both CRCs.
    """

    first: EnvironmentCopy
    second: EnvironmentCopy | None = None
    byte_order: ByteOrder = ByteOrder.LITTLE


class RedundantEnvironmentCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "uboot-env-redundant"
    title: ClassVar[str] = "U-Boot environment, two copies"
    model: ClassVar[type[RedundantEnvironment]] = RedundantEnvironment

    def decode(self, data: ReadableBuffer, report: Findings, /) -> RedundantEnvironment:
        content = bytes(data)
        half = len(content) // 2
        if len(content) % 2 or half < 6:
            raise FormatError("the data cannot hold two environments", offset=0, rule="E-ENV6")
        first = self._copy(content[:half], 0, report)
        second, order = None, first.byte_order
        if content[half:].strip(bytes((BLANK,))):
            second = self._copy(content[half:], half, report)
            if second.byte_order is not order:
                report.problem(half, "E-ENV6", "the copies have different byte orders")
        return RedundantEnvironment(
            first=_of(first), second=None if second is None else _of(second), byte_order=order
        )

    def encode(self, model: RedundantEnvironment, size: int | None, /) -> bytes:
        validate(model)
        copies = [("first", model.first), ("second", model.second)]
        if size is None:
            needed = [
                len(_encode(path, copy, model.byte_order, None)) for path, copy in copies if copy
            ]
            half = -(-max(needed) // _UNIT) * _UNIT
        elif size % 2:
            raise FieldError("", f"{size} bytes cannot be halved")
        else:
            half = size // 2
        return b"".join(
            _encode(path, copy, model.byte_order, half) if copy else bytes((BLANK,)) * half
            for path, copy in copies
        )

    @staticmethod
    def _copy(half: bytes, offset: int, report: Findings) -> UbootEnvironment:
        within = Findings.tolerant()
        found = ENVIRONMENT.decode(half, within)
        for problem in within.problems:
            report.problem(offset + problem.offset, problem.rule, problem.message)
        if found.flags is None or found.area_size is not None:
            report.problem(
                offset, "E-ENV6", "a half of the EEPROM is not an environment with flags"
            )
        return found


def _of(found: UbootEnvironment) -> EnvironmentCopy:
    return EnvironmentCopy(
        flags=found.flags or 0, variables=found.variables, tail=found.tail, fill=found.fill
    )


def _encode(path: str, copy: EnvironmentCopy, order: ByteOrder, size: int | None) -> bytes:
    environment = UbootEnvironment(
        variables=copy.variables,
        flags=copy.flags,
        byte_order=order,
        tail=copy.tail,
        fill=copy.fill,
    )
    try:
        return encode_area(environment, size)
    except FieldError as error:
        raise FieldError(f"{path}.{error.path}".rstrip("."), error.problem) from error


CODEC: Final = RedundantEnvironmentCodec()
