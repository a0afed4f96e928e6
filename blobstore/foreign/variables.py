"""The UEFI variables of a machine, to be looked at and changed (F30 to F43).

Variables are a value: what changes them returns others. A section is changed by one commit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from blobstore.foreign.certificates import (
    describe_certificate,
    efi_time,
    require_signed_for,
)
from formats.errors import ArgumentError, FieldError, FormatError
from formats.state.uefi import boot
from formats.state.uefi.names import (
    KEY_STORES,
    TIME_BASED,
    Kind,
    default_attributes,
    kind_of,
    spell,
    split,
)
from formats.state.uefi.signatures import X509, decode_lists, encode_lists, with_signatures
from formats.state.uefi.values import (
    decode_value,
    describe_attributes,
    describe_time,
    encode_value,
)
from formats.state.uefi_vars import UefiVariable

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator

    from blobstore.foreign.certificates import Signatures
    from formats.state.uefi.flaws import Flaw

#: Of `PK` and `KEK` firmware trusts the first, of the others both.
_TRUSTED_FOR: Final = {
    "PK": ("PK",),
    "KEK": ("PK",),
    "db": ("PK", "KEK"),
    "dbx": ("PK", "KEK"),
}


@dataclass(frozen=True, slots=True)
class UefiVariables:
    """The UEFI variables of a machine. They never change: methods return changed ones.

    A variable is named as Linux names the files of efivarfs, ``Boot0001-8be4df61-…``; the
    GUID may be left out where the name is well known or no other variable has it.

    Attributes:
        variables: All of them, in their order.
        problems: What was wrong where they were read, and what interrupted writes left there.
        used: Bytes of the flash that they take; None where they are not in a flash.
        capacity: Bytes of the flash for variables; None where they are not in a flash.
    """

    variables: tuple[UefiVariable, ...]
    problems: tuple[Flaw, ...] = ()
    used: int | None = None
    capacity: int | None = None

    def __iter__(self) -> Iterator[UefiVariable]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._matching(name))

    def __getitem__(self, name: str) -> UefiVariable:
        """Return the variable of this name.

        Raises:
            FieldError: There is none, or several have the name and no GUID tells them apart.
        """
        found = self._matching(name)
        if len(found) > 1:
            raise FieldError(
                name,
                "several variables have this name",
                hint=f"add the GUID, as in {spell(*found[1].key)}",
            )
        if not found:
            raise FieldError(name, "there is no such variable")
        return found[0]

    def set(self, name: str, data: bytes | str, *, attributes: int | None = None) -> UefiVariables:
        """Return them with one variable set, whether it is there or not (F42).

        Args:
            name: Of the variable.
            data: Bytes; or text of the kind that the variable is known to hold: ``"true"``,
                ``"5"``, ``"0001,0000"``, or bytes in hexadecimal.
            attributes: Bits of the UEFI specification; None keeps those it has, and gives a
                new one those of its kind.

        Raises:
            FieldError: The text says no value for it, the data are empty, or the name space of
                a new variable is not known.
        """
        guid, plain = self._key(name)
        content = encode_value(guid, plain, data) if isinstance(data, str) else data
        if not content:
            raise FieldError(plain, "a UEFI variable cannot be empty", hint="delete it instead")
        old = self._get(guid, plain)
        if old is None:
            old = UefiVariable(guid, plain, default_attributes(guid, plain), b"")
        new = replace(old, data=content)
        if attributes is not None:
            new = replace(new, attributes=attributes)
        if new.attributes & TIME_BASED and new.time is None:
            new = replace(new, time=_now())
        return _with(self, new)

    def delete(self, name: str) -> UefiVariables:
        """Return them without a variable.

        Raises:
            FieldError: There is none of that name, or several.
        """
        return _without(self, self[name].key)

    def merge(self, others: Iterable[UefiVariable]) -> UefiVariables:
        """Return them with others, which replace those of the same names."""
        result = self
        for variable in others:
            result = _with(result, variable)
        return result

    def add_boot_entry(self, title: str, path: str) -> UefiVariables:
        r"""Return them with a boot entry more, the last in the order (F41).

        Args:
            title: For people.
            path: Of the program, on whichever disk has it, such as ``\\EFI\\debian\\grubx64.efi``.

        Raises:
            FieldError: The path is not one, or all numbers are taken.
        """
        data = boot.encode_option(boot.file_option(title, path))
        taken = {variable.name for variable in self.variables}
        for number in range(1 << 16):
            name = f"Boot{number:04X}"
            if name not in taken:
                order = (*self._order("BootOrder"), number)
                return self.set(name, data).set("BootOrder", boot.encode_order(order))
        raise FieldError("", "all numbers of boot entries are taken")

    def remove_boot_entry(self, name: str) -> UefiVariables:
        """Return them without a boot entry, also in the order and ``BootNext`` (F41).

        Args:
            name: Such as ``"Boot0003"``, or ``"0003"``; drivers and system preparation too.

        Raises:
            FieldError: There is neither the entry nor its number in an order.
        """
        entry = boot.entry_number(name) or boot.entry_number(f"Boot{name.upper()}")
        if entry is None or entry[0] not in boot.ORDERS:
            raise FieldError(name, "this is not the name of a boot entry, such as Boot0003")
        kind, number = entry
        order_name = boot.ORDERS[kind]
        order = self._order(order_name)
        guid, plain = split(f"{kind}{number:04X}")
        assert guid is not None
        if self._get(guid, plain) is None and number not in order:
            raise FieldError(plain, "there is no such boot entry")
        result = _without(self, (guid, plain))
        if number in order:
            result = _ordered(result, order_name, tuple(n for n in order if n != number))
        following = self._get(guid, "BootNext")
        if kind == "Boot" and following and following.data == boot.encode_order((number,)):
            result = _without(result, following.key)
        return result

    def enrol(
        self, name: str, signatures: Signatures, *, any_signer: bool = False
    ) -> UefiVariables:
        """Return them with a variable that holds these certificates and hashes alone (F38).

        A signed file without any deletes the variable.

        Args:
            name: ``"PK"``, ``"KEK"``, ``"db"``, ``"dbx"``, or another with signature lists.
            signatures: What to enrol. Firmware takes one certificate in ``PK``.
            any_signer: Accept a signed file whatever its signer is.

        Raises:
            StateAuthenticationError: A signed file is for another variable, damaged, or its signer
                is not one that firmware would accept.
            FormatError: Its signature is not one.
            FieldError: There is nothing to enrol.
            ValueError: The variable does not hold signature lists.
        """
        guid, plain = self._signature_store(name)
        signed = signatures.signed
        self._check_signer(guid, plain, signatures, any_signer=any_signer)
        if signed is not None and not signed.content:
            return _without(self, (guid, plain))
        content = encode_lists(signatures.entries) if signed is None else signed.content
        if plain == "PK" and len(signatures.entries) != 1:
            raise FieldError("PK", "the platform has exactly one key")
        changed = self.set(spell(guid, plain), content)
        variable = changed[spell(guid, plain)]
        if variable.attributes & TIME_BASED:
            time = _now() if signed is None else signed.time
            changed = _with(changed, replace(variable, time=time))
        return changed

    def append(
        self, name: str, signatures: Signatures, *, any_signer: bool = False
    ) -> UefiVariables:
        """Return them with certificates and hashes added to a variable (F38).

        Those that are there stay, and are not added again.

        Args:
            name: As for `enrol`.
            signatures: What to add.
            any_signer: As for `enrol`.

        Raises:
            FormatError: The variable does not hold signature lists, or is damaged.
            StorageError, ValueError: As `enrol`.
        """
        guid, plain = self._signature_store(name)
        old = self._get(guid, plain)
        if old is None or plain == "PK":
            return self.enrol(name, signatures, any_signer=any_signer)
        self._check_signer(guid, plain, signatures, any_signer=any_signer)
        content = with_signatures(old.data, signatures.entries)
        time = old.time
        if signatures.signed is not None and old.attributes & TIME_BASED:
            time = max(old.time or bytes(16), signatures.signed.time, key=_time_order)
        return _with(self, replace(old, data=content, time=time))

    def describe(self, name: str) -> dict[str, Any]:
        """Return a variable as plain data: what it is called, holds and means.

        Raises:
            FieldError: As `__getitem__`.
        """
        variable = self[name]
        kind, value = describe_variable(variable)
        plain: dict[str, Any] = {
            "name": variable.name,
            "guid": str(variable.guid),
            "attributes": describe_attributes(variable.attributes),
            "kind": str(kind),
            "value": value,
            "data": variable.data.hex(),
        }
        if variable.time is not None:
            plain["time"] = describe_time(variable.time)
        return plain

    def fields(self) -> dict[str, Any]:
        """Return the values of all variables by their names, as plain data."""
        return {spell(*variable.key): describe_variable(variable)[1] for variable in self}

    def _matching(self, name: str) -> list[UefiVariable]:
        if not name:
            return []
        guid, plain = split(name)
        return [
            variable
            for variable in self.variables
            if variable.name == plain and guid in (None, variable.guid)
        ]

    def _key(self, name: str) -> tuple[uuid.UUID, str]:
        """Return which variable is to be set."""
        guid, plain = split(name)
        if guid is None:
            if name not in self:
                raise FieldError(
                    name,
                    "there is no such variable, and the GUID of a new one must be given",
                    hint=f"spell it {name}-GUID",
                )
            guid = self[name].guid
        return guid, plain

    def _get(self, guid: uuid.UUID, name: str) -> UefiVariable | None:
        return next((one for one in self.variables if one.key == (guid, name)), None)

    def _order(self, name: str) -> tuple[int, ...]:
        found = self._matching(name)
        return boot.decode_order(found[0].data) if found else ()

    def _signature_store(self, name: str) -> tuple[uuid.UUID, str]:
        guid, plain = split(name)
        if guid is None or kind_of(guid, plain) is not Kind.SIGNATURES:
            raise ArgumentError(f"{name} does not hold certificates and hashes, as db does")
        return guid, plain

    def _check_signer(
        self, guid: uuid.UUID, name: str, signatures: Signatures, *, any_signer: bool
    ) -> None:
        if signatures.signed is None:
            if not signatures.entries:
                raise FieldError(name, "there is nothing to enrol")
            return
        trusted = None
        # Without a platform key, firmware takes everything.
        if not any_signer and self._get(KEY_STORES["PK"], "PK") is not None:
            trusted = list(self._certificates(_TRUSTED_FOR.get(name, ())))
        require_signed_for(signatures.signed, guid, name, trusted)

    def _certificates(self, names: Iterable[str]) -> Iterator[bytes]:
        for name in names:
            variable = self._get(KEY_STORES[name], name)
            if variable is not None:
                try:
                    entries = decode_lists(variable.data)
                except FormatError:  # firmware would trust none of them
                    continue
                yield from (entry.data for entry in entries if entry.kind == X509)


def _with(variables: UefiVariables, new: UefiVariable) -> UefiVariables:
    if all(one.key != new.key for one in variables):
        return replace(variables, variables=(*variables, new))
    changed = tuple(new if one.key == new.key else one for one in variables)
    return replace(variables, variables=changed)


def _without(variables: UefiVariables, key: tuple[uuid.UUID, str]) -> UefiVariables:
    return replace(variables, variables=tuple(one for one in variables if one.key != key))


def _ordered(variables: UefiVariables, name: str, order: tuple[int, ...]) -> UefiVariables:
    return variables.set(name, boot.encode_order(order)) if order else variables.delete(name)


def describe_variable(variable: UefiVariable) -> tuple[Kind, Any]:
    """Return what the data of a variable are and say, with the subjects of certificates."""
    kind, value = decode_value(variable)
    if kind is Kind.SIGNATURES:
        for plain, entry in zip(value, decode_lists(variable.data), strict=True):
            if entry.kind == X509:
                plain.update(describe_certificate(entry.data))
    return kind, value


def _now() -> bytes:
    return efi_time(datetime.now(UTC))


def _time_order(time: bytes) -> tuple[int, bytes]:
    return int.from_bytes(time[:2], "little"), time[2:7]
