"""Between the header of a LUKS2 volume and the plan of its re-encryption.

Reading is strict: a header whose segments the plan would never write is refused, since
nothing else in it says what the bytes between are (L154).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.frozen import replace
from luks.errors import LuksHeaderError, NoReencryptionError, TruncatedImageError, UnsupportedError
from luks.header.luks2_reencrypt_rules import (
    BACKUP_FINAL,
    BACKUP_MOVED,
    BACKUP_PREVIOUS,
    REENCRYPT_REQUIREMENTS,
    reencrypt_record,
)
from luks.reencryption.plan import (
    BackwardPlan,
    ForwardPlan,
    MovedPlan,
    ShiftedDecryption,
    ShiftedEncryption,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from formats.devices.device import BlockDevice
    from luks.header.luks2_reencrypt_rules import ReencryptRecord
    from luks.model import Digest, Header, Segment, Token
    from luks.reencryption.plan import Kind, Plan, Progress

_SIMPLE: Final = frozenset({"checksum", "journal", "none"})
_MOVED_LAST: Final = frozenset({"datashift-checksum", "datashift-journal"})


class KeyDigests(NamedTuple):
    """Numbers of the digests of the old and the new key; None if that form has no key."""

    old: int | None
    new: int | None

    def of(self, kind: Kind) -> frozenset[int]:
        """Return the digests that a segment of this kind belongs to, if it is encrypted."""
        numbers = {
            "old": (self.old,),
            "moved": (self.old,),
            "new": (self.new,),
            "hot": (self.old, self.new),
        }[kind]
        return frozenset(number for number in numbers if number is not None)


def key_digests(header: Header) -> KeyDigests:
    """Return the digests of the keys before and after the re-encryption in progress."""
    of_segment = header.segment_digests
    previous, final = header.flagged(BACKUP_PREVIOUS), header.flagged(BACKUP_FINAL)
    return KeyDigests(
        None if previous is None else of_segment.get(previous),
        None if final is None else of_segment.get(final),
    )


def read_plan(header: Header, device: BlockDevice) -> tuple[Plan, Progress]:
    """Return the re-encryption that a header describes, and how far it is.

    Args:
        header: As it was loaded. Nothing in it is authentic yet.
        device: Holds the payload.

    Raises:
        NoReencryptionError: None is in progress.
        UnsupportedError: It is of a kind that cannot be continued here.
        TruncatedImageError: The device ends before the payload.
    """
    record = reencrypt_record(header)
    if record is None:
        raise NoReencryptionError("the volume is not being re-encrypted [L150]")
    plan = _plan(header, record, device)
    digests = key_digests(header)
    found = plan.find_progress(header.data_segments)
    fitting = (guess for guess in found if _digests_fit(header, plan, guess, digests))
    progress = next(fitting, None)
    if progress is None:
        raise UnsupportedError(
            "the segments of the payload are not those of a re-encryption that can be continued"
            " here [L154]",
            feature="re-encryption",
            hint="cryptsetup reencrypt --resume-only may continue it",
        )
    return plan, progress


def _plan(header: Header, record: ReencryptRecord, device: BlockDevice) -> Plan:
    old, new = _backup(header, BACKUP_PREVIOUS), _backup(header, BACKUP_FINAL)
    moved = header.flagged(BACKUP_MOVED)
    tail = header.data_segments[-1]
    fixed = tail.size is not None and not tail.is_hot
    if moved is None:
        if record.resilience not in _SIMPLE or old.offset != new.offset:
            raise _unsupported(record)
        if fixed:
            size = sum(segment.size or 0 for segment in header.data_segments)
        else:
            size = device.size - new.offset
        kind = ForwardPlan if record.direction == "forward" else BackwardPlan
        plan: Plan = kind(record, old, new, size, fixed)
    else:
        plan = _moved_plan(record, old, new, _plain(header.segments[moved]), device.size)
    if plan.size <= 0 or max(plan.old.offset, plan.new.offset) + plan.size > device.size:
        raise TruncatedImageError(
            f"the image of {device.size} bytes ends before the payload does", rule="L154"
        )
    if plan.size % max(old.sector_size, new.sector_size):
        raise UnsupportedError(
            f"the payload of {plan.size} bytes is not a whole number of sectors [L155]",
            feature="re-encryption",
            hint="the image was cut or extended meanwhile: give it the size that it had",
        )
    return plan


def _moved_plan(
    record: ReencryptRecord, old: Segment, new: Segment, moved: Segment, device_size: int
) -> MovedPlan:
    """Return the plan if the first bytes of the payload were moved, as cryptsetup moves them."""
    way = record.mode, record.direction, record.resilience
    shift = record.shift_size
    if (
        way == ("encrypt", "backward", "datashift")
        and (old.type, old.offset, new.offset) == ("linear", 0, shift)
        and old.size is not None
        and moved.size == min(shift, old.size)
        and moved.offset >= old.size + shift
        and moved.offset + moved.size <= device_size
    ):
        return ShiftedEncryption(record, old, new, old.size, False, moved)
    if (
        record.mode == "decrypt"
        and record.direction == "forward"
        and record.resilience in _MOVED_LAST
        and (new.type, new.offset, moved.offset, old.offset) == ("linear", 0, 0, shift)
        and moved.size is not None
        and moved.size <= shift
    ):
        size = device_size - old.offset if old.size is None else old.size
        return ShiftedDecryption(record, old, new, size, False, moved)
    raise _unsupported(record)


def _unsupported(record: ReencryptRecord) -> UnsupportedError:
    return UnsupportedError(
        f"this kind of re-encryption ({record.mode}, {record.direction}, {record.resilience})"
        " cannot be continued here [L154]",
        feature="re-encryption",
        hint="finish it with cryptsetup reencrypt --resume-only",
    )


def _backup(header: Header, flag: str) -> Segment:
    number = header.flagged(flag)
    if number is None:
        raise LuksHeaderError(f"a re-encryption lacks its segment {flag!r}", rule="L30")
    segment = header.segments[number]
    if segment.iv_tweak:
        # cryptsetup ignores it in some of its steps, and decrypts to garbage.
        raise UnsupportedError(
            f"segment {number} of the re-encryption has the iv_tweak {segment.iv_tweak} [L156]",
            feature="re-encryption with iv_tweak",
        )
    return _plain(segment)


def _plain(segment: Segment) -> Segment:
    return replace(segment, flags=())


def _digests_fit(header: Header, plan: Plan, progress: Progress, digests: KeyDigests) -> bool:
    """Say whether each segment has the keys that it must have."""
    belongs: dict[int, set[int]] = {}
    for number, digest in header.digests.items():
        for segment in digest.segments:
            belongs.setdefault(segment, set()).add(number)
    return all(
        belongs.get(number, set()) == (digests.of(kind) if segment.type == "crypt" else set())
        for number, (segment, kind) in enumerate(plan.segments(progress))
    )


def with_progress(header: Header, plan: Plan, progress: Progress, digests: KeyDigests) -> Header:
    """Return a header that says how far a re-encryption is.

    Args:
        header: The header of the volume. Its segments are replaced.
        plan: The re-encryption.
        progress: How far it is.
        digests: Of its keys.
    """
    described = [
        (segment, digests.of(kind) if segment.type == "crypt" else frozenset[int]())
        for segment, kind in plan.segments(progress)
    ]
    backups: list[tuple[Segment, str, Kind]] = [
        (plan.old, BACKUP_PREVIOUS, "old"),
        (plan.new, BACKUP_FINAL, "new"),
    ]
    if isinstance(plan, MovedPlan):
        backups.append((plan.moved, BACKUP_MOVED, "moved"))
    described += [
        (
            replace(segment, flags=(flag,)),
            digests.of(kind) if segment.type == "crypt" else frozenset[int](),
        )
        for segment, flag, kind in backups
    ]
    return _with_segments(header, described)


def finished(header: Header, plan: Plan, digests: KeyDigests) -> Header:
    """Return the header after the re-encryption: without the old keys, and without a trace of it.

    Args:
        header: The header of the volume.
        plan: The re-encryption.
        digests: Of its keys.
    """
    gone = {plan.record.keyslot}
    if digests.old is not None and digests.old != digests.new:
        gone.update(header.digests[digests.old].keyslots)
    new = replace(plan.new, size=None)
    kept = digests.of("new") if new.type == "crypt" else frozenset[int]()
    return without_keyslots(_with_segments(_unmarked(header), [(new, kept)]), gone)


def taken_back(header: Header, plan: Plan, digests: KeyDigests) -> Header:
    """Return the header as it was before a re-encryption that has moved nothing.

    Args:
        header: The header of the volume.
        plan: The re-encryption.
        digests: Of its keys.
    """
    gone = {plan.record.keyslot}
    if digests.new is not None and digests.old != digests.new:
        gone.update(header.digests[digests.new].keyslots)
    kept = digests.of("old") if plan.old.type == "crypt" else frozenset[int]()
    return without_keyslots(_with_segments(_unmarked(header), [(plan.old, kept)]), gone)


def _unmarked(header: Header) -> Header:
    rest = tuple(word for word in header.requirements if word not in REENCRYPT_REQUIREMENTS)
    return replace(header, requirements=rest)


def _with_segments(header: Header, described: Iterable[tuple[Segment, frozenset[int]]]) -> Header:
    """Return the header with these segments, each with the numbers of its digests."""
    segments = {}
    of_digest: dict[int, list[int]] = {number: [] for number in header.digests}
    for number, (segment, numbers) in enumerate(described):
        segments[number] = segment
        for digest in numbers:
            of_digest[digest].append(number)
    digests = {
        number: replace(digest, segments=tuple(of_digest[number]))
        for number, digest in header.digests.items()
    }
    return replace(header, segments=MappingProxyType(segments), digests=MappingProxyType(digests))


def without_keyslots(header: Header, gone: set[int]) -> Header:
    """Return the header without keyslots, and without digests that nothing uses any more."""
    digests: dict[int, Digest] = {}
    for number, digest in header.digests.items():
        rest = tuple(n for n in digest.keyslots if n not in gone)
        if rest or digest.segments or not gone.intersection(digest.keyslots):
            digests[number] = replace(digest, keyslots=rest)
    return replace(
        header,
        keyslots=MappingProxyType({n: k for n, k in header.keyslots.items() if n not in gone}),
        digests=MappingProxyType(digests),
        tokens=_tokens_without(header.tokens, gone),
    )


def _tokens_without(tokens: Mapping[int, Token], gone: set[int]) -> Mapping[int, Token]:
    return MappingProxyType(
        {n: with_keyslots(t, set(t.keyslots) - gone) for n, t in tokens.items()}
    )


def with_keyslots(token: Token, keyslots: set[int]) -> Token:
    """Return a token that is for these keyslots; what else it says stays."""
    if keyslots == set(token.keyslots):
        return token
    numbers = tuple(sorted(keyslots))
    body = MappingProxyType({**token.body, "keyslots": [str(n) for n in numbers]})
    return replace(token, keyslots=numbers, body=body)
