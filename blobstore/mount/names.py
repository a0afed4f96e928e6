"""Names of files and names of sections (M2, M3, M23)."""

from __future__ import annotations

import errno
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol

from blobstore.foreign.states import TPM_MAX_SIZES, tpm_section_names, tpm_type
from blobstore.foreign.swtpm_directory import state_file
from blobstore.mount.failures import failure
from blobstore.mount.settings import Layout
from formats.container.model import MAX_NAME_SIZE, validate_label
from formats.errors import ArgumentError
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from blobstore.mount.settings import MountSettings

_ESCAPED: Final = re.compile("%([0-9A-F]{2})")
_AMBIGUOUS: Final = re.compile("%(?=[0-9A-Fa-f]{2})")
#: How swtpm marks the state before, which it falls back to.
_BACKUP: Final = ".bak"


class Names(Protocol):
    """How files and sections are named."""

    def file(self, section: str, type_: str) -> str | None:
        """Return the name of the file of a section of this type; None if it is not shown."""

    def section(self, file: str) -> str | None:
        """Return the section that a file becomes; None if it is kept in memory only.

        Raises:
            OSError: A file cannot have this name.
        """

    def is_temporary(self, file: str) -> bool:
        """Say whether a new file of this name is renamed before it is to last."""

    def type(self, file: str) -> str:
        """Return the type of the section that a new file becomes."""

    def worst_case(self, file: str) -> int:
        """Return the least worst case of a new file, in bytes."""

    @property
    def shows_unwritten(self) -> bool:
        """Whether sections that were never written are empty files, or not there."""


def names_for(settings: MountSettings) -> Names:
    """Return the names of a layout.

    Raises:
        ValueError: The name of the TPM breaks a rule.
    """
    return SwtpmNames(settings) if settings.layout == Layout.SWTPM else SectionNames(settings)


class SectionNames:
    """Files have the names of their sections, as far as files can have them."""

    shows_unwritten = True

    def __init__(self, settings: MountSettings) -> None:
        """Know which names are temporary."""
        self._settings = settings

    def file(self, section: str, type_: str) -> str | None:
        """Return the name with everything escaped that cannot be in a name of a file."""
        del type_
        name = _AMBIGUOUS.sub("%25", section).replace("/", "%2F")
        return name.replace(".", "%2E") if name in (".", "..") else name

    def section(self, file: str) -> str | None:
        name = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), file)
        if self.file(name, "") != file:
            raise failure(errno.EINVAL, file)
        require_name(name)
        return name

    def is_temporary(self, file: str) -> bool:
        return any(fnmatchcase(file, pattern) for pattern in self._settings.temporary)

    def type(self, file: str) -> str:
        del file
        return ""

    def worst_case(self, file: str) -> int:
        del file
        return self._settings.new_file


class SwtpmNames:
    """The states of one TPM under the names that swtpm gives them; all else is in memory only."""

    shows_unwritten = False  # swtpm makes a new TPM where there is no file, only there

    def __init__(self, settings: MountSettings) -> None:
        """Know the files of both versions of TPMs."""
        sections = tpm_section_names(settings.tpm)
        self._files: dict[str, tuple[TpmVersion, Slot]] = {
            state_file(version, slot): (version, slot) for version in TpmVersion for slot in Slot
        }
        self._sections = {sections[slot]: slot for slot in Slot}
        self._names = {slot: name for name, slot in self._sections.items()}

    def file(self, section: str, type_: str) -> str | None:
        stem, backup = _without_backup(section)
        slot = self._sections.get(stem)
        if slot is None:
            return None
        is_old = type_ == tpm_type(TpmVersion.TPM_12, slot)
        return state_file(TpmVersion.TPM_12 if is_old else TpmVersion.TPM_2, slot) + backup

    def section(self, file: str) -> str | None:
        stem, backup = _without_backup(file)
        found = self._files.get(stem)
        if found is None:
            require_name(file)
            return None
        return self._names[found[1]] + backup

    def is_temporary(self, file: str) -> bool:
        return self.section(file) is None

    def type(self, file: str) -> str:
        return tpm_type(*self._files[_without_backup(file)[0]])

    def worst_case(self, file: str) -> int:
        return TPM_MAX_SIZES[self._files[_without_backup(file)[0]]]


def _without_backup(name: str) -> tuple[str, str]:
    stem = name.removesuffix(_BACKUP)
    return stem, name[len(stem) :]


def require_name(name: str) -> None:
    """Refuse a name that no section can have.

    Raises:
        OSError: ENAMETOOLONG, or EINVAL.
    """
    try:
        validate_label(name, "name", lowest=1, highest=MAX_NAME_SIZE)
    except ArgumentError as error:
        long = len(name.encode(errors="surrogateescape")) > MAX_NAME_SIZE
        raise failure(errno.ENAMETOOLONG if long else errno.EINVAL, name) from error
