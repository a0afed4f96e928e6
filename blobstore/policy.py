"""No silent downgrade: what protects a store must be what its user relies on (C25)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.container import Authentication
from luks.errors import PolicyError

if TYPE_CHECKING:
    from formats.container import Header


def require_protection(header: Header, *, encrypted: bool, with_secret: bool) -> None:
    """Check that a container is as protected as its user has reason to believe (C25).

    Args:
        header: Of the container.
        encrypted: Whether it lies in an encrypted volume.
        with_secret: Whether the user gave a secret to open it.

    Raises:
        PolicyError: It is not: somebody may have put another one in its place.
    """
    if with_secret and not encrypted:
        reason = "a secret was given, but the image is not encrypted"
    elif encrypted and header.authentication is not Authentication.HMAC_SHA256:
        reason = "the container inside the encrypted volume is not authenticated"
    elif encrypted and not header.encrypted:
        reason = "the container was made without encryption but lies in an encrypted volume"
    elif header.encrypted and not encrypted:
        reason = "the container was made for an encrypted volume but lies in the clear"
    else:
        return
    raise PolicyError(
        f"{reason} [C25]", hint="if that is intended, permit it with allow_unprotected"
    )
