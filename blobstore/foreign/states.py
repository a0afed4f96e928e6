"""The formats of other programs' device state, and the sections they go to.

The rules are those of ``spec/foreign-state.md``; `blobstore.foreign.importing` and
`blobstore.foreign.exporting` do what it says.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from formats.container.model import MAX_NAME_SIZE, validate_label
from formats.errors import ArgumentError, FormatError, UnsupportedError
from formats.state.swtpm import OVERHEAD, TPM_2_MAGIC, Slot, TpmVersion, decode_state
from formats.state.swtpm_linear import MAGIC as LINEAR_MAGIC

if TYPE_CHECKING:
    from collections.abc import Mapping


class StateFormat(StrEnum):
    """How a program keeps the state of a device."""

    SWTPM_DIR = "swtpm-dir"
    SWTPM_FILE = "swtpm-file"
    OVMF_VARS = "ovmf-vars"
    UEFI_VARS = "uefi-vars"
    RAW = "raw"

    @property
    def is_tpm(self) -> bool:
        """Whether it is state of a TPM, in several sections."""
        return self in (StateFormat.SWTPM_DIR, StateFormat.SWTPM_FILE)

    def validate_name(self, name: str | None) -> None:
        """Check what sections for the state are to be called, before anything is opened.

        Args:
            name: As in `blobstore.import_state`; None is the format's own.

        Raises:
            ValueError: It cannot be used, or there must be one and it is None.
        """
        if self.is_tpm:
            tpm_section_names(name)
        else:
            section_name(self, name)


#: The name of the section, or the first part of the names, unless one is given.
DEFAULT_NAMES: Final[Mapping[StateFormat, str]] = {
    StateFormat.SWTPM_DIR: "tpm",
    StateFormat.SWTPM_FILE: "tpm",
    StateFormat.OVMF_VARS: "uefi-variables",
    StateFormat.UEFI_VARS: "uefi-vars-json",
}

#: Worst case of QEMU's UEFI variables as JSON, in bytes (F22).
UEFI_VARS_MAX_SIZE: Final = 1 << 20

#: Worst cases of TPM states with what swtpm puts in front, in bytes (F7).
TPM_MAX_SIZES: Final[Mapping[tuple[TpmVersion, Slot], int]] = {
    (TpmVersion.TPM_2, Slot.PERMANENT): 256 << 10,
    (TpmVersion.TPM_2, Slot.VOLATILE): 65_535 + OVERHEAD,
    (TpmVersion.TPM_2, Slot.SAVED): 65_535 + OVERHEAD,
    (TpmVersion.TPM_12, Slot.PERMANENT): 100_000 + OVERHEAD,
    (TpmVersion.TPM_12, Slot.VOLATILE): 100_000 + OVERHEAD,
    (TpmVersion.TPM_12, Slot.SAVED): 524_288 + OVERHEAD,
}

_TPM_ENDINGS: Final = {
    Slot.PERMANENT: "-permanent-state",
    Slot.VOLATILE: "-volatile-state",
    Slot.SAVED: "-save-state",
}
_TPM_TYPES: Final = {TpmVersion.TPM_2: "tpm2", TpmVersion.TPM_12: "tpm12"}
#: What types of such sections start with, and what their names end with: ours, and those
#: of swtpm's files.
_TPM_TYPE_STARTS: Final = tuple(f"{kind}-" for kind in _TPM_TYPES.values())
_TPM_NAME_ENDINGS: Final = (*_TPM_ENDINGS.values(), ".permall", ".volatilestate", ".savestate")
_SLOT_TYPES: Final = {Slot.PERMANENT: "permall", Slot.VOLATILE: "volatile", Slot.SAVED: "savestate"}


def section_name(form: StateFormat, name: str | None) -> str:
    """Return the name of the section for a format of one section.

    Raises:
        ValueError: The name breaks a rule, or is missing where there must be one.
    """
    name = name or DEFAULT_NAMES.get(form)
    if name is None:
        raise ArgumentError(f"{form} needs the name of a section")
    validate_label(name, "name", lowest=1, highest=MAX_NAME_SIZE)
    return name


def tpm_section_names(name: str | None) -> dict[Slot, str]:
    """Return the names of the sections for the states of a TPM (F7).

    Raises:
        ValueError: They would break a rule.
    """
    first = name or DEFAULT_NAMES[StateFormat.SWTPM_DIR]
    names = {slot: first + ending for slot, ending in _TPM_ENDINGS.items()}
    for full in names.values():
        validate_label(full, "name", lowest=1, highest=MAX_NAME_SIZE)
    return names


def belongs_to_tpm(name: str, type_: str) -> bool:
    """Say whether a section is for a state of a TPM, by its type or its name (C83).

    Its content can tell as well: see `is_tpm_state`.
    """
    return type_.startswith(_TPM_TYPE_STARTS) or name.endswith(_TPM_NAME_ENDINGS)


def is_tpm_state(content: bytes) -> bool:
    """Say whether this is what swtpm or libtpms store of a TPM, wherever it is found."""
    if content[2:6] in TPM_2_MAGIC or content[:8] == LINEAR_MAGIC:
        return True
    try:
        decode_state(content)
    except (FormatError, UnsupportedError):
        return False
    return True


def tpm_type(version: TpmVersion, slot: Slot) -> str:
    """Return the type of a section with such a state."""
    return f"{_TPM_TYPES[version]}-{_SLOT_TYPES[slot]}"
