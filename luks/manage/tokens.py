"""Tokens of LUKS2: what is known of them, and the passphrases that some lead to.

A token says where the passphrase of keyslots can be had. Only its type's owner
knows more, so what is not known here is kept as it is, whatever it says.

Source: LUKS2 On-Disk Format Specification 1.1, section 3.5; systemd, "systemd-tpm2",
"systemd-fido2", "systemd-pkcs11" and "systemd-recovery" tokens.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from formats.errors import ArgumentError
from luks.errors import FormatError, LuksHeaderError, SecretRequiredError, UnsupportedError
from luks.header.luks2_json import TOKEN_DEPTH, format_object, is_deeper, parse_object
from luks.secret.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luks.model import Header, Token

#: Type of the token whose passphrase is in the kernel's keyring.
KEYRING: Final = "luks2-keyring"

#: Type to what people call it.
_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        KEYRING: "kernel keyring",
        "systemd-tpm2": "TPM 2.0, enrolled by systemd",
        "systemd-fido2": "FIDO2, enrolled by systemd",
        "systemd-pkcs11": "PKCS#11, enrolled by systemd",
        "systemd-recovery": "recovery key of systemd",
        "clevis": "Clevis",
        "ssh": "SSH, cryptsetup's example",
    }
)


def token_name(token: Token) -> str:
    """Return what people call a token's type, with the description of a key in the keyring.

    A type that is not known has no other name than itself; bytes of it that are not UTF-8 are
    replaced.
    """
    name = _NAMES.get(token.type, token.type)
    name = name.encode(errors="surrogateescape").decode(errors="replace")
    description = token.body.get("key_description")
    if token.type == KEYRING and isinstance(description, str):
        return f"{name}: {description}"
    return name


def keyring_token(description: str, keyslots: Iterable[int]) -> dict[str, Any]:
    """Return the body of a token for a passphrase in the kernel's keyring.

    Args:
        description: By which the kernel finds the key, of type ``user``.
        keyslots: Numbers of the keyslots that it opens.
    """
    if not _is_description(description):
        raise ArgumentError("a key in the keyring has a description, without NUL")
    words = [str(number) for number in keyslots]
    return {"type": KEYRING, "keyslots": words, "key_description": description}


def parse_token(text: bytes, name: str = "the token") -> dict[str, Any]:
    """Read the JSON object of a token that comes from outside.

    Args:
        text: JSON in UTF-8.
        name: What errors call it, such as the name of its file.

    Raises:
        FormatError: It is not the JSON object of a token (L125, L126).
        UnsupportedError: It has more levels than a header can hold (L126).
    """
    try:
        body = parse_object(text.strip())
    except LuksHeaderError as error:  # but it is not the header that is damaged
        raise FormatError(f"{name} cannot be read: {error}") from error
    if is_deeper(body, TOKEN_DEPTH):
        raise UnsupportedError(
            f"{name} has more than {TOKEN_DEPTH} levels of JSON: with it, cryptsetup could not"
            " read the header any more [L126]",
            feature="deeper tokens",
        )
    type_, keyslots = body.get("type"), body.get("keyslots")
    if not isinstance(type_, str) or not type_:
        raise FormatError(f"{name} has no type", rule="L125")
    if not isinstance(keyslots, list) or not all(isinstance(word, str) for word in keyslots):
        raise FormatError(f"{name} has no list of keyslots, as strings", rule="L125")
    if type_ == KEYRING:
        description = body.get("key_description")
        if len(body) != 3 or not _is_description(description):
            raise FormatError(
                f"{name} is of type {KEYRING}, and has not exactly one key_description besides",
                rule="L125",
            )
    return body


def format_token(header: Header, number: int) -> str:
    """Return the JSON object of a token, as it is stored.

    Bytes that are not UTF-8 are lone surrogates, as in file names.

    Raises:
        ValueError: There is no such token.
    """
    return format_object(_token(header, number).body).decode(errors="surrogateescape")


def token_secret(header: Header, number: int) -> Secret:
    """Return the passphrase that a token leads to.

    Args:
        header: Header with the token.
        number: The token.

    Raises:
        UnsupportedError: Only tokens of type luks2-keyring are served.
        SecretRequiredError: The key is not in the keyring, or must not be read.
        ValueError: There is no such token.
    """
    token = _token(header, number)
    if token.type != KEYRING:
        raise UnsupportedError(
            f"token {number} is for {token_name(token)}, which is not asked here",
            feature=f"token type {token.type}",
            hint="give the passphrase itself, or let its owner unlock the volume",
        )
    description = token.body.get("key_description")
    if not isinstance(description, str) or not description:
        raise SecretRequiredError(f"token {number} does not say which key it means")
    return Secret.from_keyring(description)


def _is_description(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _token(header: Header, number: int) -> Token:
    if number not in header.tokens:
        raise ArgumentError(f"there is no token {number}")
    return header.tokens[number]
