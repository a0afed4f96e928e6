"""Heads of items: what is written is read back, canonical, and nothing else is read."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from formats.container import der
from formats.container.asn1 import require_canonical
from formats.container.decoder import (
    Record,
    decode_header,
    decode_item,
    locate_check,
    require_supported,
)
from formats.container.encoder import encode_free, encode_header, record_frame
from formats.container.model import (
    BLOCK_SIZES,
    DIGEST_SIZE,
    HEAD_SIZE,
    MAX_NAME_SIZE,
    MAX_SECTION_SIZE,
    MAX_TYPE_SIZE,
    NEVER_WRITTEN,
    Authentication,
    ContainerHeader,
    Free,
    Identity,
    Kind,
    State,
    Version,
    record_length,
)
from formats.errors import FormatError, UnsupportedError
from tests.support.strategies import block_sizes, frees, headers, identities, versions

IDENTITY = Identity(bytes(16), 0, 2, Kind.BLOB, 5000, "tpm2-permall", "tpm-permanent-state")
LIVE = Version(State.LIVE, 7, 1, 4999, 0x12345678, b"m" * 32, b"r" * 32, b"p" * 32)
HEADER = ContainerHeader(
    copy=0,
    block_size=4096,
    store_id=b"s" * 16,
    encrypted=True,
    authentication=Authentication.HMAC_SHA256,
    key=b"k" * 32,
    sequence=3,
    total=1 << 20,
    durable_generation=5,
    root=b"r" * 32,
)


@given(st.data(), identities(), block_sizes)
def test_c6_a_record_head_reads_back(data: st.DataObject, identity: Identity, size: int) -> None:
    version = data.draw(versions(identity.max_size, identity.kind))
    frame = record_frame(identity, size)
    head = frame.head(version)
    assert len(head) == HEAD_SIZE
    length = record_length(identity.max_size, size)
    decoded = decode_item(head, size)
    assert decoded == Record(identity, version, length, frame)
    assert isinstance(decoded, Record)
    assert decoded.frame == frame
    start = locate_check(head)
    assert start == frame.check_start
    assert head[start : start + DIGEST_SIZE] == bytes(DIGEST_SIZE)
    _, meta_start, _ = der.read_framing(head, 0)
    require_canonical(head[meta_start : start + DIGEST_SIZE])


@given(frees())
def test_c14_a_free_head_reads_back(free_and_size: tuple[Free, int]) -> None:
    free, block_size = free_and_size
    head = encode_free(free)
    assert len(head) == HEAD_SIZE
    assert decode_item(head, block_size) == free
    start = locate_check(head)
    assert head[start : start + DIGEST_SIZE] == bytes(DIGEST_SIZE)


@given(headers())
def test_c3_a_header_head_reads_back(header: ContainerHeader) -> None:
    head = encode_header(header)
    assert len(head) == HEAD_SIZE
    decoded = decode_header(head, header.copy)
    assert decoded.header == header
    assert decoded.outer_total == (header.total if header.copy == 0 else None)
    assert head[decoded.check_start :][:DIGEST_SIZE] == bytes(DIGEST_SIZE)
    start = der.read_framing(head, 0)[1] if header.copy == 0 else 0
    block = head + bytes(header.block_size - HEAD_SIZE)
    require_canonical(block[start:])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_c7_the_head_can_be_filled_for_every_length(block_size: int) -> None:
    for name_size in range(1, MAX_NAME_SIZE + 1):
        for type_size in (0, 1, 7, MAX_TYPE_SIZE):
            for max_size in (0, 127, 70_000, 1 << 24, 1 << 33, MAX_SECTION_SIZE):
                identity = IDENTITY._replace(
                    name="n" * name_size, type="t" * type_size, max_size=max_size
                )
                head = record_frame(identity, block_size).head(NEVER_WRITTEN)
                record = decode_item(head, block_size)
                assert isinstance(record, Record)
                assert record.identity == identity


def test_c7_align_stands_exactly_where_it_is_needed() -> None:
    found = set()
    for name_size in range(1, MAX_NAME_SIZE + 1):
        head = record_frame(IDENTITY._replace(name="n" * name_size), 4096).head(LIVE)
        meta = der.Reader(head, der.read_framing(head, 0)[1])
        meta.enter(der.SEQUENCE)
        room = HEAD_SIZE - meta.position - len(der.framing(der.OCTET_STRING, 8192 - HEAD_SIZE))
        has_align = meta.next_tag() == der.NULL
        assert has_align == (room in (130, 259))
        found.add(has_align)
    assert found == {False, True}


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_c8_a_record_is_no_longer_than_it_must_be(block_size: int) -> None:
    for max_size in (0, 1, block_size - 512, block_size - 511, 10 * block_size):
        length = record_length(max_size, block_size)
        assert length % block_size == 0
        assert 0 <= length - 512 - max_size < block_size


@pytest.mark.parametrize(
    "identity",
    [
        IDENTITY._replace(name=""),
        IDENTITY._replace(name="n" * 201),
        IDENTITY._replace(name="é" * 101),
        IDENTITY._replace(name="a\nb"),
        IDENTITY._replace(name="a\x7f"),
        IDENTITY._replace(name="\x9b"),
        IDENTITY._replace(name="\ud800"),
        IDENTITY._replace(type="t" * 33),
        IDENTITY._replace(type="\0"),
        IDENTITY._replace(max_size=-1),
        IDENTITY._replace(max_size=MAX_SECTION_SIZE + 1),
    ],
)
def test_c9_bad_labels_and_sizes_are_the_caller_s_mistake(identity: Identity) -> None:
    with pytest.raises(ValueError):
        record_frame(identity, 4096)


def _record_head(version: Version = LIVE) -> bytes:
    return record_frame(IDENTITY, 4096).head(version)


def _changed(head: bytes, find: bytes, new: bytes) -> bytes:
    assert head.count(find) == 1
    assert len(find) == len(new)
    return head.replace(find, new)


@pytest.mark.parametrize(
    ("find", "new", "rule"),
    [
        (b"\x02\x01\x02", b"\x02\x01\x03", "C1"),  # copies 3
        (b"\x02\x01\x02", b"\x02\x01\x00", "C1"),  # copies 0 with copy 0
        (b"\x02\x02\x13\x88", b"\x02\x02\x23\x88", "C8"),  # maximum does not fit the length
        (b"tpm-permanent", b"tpm\x01permanent", "C9"),
        (b"tpm-permanent", b"tpm\xffpermanent", "C1"),
        (b"\x0a\x01\x02\x04\x08", b"\x0a\x01\x02\x04\x07", "C5"),  # generation's length
        (b"\x00\x00\x13\x87", b"\x00\x00\x13\x89", "C8"),  # size above maximum
        (b"\xa1\x82\x1f\xfc", b"\xa1\x82\x1f\xfb", "C4"),  # no whole number of blocks
        (b"\xa1\x82\x1f\xfc", b"\xa3\x82\x1f\xfc", "C3"),  # unknown item
    ],
)
def test_broken_record_heads_are_refused(find: bytes, new: bytes, rule: str) -> None:
    head = _changed(_record_head(), find, new)
    with pytest.raises(FormatError, match=rule):
        _item(head)


@pytest.mark.parametrize("place", [0, -1])
def test_c6_the_blob_is_an_octet_string_to_the_end_of_its_record(place: int) -> None:
    """Whatever its check says: its tag, and the last octet of its length."""
    head = bytearray(_record_head())
    framing = der.framing(der.OCTET_STRING, 8192 - HEAD_SIZE)
    assert head.endswith(framing)
    head[len(head) - len(framing) if place == 0 else place] ^= 1
    with pytest.raises(FormatError, match="C6"):
        _item(bytes(head))


def test_c5_each_digest_is_an_octet_string_of_its_size() -> None:
    head = _record_head()
    framing = der.framing(der.OCTET_STRING, 32)
    starts = [at for at in range(len(head)) if head.startswith(framing, at)]
    assert len(starts) == 4  # mac, root, prev and check
    for start, place in itertools.product(starts, (0, 1)):
        changed = bytearray(head)
        changed[start + place] ^= 1
        with pytest.raises(FormatError, match="C5"):
            _item(bytes(changed))


@pytest.mark.parametrize("place", [0, 1, 3])
def test_c3_padding_fills_a_header(place: int) -> None:
    """Its tag, how long its length is, and the last octet of that."""
    head = bytearray(encode_header(HEADER))
    start = decode_header(bytes(head), 0).check_start + 32
    assert der.read_framing(bytes(head), start)[1] == start + 4
    head[start + place] ^= 1
    with pytest.raises(FormatError, match="C3"):
        decode_header(bytes(head), 0)


def test_c11_an_unwritten_record_has_no_size() -> None:
    with pytest.raises(FormatError, match="C11"):
        decode_item(_record_head(LIVE._replace(state=State.UNWRITTEN)), 4096)


@pytest.mark.parametrize(
    ("find", "new", "feature"),
    [
        (b"\x0a\x01\x00\x02\x02\x13\x88", b"\x0a\x01\x02\x02\x02\x13\x88", "kind 2"),
        (b"\x0a\x01\x02\x04\x08", b"\x0a\x01\x05\x04\x08", "state 5"),
    ],
)
def test_c15_unknown_kinds_and_states_are_unsupported(
    find: bytes, new: bytes, feature: str
) -> None:
    head = _changed(_record_head(), find, new)
    with pytest.raises(UnsupportedError) as caught:
        decode_item(head, 4096)
    assert caught.value.feature == feature


@pytest.mark.parametrize(
    ("find", "new", "feature"),
    [
        (b"blobstore\x02\x01\x01", b"blobstore\x02\x01\x02", "version 2"),
        (b"\x01\x01\xff\x0a\x01\x01", b"\x01\x01\xff\x0a\x01\x02", "authentication 2"),
    ],
)
def test_c15_unknown_versions_and_algorithms_are_unsupported(
    find: bytes, new: bytes, feature: str
) -> None:
    head = _changed(encode_header(HEADER), find, new)
    with pytest.raises(UnsupportedError) as caught:
        decode_header(head, 0)
    assert caught.value.feature == feature


def test_c15_feature_masks_decide_about_reading_and_writing() -> None:
    assert require_supported(HEADER)
    assert require_supported(replace(HEADER, compatible=1))
    assert not require_supported(replace(HEADER, read_only_compatible=1 << 63))
    with pytest.raises(UnsupportedError):
        require_supported(replace(HEADER, incompatible=1))


def test_c3_a_header_in_another_place_is_refused() -> None:
    with pytest.raises(FormatError, match="C1"):
        decode_header(encode_header(replace(HEADER, copy=1)), 0)
    head = _changed(encode_header(HEADER), b"\x02\x01\x00", b"\x02\x01\x01")
    with pytest.raises(FormatError, match="C3"):
        decode_header(head, 0)


def test_c21_outer_length_and_total_agree() -> None:
    head = bytearray(encode_header(HEADER))
    # 1 MiB is 73 83 0ffffb; one block less in the outer framing only.
    assert head[:5] == bytes.fromhex("73830ffffb")
    head[2:5] = (0x0FFFFB - 4096).to_bytes(3, "big")
    with pytest.raises(FormatError, match="C21"):
        decode_header(bytes(head), 0)


@given(st.binary(min_size=HEAD_SIZE, max_size=HEAD_SIZE), st.sampled_from((0, 1)))
def test_any_bytes_decode_or_are_refused(head: bytes, copy: int) -> None:
    with suppress(FormatError, UnsupportedError):
        decode_header(head, copy)
    with suppress(FormatError, UnsupportedError):
        _item(head)


@given(st.data(), st.sampled_from(("record", "free", "header")))
@example(None, "record")
def test_any_change_to_a_head_decodes_or_is_refused(data: st.DataObject | None, which: str) -> None:
    head = bytearray(
        {
            "record": record_frame(IDENTITY, 4096).head(LIVE),
            "free": encode_free(Free(3, b"r" * 32, 1 << 20)),
            "header": encode_header(HEADER),
        }[which]
    )
    positions = (
        range(HEAD_SIZE)
        if data is None
        else data.draw(st.lists(st.integers(0, HEAD_SIZE - 1), min_size=1, max_size=4))
    )
    for position in positions:
        head[position] ^= 0x81 if data is None else data.draw(st.integers(1, 255))
        with suppress(FormatError, UnsupportedError):
            if which == "header":
                decode_header(bytes(head), 0)
            else:
                _item(bytes(head))


def _item(head: bytes) -> object:
    locate_check(head)
    return decode_item(head, 4096)
