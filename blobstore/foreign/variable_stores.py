"""Where UEFI variables are: sections and files, read, and changed as a whole (F43)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.foreign.states import DEFAULT_NAMES, StateFormat
from blobstore.foreign.variables import UefiVariables
from blobstore.image.files import read_file, write_file
from formats.errors import ArgumentError, FormatError
from formats.state.edk2_varstore import decode_flash
from formats.state.uefi.flash import read_store, repair_store, write_store
from formats.state.uefi_vars import decode_variables, encode_variables

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from blobstore.store.protocol import AnyStore
    from formats.state.uefi.flash import VariableStore

    #: Returns the variables that are to be there.
    Change = Callable[[UefiVariables], UefiVariables]

_FORMS: Final = (StateFormat.OVMF_VARS, StateFormat.UEFI_VARS)
_SECTION: Final = DEFAULT_NAMES[StateFormat.OVMF_VARS]
_QCOW2_MAGIC: Final = b"QFI\xfb"
#: Larger than any file with a flash: its disk has at most 256 MiB (F24).
_LARGEST: Final = 257 << 20


def holds_variables(store: AnyStore, name: str, type_: str | None = None) -> bool:
    """Say whether a section has UEFI variables: by its type, or without one by its content.

    Args:
        store: Not modified.
        name: Of the section.
        type_: Its type, whatever the section says.

    Raises:
        StorageError: As `Store.get`.
    """
    section = store.section(name)
    type_ = section.type if type_ is None else type_
    if type_:
        return type_ in _FORMS
    if section.size is None or section.kind != "window":
        return False
    try:
        decode_flash(store.get(name))
    except FormatError:
        return False
    return True


def read_variables(
    store: AnyStore, name: str = _SECTION, *, type_: str | None = None
) -> UefiVariables:
    """Return the UEFI variables of a section, as firmware would find them (F31, F35).

    Args:
        store: Not modified.
        name: Of the section: a flash of OVMF, or the JSON of QEMU's ``uefi-vars``.
        type_: ``"ovmf-vars"`` or ``"uefi-vars"``; None is the section's own type, and without
            one ``"ovmf-vars"``.

    Raises:
        StorageError: As `Store.get`.
        FormatError: It does not hold variables, or is damaged; repair it with `edit_variables`.
        ValueError: It has another type.
    """
    form = _form(store.section(name).type if type_ is None else type_)
    return _decode(form, store.get(name))


def edit_variables(
    store: AnyStore,
    name: str,
    change: Change,
    *,
    type_: str | None = None,
    repair: bool = False,
) -> UefiVariables:
    """Change the UEFI variables of a section in one commit, and return them.

    Args:
        store: One section of it is put, unless nothing changes. No machine may be using it.
        name: Of the section.
        change: Is given the variables, and returns those that are to be there.
        type_: As for `read_variables`.
        repair: Rescue what can be rescued of a torn or damaged flash (F39) first; the
            `problems` of the result say what was wrong.

    Raises:
        FormatError: The flash has damage (F31) at which firmware stops reading, and not ``repair``.
        GenerationMismatchError: The section was changed by others meanwhile.
        StorageError: As `Store.get`, `Store.put`, `read_variables` and ``change``; nothing is put.
        FieldError: The variables do not fit.
        ValueError: The section has another type.
    """
    section = store.section(name)
    form = _form(section.type if type_ is None else type_)
    content = store.get(name)
    changed, variables = _edited(form, content, change, repair=repair)
    if changed != content:
        with store.transaction() as changes:
            changes.require_generation(name, section.generation)
            changes.put(name, changed)
    return variables


def read_variables_file(
    path: str | os.PathLike[str], type_: str = StateFormat.OVMF_VARS
) -> UefiVariables:
    """Return the UEFI variables in a bare file: a flash, also as qcow2, or QEMU's JSON.

    Args:
        path: The file.
        type_: ``"ovmf-vars"`` or ``"uefi-vars"``.

    Raises:
        FormatError, UnsupportedError: It does not hold variables, or is damaged.
        DeviceError: It cannot be read, or another process uses it.
        ValueError: There is no such type.
    """
    form = _form(type_)
    return _decode(form, _content(form, read_file(path, largest=_LARGEST)))


def edit_variables_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    change: Change,
    *,
    type_: str = StateFormat.OVMF_VARS,
    repair: bool = False,
    overwrite: bool = False,
) -> UefiVariables:
    """Write a file with other UEFI variables than those of a bare file, and return them.

    Args:
        source: Not modified: a flash, also as qcow2, or QEMU's JSON.
        destination: A file of the same kind, which appears whole or not at all.
        change: As for `edit_variables`.
        type_: As for `read_variables_file`.
        repair: As for `edit_variables`.
        overwrite: Replace a file that exists.

    Raises:
        OutputExistsError: The destination exists, and not ``overwrite``.
        StorageError, ValueError: As `read_variables_file` and `edit_variables`.
    """
    form = _form(type_)
    file = read_file(source, largest=_LARGEST)
    changed, variables = _edited(form, _content(form, file), change, repair=repair)
    if form is StateFormat.OVMF_VARS and file.startswith(_QCOW2_MAGIC):
        from blobstore.image.small_disks import qcow2_with  # noqa: PLC0415  only for qcow2

        changed = qcow2_with(changed)
    write_file(destination, changed, overwrite=overwrite)
    return variables


def _form(type_: str) -> StateFormat:
    if not type_:
        return StateFormat.OVMF_VARS
    if type_ not in _FORMS:
        raise ArgumentError(f"UEFI variables are in ovmf-vars or uefi-vars, not in {type_}")
    return StateFormat(type_)


def _content(form: StateFormat, file: bytes) -> bytes:
    if form is not StateFormat.OVMF_VARS or not file.startswith(_QCOW2_MAGIC):
        return file
    from blobstore.image.small_disks import read_disk  # noqa: PLC0415  only for qcow2

    return read_disk(file)


def _decode(form: StateFormat, content: bytes) -> UefiVariables:
    if form is StateFormat.UEFI_VARS:
        return UefiVariables(decode_variables(content))
    return _of_store(read_store(content))


def _of_store(store: VariableStore) -> UefiVariables:
    return UefiVariables(store.variables, store.flaws, store.used, store.capacity)


def _require_whole(variables: UefiVariables) -> None:
    """Refuse a flash with variables that firmware does not find: they would be lost (F43)."""
    damage = next((problem for problem in variables.problems if problem.rule == "F31"), None)
    if damage is not None:
        raise FormatError(
            damage.message,
            offset=damage.offset,
            rule=damage.rule,
            hint="edit --repair rescues variables that firmware does not find any more",
        )


def _edited(
    form: StateFormat, content: bytes, change: Change, *, repair: bool
) -> tuple[bytes, UefiVariables]:
    if form is StateFormat.UEFI_VARS:
        if repair:
            raise ArgumentError("only a flash can be repaired, not the JSON of uefi-vars")
        before = _decode(form, content)
        after = change(before)
        if after.variables == before.variables:
            return content, after
        return encode_variables(after), after
    before_repair = content
    if repair:
        content, store = repair_store(content)
        before = _of_store(store)
    else:
        before = _decode(form, content)
        _require_whole(before)
    after = change(before)
    if after.variables == before.variables:
        return content, after
    changed = write_store(content, after)
    found = _decode(form, changed)
    problems = after.problems if before_repair is not content else ()
    return changed, UefiVariables(after.variables, problems, found.used, found.capacity)
