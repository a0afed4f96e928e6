"""Device state of other programs into a store (``spec/foreign-state.md``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from blobstore.errors import BlobNotFoundError, SectionExistsError, SectionMismatchError
from blobstore.foreign.flashes import read_flash, stored_flash
from blobstore.foreign.states import (
    TPM_MAX_SIZES,
    UEFI_VARS_MAX_SIZE,
    StateFormat,
    section_name,
    tpm_section_names,
    tpm_type,
)
from blobstore.foreign.swtpm_directory import read_directory
from blobstore.image.files import read_file
from formats.errors import ArgumentError, EmptyImageError, FormatError
from formats.state.swtpm import (
    PlainState,
    Slot,
    decode_state,
    encode_state,
    tpm_version,
    validate_slot,
)
from formats.state.swtpm_linear import decode_linear
from formats.state.swtpm_older import is_in_the_clear, older_content
from formats.state.uefi_vars import decode_variables
from luks.errors import PolicyError, SecretRequiredError

if TYPE_CHECKING:
    from blobstore.foreign.encryption import StateKey
    from blobstore.foreign.flashes import Flash
    from blobstore.store.description import SectionInfo
    from blobstore.store.protocol import AnyStore

#: A path, or something open to be read to its end.
Source = str | os.PathLike[str] | IO[bytes]


@dataclass(frozen=True, slots=True)
class _Part:
    """What one section is to become.

    Attributes:
        name: Of the section.
        max_size: Worst case to register, in bytes.
        type: Of a new section.
        kind: Of a new section.
        blob: Its content; None if it is to be gone.
    """

    name: str
    max_size: int
    type: str = ""
    kind: str = "blob"
    blob: bytes | None = None


def import_state(
    store: AnyStore,
    source: Source,
    form: StateFormat | str,
    *,
    name: str | None = None,
    max_size: int | None = None,
    key: StateKey | None = None,
    overwrite: bool = False,
    allow_unprotected: bool = False,
    blank: bool = False,
) -> tuple[str, ...]:
    """Store the device state that a program keeps in files, all of it or nothing (F1).

    Args:
        store: Changed by one transaction.
        source: The file, block device or directory; not modified.
        form: What the source is. The flash of `StateFormat.OVMF_VARS` may be the disk of a
            qcow2 image (F24).
        name: The section, or the first part of the names of a TPM's sections;
            None is the format's own. `StateFormat.RAW` must have one.
        max_size: Worst case of the section in bytes, for `StateFormat.RAW` and
            `StateFormat.UEFI_VARS`; None is the content's size or the format's.
        key: Of encrypted TPM state.
        overwrite: Replace sections that were written (F3).
        allow_unprotected: Decrypt into a store that is not encrypted (F12).
        blank: The source is a flash without variables, all ``00`` or ``ff``: the template of
            a new machine. `StateFormat.OVMF_VARS` only.

    Returns:
        The names of the sections that now hold the state.

    Raises:
        EmptyImageError: There is no state in the source.
        ForeignImageError: It is of another format.
        TruncatedImageError, FormatError: It is damaged.
        StateAuthenticationError: It does not verify with this key.
        SecretRequiredError: It is encrypted, and there is no key.
        PolicyError: See F12.
        SectionExistsError: A section was written, and not ``overwrite``.
        SectionMismatchError: A section is unfit for the state.
        UnsupportedError: The source is of a version that is not implemented, or a qcow2
            image that is encrypted or has a backing file.
        DeviceBusyError: Another process is using the source.
        BlobTooLargeError, NoSpaceError, CorruptBlobError, ReadOnlyError,
        DeviceError, PoisonedStoreError: As `Store.transaction`.
        ValueError: The arguments do not fit together.
    """
    form = StateFormat(form)
    if key is not None and not form.is_tpm:
        raise ArgumentError(f"{form} is never encrypted: it takes no key")
    if max_size is not None and form not in (StateFormat.RAW, StateFormat.UEFI_VARS):
        raise ArgumentError(f"{form} has a worst case of its own")
    if blank and form is not StateFormat.OVMF_VARS:
        raise ArgumentError(f"{form} is never blank")
    if form.is_tpm:
        parts = _tpm_parts(store, source, form, name, key, allow_unprotected=allow_unprotected)
    else:
        section = section_name(form, name)
        if form is StateFormat.OVMF_VARS:
            part = _flash_part(store, read_flash(source, blank=blank), section, overwrite=overwrite)
        else:
            part = _single_part(form, section, _content(source), max_size)
        parts = [part]
    _store(store, parts, overwrite=overwrite)
    return tuple(part.name for part in parts if part.blob is not None)


def _content(source: Source) -> bytes:
    if isinstance(source, str | os.PathLike):
        return read_file(source)
    return source.read()


def _flash_part(store: AnyStore, flash: Flash, name: str, *, overwrite: bool) -> _Part:
    existing = _existing(store, name)
    if existing is not None:
        _require_replaceable(existing, overwrite=overwrite)
    stored = stored_flash(flash, existing)
    return _Part(name, stored.max_size, stored.type, "window", stored.blob)


def _single_part(form: StateFormat, name: str, content: bytes, max_size: int | None) -> _Part:
    """Check the content of a format of one section."""
    if form is StateFormat.UEFI_VARS:
        decode_variables(content)
        wanted = UEFI_VARS_MAX_SIZE if max_size is None else max_size
        return _Part(name, wanted, str(form), blob=content)
    return _Part(name, len(content) if max_size is None else max_size, blob=content)


def _tpm_parts(
    store: AnyStore,
    source: Source,
    form: StateFormat,
    name: str | None,
    key: StateKey | None,
    *,
    allow_unprotected: bool,
) -> list[_Part]:
    """Read, decrypt and check the states of a TPM; those that are absent have no blob."""
    named_version = None
    if form is StateFormat.SWTPM_FILE:
        found = decode_linear(_content(source))
    elif isinstance(source, str | os.PathLike):
        named_version, found = read_directory(Path(source))
    else:
        raise ArgumentError("a directory cannot be read from something open")
    if Slot.PERMANENT not in found:
        raise EmptyImageError("there is no permanent state of a TPM", rule="F7")
    clear = {slot: _in_the_clear(slot, state, key) for slot, state in found.items()}
    states = {slot: state for slot, (state, _) in clear.items()}
    version = named_version or tpm_version(states[Slot.PERMANENT])
    for slot, state in states.items():
        validate_slot(state, slot, version)
    if key is not None and not (store.info().encrypted or allow_unprotected):
        raise PolicyError(
            "the TPM state is encrypted, and the store it would be decrypted into is not [F12]",
            hint="if that is intended, permit it with allow_unprotected",
        )
    return [
        _Part(
            section,
            TPM_MAX_SIZES[version, slot],
            tpm_type(version, slot),
            blob=clear[slot][1] if slot in clear else None,
        )
        for slot, section in tpm_section_names(name).items()
    ]


def _in_the_clear(slot: Slot, content: bytes, key: StateKey | None) -> tuple[PlainState, bytes]:
    """Return a state, and the bytes to store: those found, unless they were encrypted (F4).

    One that is older than today's form is stored in that (F23).
    """
    what = f"the {slot.name.lower()} state"
    older = older_content(content, what)
    if older is not None and is_in_the_clear(older):
        content = encode_state(PlainState(older))
    elif older is not None and key is not None:
        decrypted = key.decrypt_older(older)
        return decrypted, encode_state(decrypted)
    elif older is not None and older is not content:
        raise _key_missing()
    elif older is not None:
        raise FormatError(
            f"{what} does not begin as swtpm's state does",
            offset=0,
            rule="F8",
            hint="if a swtpm before version 0.1 encrypted it, give its key with --swtpm-key",
        )
    state = decode_state(content, what)
    if isinstance(state, PlainState):
        if key is not None:
            raise PolicyError(
                "there is a key for the TPM state, but it is not encrypted [F12]",
                hint="another one may have been put in its place",
            )
        return state, content
    if key is None:
        raise _key_missing()
    decrypted = key.decrypt(state)
    return decrypted, encode_state(decrypted)


def _key_missing() -> SecretRequiredError:
    return SecretRequiredError("the TPM state is encrypted: the key of swtpm's --key is needed")


def _store(store: AnyStore, parts: list[_Part], *, overwrite: bool) -> None:
    with store.transaction() as changes:
        for part in parts:
            existing = _existing(store, part.name)
            if existing is not None:
                _check(existing, part, several=len(parts) > 1, overwrite=overwrite)
            if part.blob is None:
                if existing is not None and existing.size is not None:
                    changes.delete(part.name)
                continue
            kind = existing.kind if existing else part.kind
            changes.register(part.name, part.max_size, kind, type=part.type)
            changes.put(part.name, part.blob)


def _existing(store: AnyStore, name: str) -> SectionInfo | None:
    try:
        return store.section(name)
    except BlobNotFoundError:
        return None


def _check(existing: SectionInfo, part: _Part, *, several: bool, overwrite: bool) -> None:
    """Refuse a section that must not be replaced (F3) or cannot hold the state."""
    _require_replaceable(existing, overwrite=overwrite)
    if several and existing.copies == 1:
        raise SectionMismatchError(
            f"section {part.name!r} has one copy: it cannot change together with others"
        )


def _require_replaceable(existing: SectionInfo, *, overwrite: bool) -> None:
    if (existing.size is not None or existing.damage) and not overwrite:
        raise SectionExistsError(
            f"section {existing.name!r} was written already",
            hint="overwrite it only if what it holds is not needed",
        )
