"""What a codec of an EEPROM format is, and how it reports what it finds wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, runtime_checkable

from formats.errors import FormatError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

M = TypeVar("M")

#: What is wrong is listed up to so many; then there is one more `Finding`, which says so.
MOST_PROBLEMS: Final = 1000


class Codec(Protocol[M]):
    """One format: bytes to a model and back. No I/O.

    For every ``data`` that decodes strictly, ``encode(decode(data), len(data))``
    gives the same bytes; for every model that encodes, with a size that leaves room
    after it, decoding gives an equal model. Any other bytes fail cleanly.

    Attributes:
        name: The type of sections with it in manifests, such as ``pci-vpd``.
        title: The same for people.
        model: A frozen dataclass whose fields are those of the format's
            specification; `formats.eeprom.framework.fields` says which types it may use.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def model(self) -> type[M]: ...

    def decode(self, data: ReadableBuffer, report: Findings, /) -> M:
        """Return what the bytes say.

        Args:
            data: Everything the EEPROM holds, what is unused included.
            report: Gets what breaks a rule and can be read nevertheless; one that is
                strict raises then.

        Raises:
            FormatError: They cannot be read at all; or the report is strict.
            UnsupportedError: They are valid, but of a version that is not known.
        """

    def encode(self, model: M, size: int | None, /) -> bytes:
        """Return the bytes that say it, checksums included.

        Args:
            model: Checked against its limits here.
            size: Bytes of the EEPROM, all of which are returned; None for as many as
                the model needs.

        Raises:
            FieldError: A field breaks a limit, or all of it does not fit.
        """


@runtime_checkable
class CautiousCodec(Protocol):
    """A codec that knows of models which are right and do harm nevertheless."""

    def cautions(self, model: Any, /) -> tuple[str, ...]:
        """Return what to be aware of, a sentence each."""


def cautions_of(codec: Codec[M], model: M) -> tuple[str, ...]:
    """Return what to be aware of before a model is written, a sentence each.

    Args:
        codec: That of the model; most have nothing to say.
        model: Within its limits.
    """
    return codec.cautions(model) if isinstance(codec, CautiousCodec) else ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What breaks a rule of a format.

    Attributes:
        offset: Of the first byte that does.
        rule: Its name in ``spec/eeprom.md``.
        message: What is wrong.
        checksum: Bytes of the checksum at ``offset``, if all that is wrong is that it does
            not agree with what it covers; 0 for anything else.
    """

    offset: int
    rule: str
    message: str
    checksum: int = 0

    def __str__(self) -> str:
        return f"{self.message} at byte {self.offset} [{self.rule}]"


class Findings:
    """Where codecs say what is wrong with the bytes that they read."""

    def __init__(self, *, tolerant: bool) -> None:
        """Make an empty report; `strict` and `tolerant` say it shorter."""
        self.is_tolerant = tolerant
        self.problems: list[Finding] = []

    @classmethod
    def strict(cls) -> Findings:
        """Return a report that raises `FormatError` at the first problem."""
        return cls(tolerant=False)

    @classmethod
    def tolerant(cls) -> Findings:
        """Return a report that collects problems, so that what can be read is."""
        return cls(tolerant=True)

    def problem(self, offset: int, rule: str, message: str) -> None:
        """Note a broken rule (one of the first `MOST_PROBLEMS`), or raise.

        Raises:
            FormatError: The report is strict.
        """
        self._note(Finding(offset, rule, message))

    def compare(self, offset: int, rule: str, what: str, found: bytes, computed: bytes) -> None:
        """Note a checksum that is not the one that was computed, or raise (E4, E8).

        Args:
            offset: Of its first byte.
            rule: That says which checksum it is.
            what: Its name in the message, such as "the CRC of atom 3".
            found: As it is stored, in that byte order.
            computed: As it should be stored.

        Raises:
            FormatError: They differ, and the report is strict.
        """
        if found != computed:
            message = f"{what} is {found.hex()}, and should be {computed.hex()}"
            self._note(Finding(offset, rule, message, checksum=len(computed)))

    def _note(self, finding: Finding) -> None:
        if not self.is_tolerant:
            raise FormatError(finding.message, offset=finding.offset, rule=finding.rule)
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(finding)
        elif len(self.problems) == MOST_PROBLEMS:
            self.problems.append(Finding(finding.offset, "E1", "more is wrong, and not listed,"))
