"""What the constructs of a layout share while they read and write."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import construct

from formats.errors import FieldError, TruncatedImageError

if TYPE_CHECKING:
    from formats.eeprom.framework.codec import Findings


@dataclass(frozen=True, slots=True)
class Site:
    """Where something is that is read.

    Attributes:
        base: The offset in the EEPROM of the first byte that is there.
        path: The field, as manifests name it.
        report: Gets what is wrong.
        count: Items of an array, as a count before it says; None if there is none.
        blank: The fill byte, if the bytes go on to the end of the EEPROM.
    """

    base: int
    path: str
    report: Findings
    count: int | None = None
    blank: bytes | None = None

    def within(self, offset: int, name: str) -> Site:
        """Return the site of a part, which begins at an offset of this one."""
        path = joined(self.path, name) if name else self.path
        return replace(self, base=self.base + offset, path=path, count=None, blank=None)


class Source(io.BytesIO):
    """Bytes that are read, and where they are."""

    def __init__(self, octets: bytes, site: Site) -> None:
        super().__init__(octets)
        self.site = site


class Sink(io.BytesIO):
    """Bytes that are written, and the path of the field that they are of."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


@dataclass(frozen=True, slots=True)
class Value:
    """A field with a value.

    Attributes:
        name: Its name in manifests.
        construct: Reads and writes it.
        annotation: Of the field of the model.
        size: Bytes; None if it depends on what is stored.
    """

    name: str
    construct: construct.Construct
    annotation: Any
    size: int | None


def read_value(value: Value, octets: bytes, site: Site) -> tuple[Any, int]:
    """Return what the bytes say, and how many of them it takes.

    What does not fit is a problem in the report, and None is returned for it.

    Raises:
        TruncatedImageError: There are fewer bytes than it takes.
    """
    source = Source(octets, site)
    try:
        found = value.construct.parse_stream(source)
    except construct.ValidationError as error:
        site.report.problem(site.base, "E-LAY4", f"{site.path} {error.args[0]}")
        return None, value.size if value.size is not None else len(octets)
    except construct.StreamError:
        raise TruncatedImageError(
            f"{site.path} is cut short: it has {len(octets)} bytes",
            offset=site.base,
            rule="E-LAY3",
        ) from None
    return found, source.tell()


def write_value(value: Value, found: Any, path: str) -> bytes:
    """Return the bytes that say it.

    Raises:
        FieldError: It cannot be stored.
    """
    sink = Sink(path)
    try:
        value.construct.build_stream(found, sink)
    except construct.ValidationError as error:
        raise FieldError(path, str(error.args[0])) from None
    except (construct.ConstructError, OverflowError) as error:
        raise FieldError(path, f"cannot be stored in {value.size} bytes") from error
    return sink.getvalue()


def joined(path: str, name: str) -> str:
    """Return the path of a part, or of an item in brackets."""
    return f"{path}.{name}" if path and not name.startswith("[") else path + name
