"""Whether there is data of a format at all, which every codec checks first (E1)."""

from __future__ import annotations

from formats.errors import EmptyImageError, ForeignImageError, TruncatedImageError


def require_signature(
    content: bytes, signature: bytes, what: str, rule: str, *, offset: int = 0
) -> None:
    """Check that the bytes begin as those of a format do.

    Args:
        content: Everything the EEPROM holds.
        signature: The expected bytes.
        what: The name of the format in messages.
        rule: The rule that requires them.
        offset: Where they are expected.

    Raises:
        EmptyImageError: The EEPROM is blank.
        ForeignImageError: The EEPROM holds other data.
    """
    if content[offset : offset + len(signature)] == signature:
        return
    require_content(content, what, rule)
    raise ForeignImageError(f"the EEPROM has no {what}", offset=offset, rule=rule)


def require_content(content: bytes, what: str, rule: str) -> None:
    """Check that there are bytes, and that they are not all 00 or all FF.

    Raises:
        EmptyImageError: They are.
    """
    if not content.strip(b"\x00") or not content.strip(b"\xff"):
        raise EmptyImageError(f"the EEPROM has no {what}: it is blank", offset=0, rule=rule)


def require_size(
    content: bytes, size: int, what: str, rule: str, *, hint: str | None = None
) -> None:
    """Check that there are at least ``size`` bytes.

    Raises:
        TruncatedImageError: There are fewer.
    """
    if len(content) < size:
        raise TruncatedImageError(
            f"{what} is cut short: it has {len(content)} bytes of {size}",
            offset=len(content),
            rule=rule,
            hint=hint,
        )
