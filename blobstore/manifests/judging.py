"""What bytes are: whether those of a section are of its type, and what a bare binary may be."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blobstore.errors import BlobNotFoundError, CorruptBlobError, DamagedHeadError
from blobstore.image.files import read_file
from blobstore.manifests.codecs import Codecs
from blobstore.manifests.fields import LARGEST_EEPROM, decode_section
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.registry import UNMARKED
from formats.errors import ForeignImageError, FormatError, UnsupportedError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from typing import Any

    from blobstore.store.protocol import AnyStore
    from formats.eeprom.framework.codec import Codec
    from formats.eeprom.layouts.codec import DeclaredCodec

#: This type has no rules that bytes could break.
_ANYTHING: Final = "raw"


@dataclass(frozen=True, slots=True)
class ContentProblem:
    """What is wrong with the content of a section, which the store itself cannot know (E9).

    Attributes:
        section: Its name.
        type: What its content should be, such as ``"pci-vpd"``.
        message: What is wrong, with the offset and the rule.
    """

    section: str
    type: str
    message: str


def check_contents(
    store: AnyStore, layouts: Iterable[Codec[Any]] = ()
) -> tuple[ContentProblem, ...]:
    """Return what is wrong with the content of sections whose type is an EEPROM format (E9).

    Sections that cannot be read are left out: `Store.verify` tells of them.

    Args:
        store: Not modified; each such blob is read, one at a time.
        layouts: Further types, which `load_layout` returned.
    """
    codecs = Codecs(layouts)
    types = set(codecs.names())
    found: list[ContentProblem] = []
    for section in store.sections(allow_damaged=True):
        is_written = section.size is not None and section.size <= LARGEST_EEPROM
        if section.type not in types or not is_written:
            continue
        # Damage is what verifying is about, and a section may be removed meanwhile.
        with suppress(BlobNotFoundError, CorruptBlobError, DamagedHeadError):
            try:
                problems = decode_section(
                    store, section.name, codecs.require(section.type)
                ).problems
            except (FormatError, UnsupportedError) as error:
                found.append(ContentProblem(section.name, section.type, str(error)))
            else:
                found += [
                    ContentProblem(section.name, section.type, str(problem)) for problem in problems
                ]
    return tuple(found)


def type_of_file(
    path: str | os.PathLike[str], layouts: Sequence[DeclaredCodec] = ()
) -> str | DeclaredCodec:
    """Return the type of a bare binary (E10).

    Args:
        path: The file or block device.
        layouts: Further types, which `load_layout` returned.

    Returns:
        What `decode_file` and `edit_file` take.

    Raises:
        ForeignImageError: It is of no type that is known.
        UnsupportedError: It may be of several.
        FormatError: It is larger than any EEPROM.
        DeviceError: The file cannot be read.
    """
    with open_place(path, lock=False) as device:
        if is_image(device):
            raise ForeignImageError(
                f"{path} is an image, and not a bare binary",
                offset=0,
                rule="E10",
                hint="name a section of it",
            )
    found = likely_types(read_file(path, lock=False, largest=LARGEST_EEPROM), layouts)
    if len(found) > 1:
        raise UnsupportedError(
            f"{path} may be {' or '.join(found)}",
            feature="content of several types",
            hint="name one of them with --type",
        )
    return next((layout for layout in layouts if layout.name == found[0]), found[0])


def likely_types(blob: bytes, layouts: Iterable[Codec[Any]] = ()) -> tuple[str, ...]:
    """Return the types that a binary may be of: those that find the fewest rules broken (E10).

    Args:
        blob: All that the EEPROM holds.
        layouts: Further types, which `load_layout` returned.

    Raises:
        ForeignImageError: It is of no type that is known.
    """
    problems: dict[str, int] = {}
    codecs = Codecs(layouts)
    for name in codecs.names():
        codec = codecs.find(name)
        if codec is None or name == _ANYTHING:
            continue
        is_marked = name not in UNMARKED and getattr(codec, "is_marked", True)
        report = Findings.tolerant() if is_marked else Findings.strict()
        with suppress(FormatError, UnsupportedError):
            codec.decode(blob, report)
            if all(problem.checksum for problem in report.problems):
                problems[name] = len(report.problems)
    if not problems:
        raise ForeignImageError(
            "the content is of no type that is known",
            offset=0,
            rule="E10",
            hint="name the type with --type; raw shows any bytes",
        )
    least = min(problems.values())
    return tuple(name for name, count in problems.items() if count == least)
