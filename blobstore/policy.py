"""No silent downgrade: what protects a store must be what its user relies on (C25)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.container import Authentication
from luks.errors import PolicyError

if TYPE_CHECKING:
    from formats.container import Header


def require_protection(header: Header, *, encrypted: bool) -> None:
    """Check that a container is as protected as what lies below suggests (C25).

    Raises:
        PolicyError: It is not: somebody may have put it there.
    """
    if encrypted and header.authentication is not Authentication.HMAC_SHA256:
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


def refuse_needless_secret(path: object) -> None:
    """Refuse a secret given for an image that is not encrypted (C25).

    Whoever gives one believes that the image is encrypted; somebody may have
    put another one in its place.

    Raises:
        PolicyError: Always.
    """
    raise PolicyError(
        f"a secret was given, but {path} is not encrypted [C25]",
        hint="if that is intended, give no secret, or permit it with allow_unprotected",
    )
