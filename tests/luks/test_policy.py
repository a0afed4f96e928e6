"""What a header must be before a secret is used on it (L62, L93)."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

import luks
from formats.frozen import replace
from luks.header import luks2
from tests.luks.support import (
    ARGON2ID,
    OTHER,
    PASSPHRASE,
    PBKDF2,
    Template,
    json_of,
    pattern,
    put_copy,
    template,
    with_json,
    with_luks1,
)

UUID = "12345678-1234-1234-1234-123456789abc"


@cache
def base(version: int) -> Template:
    """LUKS2 has a keyslot with Argon2 and one with PBKDF2, for two passphrases."""
    if version == 1:
        return template(version=1, uuid=UUID)
    made = template(uuid=UUID, kdf=ARGON2ID, keyslots_size=256 << 10, data_offset=288 << 10)
    luks.add_keyslot(made.device, PASSPHRASE, OTHER, kdf=PBKDF2)
    return Template(made.device, luks.load_header(made.device))


def opened(policy: luks.Policy, version: int = 2, secret: bytes = PASSPHRASE) -> int | None:
    with luks.open(base(version).device, secret, policy=policy) as volume:
        return volume.keyslot


@pytest.mark.parametrize("version", [1, 2])
def test_what_fulfils_a_policy_opens(version: int) -> None:
    header = base(version).header
    policy = luks.Policy(
        uuid=UUID,
        digest=luks.header_digest(header),
        versions={version},
        ciphers=["aes-xts-plain64"],
        min_key_size=32,
        kdfs=["pbkdf2", "argon2id"],
        hashes=["sha256"],
        min_iterations=1000,
        min_memory_kib=32,
        min_time=4,
        max_cost=luks.KdfLimits(iterations=1000, memory_kib=32, time=4, lanes=1),
    )
    assert opened(policy, version) == 0
    assert opened(luks.Policy(), version) == 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "policy",
    [
        luks.Policy(uuid=UUID.replace("1", "2")),
        luks.Policy(digest=bytes(32)),
        luks.Policy(digest=b""),
        luks.Policy(versions=()),
        luks.Policy(ciphers=["aes-cbc-essiv:sha256"]),
        luks.Policy(min_key_size=64),
        luks.Policy(kdfs=["argon2i"]),
        luks.Policy(min_iterations=1001, min_time=5),
        luks.Policy(hashes=["sha512"], min_memory_kib=33),
        luks.Policy(max_cost=luks.KdfLimits(iterations=999, memory_kib=31)),
    ],
)
def test_what_violates_one_is_refused_before_the_secret_is_used(
    policy: luks.Policy, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def derive(*_: object) -> None:
        pytest.fail("the secret was used")

    base(version)  # made once, which needs what is replaced now
    monkeypatch.setattr("luks.keys.keyslots.derive", derive)
    with pytest.raises(luks.PolicyError):
        opened(policy, version)
    with pytest.raises(luks.PolicyError), luks.edit(base(version).copy(), policy=policy) as header:
        header.unlock(PASSPHRASE)


def test_a_keyslot_that_violates_one_is_not_tried_and_hinders_no_other() -> None:
    policy = luks.Policy(kdfs=["pbkdf2"])
    assert opened(policy, secret=OTHER) == 1
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        opened(policy)
    assert "argon2id" in caught.value.tried[0]
    assert opened(luks.Policy(min_iterations=10**6)) == 0
    assert opened(luks.Policy(min_memory_kib=10**6), secret=OTHER) == 1


def test_the_digest_of_a_header_is_that_of_what_it_says() -> None:
    """L93: not of copies, counters, white space."""
    device = base(2).copy()
    digest = luks.header_digest(luks.load_header(device))
    assert len(digest) == 32
    text = json.dumps(json_of(base(2).header), indent=1).encode()
    put_copy(device, base(2).header, text, luks2.SECONDARY, 16384, seqid=77)
    again = luks.load_header(device)
    assert again.seqid == 77
    assert luks.header_digest(again) == digest
    root = json_of(base(2).header)
    root["segments"]["0"]["acme"] = 1
    others = [luks.load_header(with_json(base(2), root))]
    with luks.edit(device) as header:
        header.set_labels(label="x")
    others.append(luks.load_header(device))
    luks.remove_keyslot(device, 1)
    others.append(luks.load_header(device))
    others += [base(1).header, luks.load_header(with_luks1(base(1), mk_digest_iterations=1001))]
    digests = {digest, *(luks.header_digest(other) for other in others)}
    assert len(digests) == 1 + len(others)


def test_the_header_that_was_checked_is_the_one_that_opens() -> None:
    """L60: exchanging it in between achieves nothing."""
    device = base(2).copy()
    header = luks.load_header(device)
    root: dict[str, Any] = json_of(header)
    root["segments"]["0"]["encryption"] = "cipher_null-ecb"
    device.content[:32768] = with_json(base(2), root).content[:32768]
    key = luks.unlock(device, header, PASSPHRASE, policy=luks.Policy(uuid=UUID))
    with luks.Volume(device, header, key) as volume:
        assert volume.header.cipher == "aes-xts-plain64"
    with pytest.raises(luks.PolicyError, match="L62"):
        luks.open(device, PASSPHRASE)


def test_what_is_not_encrypted_opens_on_demand_only() -> None:
    """L62: a segment in plain text, then one with a null cipher."""
    allow = luks.Policy(allow_unencrypted=True)
    data = pattern("plain", 4096)
    start = base(2).header.data_offset
    root: dict[str, Any] = json_of(base(2).header)
    crypt = root["segments"]["0"]
    root["segments"] = {
        "0": {"type": "linear", "offset": str(start), "size": "4096"},
        "1": {**crypt, "offset": str(start + 4096), "iv_tweak": "8"},
    }
    root["digests"]["0"]["segments"] = ["1"]
    linear = with_json(base(2), root)
    null = with_json(
        base(2),
        {**root, "segments": {"0": {**crypt, "encryption": "cipher_null-ecb"}}}
        | {"digests": {"0": {**root["digests"]["0"], "segments": ["0"]}}},
    )
    for device in (linear, null):
        device.content[start : start + 4096] = data
        with pytest.raises(luks.PolicyError, match="not encrypted") as caught:
            luks.open(device, PASSPHRASE)
        assert "allow_unencrypted" in str(caught.value.hint)
        with luks.open(device, PASSPHRASE, policy=allow) as volume:
            assert volume.read(0, 4096) == data
    with luks.open(base(2).device, PASSPHRASE) as volume:
        encrypted = volume.read(4096, 4096)
    with luks.open(linear, PASSPHRASE, policy=allow) as volume:
        assert volume.read(4096, 4096) == encrypted


def test_a_policy_is_a_value() -> None:
    policy = luks.Policy(uuid=UUID)
    assert replace(policy, uuid=None) == luks.Policy()
    with pytest.raises(AttributeError):
        policy.uuid = None  # type: ignore[misc]
