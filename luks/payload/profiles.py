"""What other programs choose when they make a volume, and default key sizes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from luks.crypto.blockcipher import key_sizes
from luks.crypto.spec import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB: Final = 1 << 20

#: Arguments of `luks.format` that make a volume as another program would:
#: ``luks.format(path, secret, size=size, **luks.PROFILES["qemu"])``.
PROFILES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # qemu-img create -f luks: LUKS1, its payload right after the keyslots.
        "qemu": MappingProxyType(
            {
                "version": 1,
                "cipher": "aes-xts-plain64",
                "key_size": 64,
                "hash_name": "sha256",
                "alignment": 512,
            }
        ),
        # cryptsetup luksFormat: 16 MiB for header and keyslots.
        "cryptsetup": MappingProxyType(
            {
                "version": 2,
                "cipher": "aes-xts-plain64",
                "key_size": 64,
                "hash_name": "sha256",
                "metadata_size": 16 << 10,
                "keyslots_size": 16 * _MIB - (32 << 10),
                "data_offset": 16 * _MIB,
            }
        ),
        # cryptsetup luksFormat --type luks1
        "cryptsetup-luks1": MappingProxyType(
            {
                "version": 1,
                "cipher": "aes-xts-plain64",
                "key_size": 64,
                "hash_name": "sha256",
                "alignment": _MIB,
            }
        ),
    }
)


def default_key_size(cipher: str) -> int:
    """Return the bytes of the largest key that a cipher string takes, at most AES-256's.

    A cipher that is unknown gets what AES would take; it is refused elsewhere.
    """
    spec = parse(cipher)
    size = max((size for size in key_sizes(spec.cipher) if size <= 32), default=32)
    if spec.mode == "xts":
        return 2 * size
    return size + 16 if spec.mode == "lrw" else size
