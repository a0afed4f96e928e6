"""The encodings of QEMU's secrets: text, base64, AES-256-CBC.

No error here shows the bytes, and no exception of a library that may carry them
stays attached. Rules: S23 and S25 of ``spec/secrets.md``.
"""

from __future__ import annotations

import binascii
from typing import Final

from luks.errors import SecretFormatError
from luks.secret.secret_sources import resized, wipe
from luks.secret.secrets import Secret

_BLOCK: Final = 16


def require_text(secret: Secret, what: str) -> None:
    """Check that a secret is UTF-8 without NUL; if not, it is wiped.

    Raises:
        SecretFormatError: It is not.
    """
    view = secret.view()
    try:
        str(view, "utf-8")
        sound = 0 not in view
    except UnicodeDecodeError:  # it contains the bytes
        sound = False
    if not sound:
        secret.wipe()
        raise SecretFormatError(
            f"{what} is not valid UTF-8 without NUL [S23]", hint="use format=base64 for other bytes"
        )


def decode_base64(encoded: Secret, what: str) -> Secret:
    """Decode a secret, and wipe the encoded one.

    Raises:
        SecretFormatError: It is not base64; newlines are ignored.
    """
    with encoded:
        lines = bytearray(encoded.view())
    compact = lines.translate(None, b"\n")
    wipe(lines)
    decoded = None
    try:
        decoded = Secret(binascii.a2b_base64(compact, strict_mode=True))
    except binascii.Error:
        pass
    finally:
        wipe(compact)
    if decoded is None:
        raise SecretFormatError(f"{what} is not base64 [S23]")
    return decoded


def decrypt(secret: Secret, key: Secret, iv: str, what: str) -> Secret:
    """Decrypt AES-256-CBC and remove the PKCS#7 padding.

    Args:
        secret: The ciphertext; not changed.
        key: 32 bytes.
        iv: 16 bytes, in base64.
        what: The name of the secret in messages.

    Raises:
        SecretFormatError: The IV is invalid, or the key does not decrypt the secret.
    """
    # Most secrets are not encrypted, and this import takes time.
    from cryptography.hazmat.primitives.ciphers import (  # noqa: PLC0415  see above
        Cipher,
        algorithms,
        modes,
    )

    with decode_base64(Secret(iv.encode()), f"the iv of {what}") as vector:
        initial = bytes(vector.view())
    if len(initial) != _BLOCK:
        raise SecretFormatError(f"the iv of {what} has {len(initial)} bytes, not {_BLOCK} [S25]")
    size = len(secret)
    if not size or size % _BLOCK:
        raise SecretFormatError(
            f"{what} has {size} encrypted bytes, which is not a multiple of {_BLOCK} [S25]"
        )
    plain = bytearray(size + _BLOCK - 1)  # as much as update_into requires
    decryptor = Cipher(algorithms.AES(key.view()), modes.CBC(initial)).decryptor()
    decryptor.update_into(secret.view(), plain)
    decryptor.finalize()
    padding = plain[size - 1]
    if not 0 < padding <= _BLOCK or plain[size - padding : size] != bytes([padding]) * padding:
        wipe(plain)
        raise SecretFormatError(
            f"{what} cannot be decrypted: the key, the iv or the data is wrong [S25]"
        )
    return Secret.adopt(resized(plain, size - padding))
