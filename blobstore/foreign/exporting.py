"""Device state out of a store, in the files other programs keep it in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from blobstore.foreign.states import StateFormat, section_name, tpm_section_names
from blobstore.foreign.swtpm_directory import write_directory
from blobstore.image.files import write_file
from blobstore.image.layers import RAW, require_image_format
from formats.errors import ArgumentError, EmptyImageError, device_error
from formats.state.edk2_varstore import decode_flash, require_blank_flash
from formats.state.swtpm import (
    PlainState,
    Slot,
    TpmVersion,
    decode_state,
    encode_state,
    tpm_version,
    validate_slot,
)
from formats.state.swtpm_linear import encode_linear
from formats.state.uefi_vars import decode_variables, encode_variables
from luks.errors import PolicyError

if TYPE_CHECKING:
    from blobstore.foreign.encryption import StateKey
    from blobstore.store.protocol import AnyStore

#: A path, or something open to be written.
Destination = str | os.PathLike[str] | IO[bytes]


def export_state(
    store: AnyStore,
    destination: Destination,
    form: StateFormat | str,
    *,
    name: str | None = None,
    key: StateKey | None = None,
    overwrite: bool = False,
    image_format: str = "raw",
) -> None:
    """Write the state of a device as the program keeps it that the device belongs to.

    A file appears whole or not at all (F5); of a directory see F17 and F18.

    Args:
        store: Not modified.
        destination: The file or directory to make.
        form: What it is to be. As `StateFormat.UEFI_VARS`, a flash of OVMF is written as QEMU's
            JSON with the same variables (F43).
        name: As in `blobstore.import_state`.
        key: Encrypt the state of a TPM with it.
        overwrite: Replace what is there.
        image_format: ``"qcow2"`` makes the flash of `StateFormat.OVMF_VARS` the disk of a
            qcow2 image (F25); otherwise ``"raw"``.

    Raises:
        BlobNotFoundError, UnwrittenBlobError: There is no such state.
        CorruptBlobError: It no longer verifies.
        FormatError: What the section holds is not of this format (F4).
        OutputExistsError: The destination exists, and not ``overwrite``.
        PolicyError: There is a key, but the state is encrypted already.
        SecretRequiredError: There is no key in what was given.
        DeviceBusyError: swtpm is using the destination.
        DeviceError: Reading or writing failed.
        ValueError: The arguments do not fit together.
    """
    form = StateFormat(form)
    if key is not None and not form.is_tpm:
        raise ArgumentError(f"{form} is never encrypted: it takes no key")
    require_image_format(image_format)
    if image_format != RAW and form is not StateFormat.OVMF_VARS:
        raise ArgumentError(f"{form} is never in a {image_format} image")
    if not form.is_tpm:
        content = store.get(section_name(form, name))
        if form is StateFormat.OVMF_VARS:
            content = _flash_file(content, image_format)
        elif form is StateFormat.UEFI_VARS:
            content = _json_file(content)
        _write(destination, content, overwrite=overwrite)
        return
    # States of different moments together are not those of any TPM that existed.
    version, states = store.at_one_moment(lambda: _tpm_states(store, name, key))
    if form is StateFormat.SWTPM_FILE:
        _write(destination, encode_linear(states), overwrite=overwrite)
    elif isinstance(destination, str | os.PathLike):
        write_directory(Path(destination), version, states, overwrite=overwrite)
    else:
        raise ArgumentError("a directory cannot be written to something open")


def _flash_file(content: bytes, image_format: str) -> bytes:
    """Check that a section holds a flash, and return it as a file has it (F25)."""
    try:
        decode_flash(content)
    except EmptyImageError:  # until firmware has written to it
        require_blank_flash(content)
    if image_format == RAW:
        return content
    from blobstore.image.small_disks import qcow2_with  # noqa: PLC0415  only flashes have any

    return qcow2_with(content)


def _json_file(content: bytes) -> bytes:
    """Check that a section holds QEMU's JSON, or return as such what a flash has (F43)."""
    if content[:1] not in (b"\0", b"\xff"):
        decode_variables(content)
        return content
    from formats.state.uefi.flash import read_store  # noqa: PLC0415  only for flashes

    return encode_variables(read_store(content).variables)


def _tpm_states(
    store: AnyStore, name: str | None, key: StateKey | None
) -> tuple[TpmVersion, dict[Slot, bytes]]:
    """Return the version of a TPM and its states as files have them."""
    stored: dict[Slot, bytes] = {}
    plain: dict[Slot, PlainState] = {}
    for slot, section in tpm_section_names(name).items():
        try:
            stored[slot] = store.get(section)
        except (BlobNotFoundError, UnwrittenBlobError):
            if slot is Slot.PERMANENT:
                raise
            continue
        state = decode_state(stored[slot], f"section {section!r}")
        if not isinstance(state, PlainState):
            raise PolicyError(
                f"section {section!r} holds state that swtpm encrypted [F12]",
                hint="get it as it is, or import it with its key",
            )
        plain[slot] = state
    version = tpm_version(plain[Slot.PERMANENT])
    for slot, state in plain.items():
        validate_slot(state, slot, version)
    if key is None:
        return version, stored
    return version, {slot: encode_state(key.encrypt(state)) for slot, state in plain.items()}


def _write(destination: Destination, content: bytes, *, overwrite: bool) -> None:
    if not isinstance(destination, str | os.PathLike):
        try:
            destination.write(content)
            destination.flush()
        except OSError as error:
            raise device_error(error, "cannot write the state") from error
        return
    write_file(destination, content, overwrite=overwrite)
