"""Any sequence of changes keeps its promises; any header survives a change, or is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import luks
from luks.header import luks2
from tests.luks.support import KEY, OTHER, PBKDF2, Template, json_of, known_volume, opens, put_copy
from tests.luks.test_properties import JSON

if TYPE_CHECKING:
    from collections.abc import Callable

SECRETS = [b"a", b"b", b"c", b"d"]
LIMITS = luks.KdfLimits(iterations=2000, memory_kib=64, time=8, work_kib=512, lanes=4)


@cache
def base(version: int) -> Template:
    return known_volume(version, keyslots_size=512 << 10, data_offset=544 << 10)


_NUMBER = st.integers(0, 8)
_CHANGE = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(SECRETS), st.none() | _NUMBER),
    st.tuples(st.just("change"), st.sampled_from(SECRETS), _NUMBER),
    st.tuples(st.just("remove"), st.just(b""), _NUMBER),
    st.tuples(st.just("uuid"), st.just(b""), st.none()),
)


def _apply(header: luks.HeaderEdit, slots: dict[int, bytes], change: tuple[Any, ...]) -> None:
    """Make one change, and the same in ``slots``, keyslot to secret; or neither."""
    kind, secret, number = change
    with suppress(ValueError, luks.KeyslotsFullError, luks.PolicyError):
        if kind == "add":
            slots[header.add_keyslot(secret, keyslot=number, kdf=PBKDF2)] = secret
        elif kind == "change":
            new = header.change_keyslot(number, secret, kdf=PBKDF2)
            del slots[number]
            slots[new] = secret
        elif kind == "remove":
            header.remove_keyslot(number)
            del slots[number]
        else:
            header.set_uuid("12345678-1234-1234-1234-123456789abc")


@given(
    version=st.sampled_from([1, 2]),
    transactions=st.lists(st.lists(_CHANGE, min_size=1, max_size=4), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_any_changes_do_what_they_say(version: int, transactions: list[list[Any]]) -> None:
    device = base(version).copy()
    key = luks.verify_volume_key(base(version).header, KEY)
    slots = {0: OTHER}
    for changes in transactions:
        expected = dict(slots)
        try:
            with luks.edit(device) as header:
                header.unlock(key)
                for change in changes:
                    _apply(header, expected, change)
        except ValueError:
            assert version == 1  # keyslot 6 cannot be exchanged for itself
            continue
        slots = expected
        loaded = luks.load_header(device)
        assert set(loaded.keyslots) == set(slots)
        assert loaded.stale_copy is None
    for secret in {OTHER, *SECRETS}:
        assert opens(device, secret) == (secret in slots.values())
    key.key.wipe()


def _mutated(root: Any, data: st.DataObject) -> None:
    """Walk down and replace or remove one member."""
    place = root
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        name = data.draw(st.sampled_from(keys))
        if isinstance(place[name], dict | list) and data.draw(st.integers(0, 4)):
            place = place[name]
        elif data.draw(st.booleans()):
            place[name] = data.draw(JSON)
            return
        else:
            del place[name]
            return


_EDITS: list[Callable[[luks.HeaderEdit], object]] = [
    lambda header: header.set_labels(label="x"),
    lambda header: header.remove_keyslot(0, force=True),
    lambda header: header.set_token({"type": "acme", "keyslots": []}),
    lambda header: header.set_priority(0, 2),
    lambda header: (header.unlock(OTHER), header.add_keyslot(b"new", kdf=PBKDF2)),
    lambda header: (header.unlock(OTHER), header.change_keyslot(0, b"new", kdf=PBKDF2)),
]


@given(data=st.data(), edit=st.sampled_from(_EDITS))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_header_that_loads_is_changed_or_refused(
    data: st.DataObject, edit: Callable[[luks.HeaderEdit], object]
) -> None:
    root = json_of(base(2).header)
    for _ in range(data.draw(st.integers(1, 2))):
        _mutated(root, data)
    device = base(2).copy()
    text = json.dumps(root).encode()
    if len(text) > 12000:
        return
    for which in (luks2.PRIMARY, luks2.SECONDARY):
        put_copy(device, base(2).header, text, which, which * 16384)
    try:
        before = luks.load_header(device)
    except (luks.FormatError, luks.UnsupportedError):
        return
    content = bytes(device.content)
    try:
        with luks.edit(device, limits=LIMITS) as header:
            edit(header)
    except (luks.StorageError, ValueError):
        assert bytes(device.content) == content
        return
    after = luks.load_header(device)
    assert after.seqid == before.seqid + 1
    assert after.stale_copy is None
    # What the edit was not about is as it was, known or not.
    old, new = json_of(before), json_of(after)
    for name in {*old, *new} - {"keyslots", "tokens", "digests"}:
        assert old[name] == new[name]


@given(st.binary(max_size=200), st.integers(0, 20_000))
@settings(max_examples=100, deadline=None)
def test_repair_never_makes_it_worse(damage: bytes, place: int) -> None:
    """Damage anywhere in the first copy, or across both."""
    device = base(2).copy()
    device.content[place : place + len(damage)] = damage
    try:
        header = luks.load_header(device)
    except (luks.FormatError, luks.UnsupportedError):
        return
    with suppress(luks.ForeignImageError):
        luks.repair(device)
        assert luks.load_header(device).stale_copy is None
    assert luks.load_header(device) == header
    assert opens(device, OTHER)
