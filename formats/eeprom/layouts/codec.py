"""The codec of a layout: what a format in code is, made of a declaration (E-LAY1 to E-LAY3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from formats.eeprom.framework.fields import to_plain, validate
from formats.eeprom.layouts.compiling import Compiler
from formats.eeprom.layouts.declaration import Constant
from formats.eeprom.layouts.records import Around
from formats.eeprom.layouts.streams import Site
from formats.eeprom.parts.gaps import check_gaps, lay_out, others_as_pieces, read_gaps
from formats.eeprom.parts.recognising import require_content, require_size
from formats.errors import FieldError, ForeignImageError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings
    from formats.eeprom.layouts.declaration import Layout
    from formats.eeprom.layouts.records import Piece


class DeclaredCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    def __init__(self, layout: Layout) -> None:
        """Compile a layout.

        Raises:
            FieldError: It contradicts itself; the path says where.
        """
        self.name = layout.name
        self.title = layout.title or layout.name
        self._layout = layout
        self._record = Compiler(layout).record()
        self.model: type[Any] = self._record.model
        self._marks = [
            (field.offset or 0, field.content)
            for index, field in enumerate(layout.field)
            if isinstance(field, Constant)
            and field.when is None
            and (field.offset is not None or not index)
        ]

    @property
    def declaration(self) -> dict[str, Any]:
        """The layout as plain data, which is a table of a manifest."""
        return to_plain(self._layout)

    @property
    def is_marked(self) -> bool:
        """Whether constant bytes tell the layout from others (E7)."""
        return bool(self._marks)

    def decode(self, data: ReadableBuffer, report: Findings, /) -> Any:
        content, layout = bytes(data), self._layout
        require_content(content, self.title, "E-LAY2")
        self._require_mark(content)
        if layout.size is not None:
            require_size(content, layout.size, f"the {self.title}", "E-LAY3")
            if len(content) > layout.size:
                report.problem(layout.size, "E-LAY3", f"it continues after its {layout.size} bytes")
        blank = bytes((content[-1] if layout.size is None else layout.fill,))
        values, taken = self._record.read(content, Site(0, "", report, blank=blank))
        taken.sort()
        is_open = not taken or taken[-1][1] < len(content)
        fill = content[-1] if is_open else layout.fill
        return self.model(**values, other=read_gaps(content, _merged(taken), fill), fill=fill)

    def encode(self, model: Any, size: int | None, /) -> bytes:
        validate(model)
        layout = self._layout
        if layout.size is not None and size not in (None, layout.size):
            raise FieldError("", f"{self.title} has {layout.size} bytes, not {size}")
        size = layout.size if size is None else size
        others = others_as_pieces(model.other)
        pieces = self._record.pieces(model, "", Around(tuple(others), model.fill, size))
        taken = sorted((at, at + len(octets)) for at, octets, _ in pieces if octets)
        check_gaps(model.other, _merged(taken), model.fill)
        return lay_out([*filter(_has_bytes, pieces), *others], size, model.fill)

    def _require_mark(self, content: bytes) -> None:
        """Check that one of the constants is there, if there are any."""
        found = [content[at : at + len(mark)] == mark for at, mark in self._marks]
        if found and not any(found):
            raise ForeignImageError(
                f"the EEPROM has no {self.title}", offset=self._marks[0][0], rule="E-LAY2"
            )


def _has_bytes(piece: Piece) -> bool:
    return bool(piece[1])


def _merged(taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in their order, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(taken):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        elif end > start:
            merged.append((start, end))
    return merged
