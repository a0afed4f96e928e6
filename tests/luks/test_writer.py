"""Writing headers: what is written, in which order, when it is flushed (L10 to L14, L91, L92)."""

from __future__ import annotations

from functools import cache
from itertools import groupby
from types import MappingProxyType

import pytest

import luks
from formats.devices.device import MemoryDevice
from formats.errors import ForeignImageError
from formats.frozen import replace
from luks.header import luks1, writer
from luks.header.luks2 import PRIMARY, SECONDARY
from luks.header.luks2_binary import MAX_SEQID
from tests.luks.support import Template, json_of, template, with_json
from tests.support.devices import Flush, RecordingDevice, Write

VERSIONS = pytest.mark.parametrize("version", [1, 2])
#: For two keyslots of LUKS2, of which there is one.
ROOM = {"keyslots_size": 256 << 10, "data_offset": 288 << 10}
#: What lies where nothing should be left of it.
OLD = b"old content "


@cache
def base(version: int) -> Template:
    return template(version, **(ROOM if version == 2 else {}))


def steps(device: RecordingDevice) -> list[list[Write]]:
    """Return what was written, flush by flush; the last flush comes after everything."""
    assert isinstance(device.log[-1], Flush)
    groups = groupby(device.log, key=lambda event: isinstance(event, Flush))
    return [
        [event for event in events if isinstance(event, Write)]
        for is_flush, events in groups
        if not is_flush
    ]


def old_content(size: int) -> bytes:
    return (OLD * (size // len(OLD) + 1))[:size]


def bounds(header: luks.Header) -> tuple[int, int]:
    """Return where the keyslots area begins and ends."""
    return header.keyslots_offset, header.keyslots_offset + header.keyslots_size


def new_header(version: int) -> luks.Header:
    header = base(version).header
    return header if version == 1 else replace(header, seqid=0)


@VERSIONS
def test_l13_a_new_header_comes_after_its_material_and_that_after_the_old_header(
    version: int,
) -> None:
    header = new_header(version)
    start, end = bounds(header)
    device = RecordingDevice(bytes(base(version).device.content))
    before = device.content
    area = header.keyslots[0].area
    writer.create_header(device, header, {area.offset: b"material"})
    erased, filled, *copies = steps(device)
    assert erased[0] == Write(0, bytes(4096))
    assert all(not any(write.data) for write in erased)
    if version == 2:
        assert header.metadata_size in [write.offset for write in erased]
    assert filled[-1] == Write(area.offset, b"material")
    assert sum(len(write.data) for write in filled[:-1]) == end - start
    assert filled[0].offset == start
    assert [[write.offset for write in step] for step in copies] == (
        [[0], [header.metadata_size]] if version == 2 else [[512], [0]]
    )
    content = device.content
    assert content[area.offset + 8 : end] != before[area.offset + 8 : end]
    assert content[end:] == before[end:]


@VERSIONS
def test_a_seeded_source_makes_the_same_header_and_the_same_noise(version: int) -> None:
    contents = set()
    for seed in (b"one", b"one", b"two"):
        device = MemoryDevice(base(version).device.content)
        writer.create_header(device, new_header(version), {}, luks.SeededSource(seed))
        contents.add(bytes(device.content))
    assert len(contents) == 2


@VERSIONS
def test_a_blank_device_has_no_header_to_be_erased_first(version: int) -> None:
    device = RecordingDevice(base(version).device.size)
    writer.replace_header(device, new_header(version), {})
    first, *_ = steps(device)
    assert any(first[0].data)
    assert max(length for _, length in device.reads) <= 4096


def test_l13_a_secondary_copy_is_erased_where_the_primary_is_gone() -> None:
    header = new_header(2)
    content = bytearray(base(2).device.content)
    content[: header.metadata_size] = bytes(header.metadata_size)
    device = RecordingDevice(content)
    writer.replace_header(device, header, {})
    erased, *_ = steps(device)
    assert erased == [Write(0, bytes(4096)), Write(header.metadata_size, bytes(4096))]


def test_l13_of_a_copy_that_the_device_cuts_off_the_rest_is_erased() -> None:
    header = base(2).header
    size = header.metadata_size + 512
    device = RecordingDevice(bytes(base(2).device.content[:size]))
    writer.wipe_header(device, header)
    erased, _ = steps(device)
    assert erased == [Write(0, bytes(4096)), Write(header.metadata_size, bytes(512))]


@VERSIONS
def test_a_header_from_elsewhere_leaves_nothing_of_what_was_there(version: int) -> None:
    header = new_header(version)
    start, end = bounds(header)
    device = RecordingDevice(bytes(base(version).device.content))
    device.write(start, old_content(end - start))
    device.flush()
    device.log.clear()
    area = header.keyslots[0].area
    writer.replace_header(device, header, {area.offset: bytes(area.size)})
    erased, material, *_ = steps(device)
    assert erased[0] == Write(0, bytes(4096))
    assert [write.offset for write in material] == [area.offset]
    assert device.content[area.offset : area.end] == bytes(area.size)
    assert OLD not in device.content[start:end]


@VERSIONS
def test_a_header_is_no_header_before_its_remains_are_overwritten(version: int) -> None:
    header = base(version).header
    _, end = bounds(header)
    device = RecordingDevice(bytes(base(version).device.content))
    before = device.content
    writer.wipe_header(device, header)
    erased, wiped = steps(device)
    assert erased[0] == Write(0, bytes(4096))
    assert wiped[0].offset == 0
    assert sum(len(write.data) for write in wiped) == end
    assert device.content[end:] == before[end:]
    assert device.content[0] or device.content[1]


@VERSIONS
def test_what_is_wiped_ends_with_the_device(version: int) -> None:
    header = base(version).header
    _, end = bounds(header)
    short = RecordingDevice(bytes(base(version).device.content[: end - 512]))
    writer.wipe_header(short, header)
    assert sum(len(write.data) for write in steps(short)[-1]) == end - 512


@VERSIONS
def test_what_is_erased_is_all_but_the_areas_in_use(version: int) -> None:
    header = base(version).header
    start, end = bounds(header)
    for size in (base(version).device.size, end - 512):
        device = RecordingDevice(old_content(size))
        writer.erase_unused(device, header)
        (written,) = steps(device)
        end_there = min(end, size)
        used = {
            number
            for slot in header.keyslots.values()
            for number in range(slot.area.offset, min(slot.area.end, end_there))
        }
        covered = [
            number
            for write in written
            for number in range(write.offset, write.offset + len(write.data))
        ]
        assert sorted(covered) == sorted(set(range(start, end_there)) - used)
        assert device.content[:start] == old_content(size)[:start]


def test_areas_in_use_stay_in_whatever_order_keyslots_have_them() -> None:
    header = base(2).header
    first = header.keyslots[0]
    second = replace(first, area=replace(first.area, offset=first.area.end))
    header = replace(header, keyslots=MappingProxyType({0: second, 1: first}))
    content = old_content(base(2).device.size)
    device = RecordingDevice(content)
    writer.erase_unused(device, header)
    assert device.content[: second.area.end] == content[: second.area.end]


@VERSIONS
def test_l90_a_header_that_would_be_refused_is_not_written(version: int) -> None:
    header = base(version).header
    slot = replace(header.keyslots[0], kdf=luks.Pbkdf2("sha256", 0))
    device = RecordingDevice(bytes(base(version).device.content))
    with pytest.raises(luks.LuksHeaderError):
        writer.write_header(device, replace(header, keyslots=MappingProxyType({0: slot})), {})
    assert device.log == []


def test_l90_a_header_that_would_be_read_differently_is_not_written() -> None:
    header = base(2).header
    token = luks.Token("acme", (), {"type": "acme", "keyslots": [], "list": (1, 2)})
    device = RecordingDevice(bytes(base(2).device.content))
    with pytest.raises(luks.LuksHeaderError, match="read differently") as caught:
        writer.write_header(device, replace(header, tokens=MappingProxyType({0: token})), {})
    assert caught.value.rule == "L90"
    assert device.log == []


def test_l1_the_counter_of_writes_has_an_end() -> None:
    last = replace(base(2).header, seqid=MAX_SEQID - 1)
    device = RecordingDevice(bytes(base(2).device.content))
    written = writer.write_header(device, last, {})
    assert written.seqid == MAX_SEQID
    device.log.clear()
    with pytest.raises(luks.LuksHeaderError, match="limit") as caught:
        writer.write_header(device, written, {})
    assert caught.value.rule == "L1"
    assert device.log == []


def test_l1_a_write_is_counted_in_luks2() -> None:
    one, two = base(1).header, base(2).header
    assert writer.next_header(one) is one
    assert writer.next_header(two) == replace(two, seqid=two.seqid + 1)


def test_l31_what_requires_more_is_not_written() -> None:
    root = json_of(base(2).header)
    root["config"]["requirements"] = {"mandatory": ["acme"]}
    device = with_json(base(2), root)
    header = luks.load_header(device)
    recording = RecordingDevice(bytes(device.content))
    with pytest.raises(luks.UnsupportedError):
        writer.write_header(recording, header, {})
    assert recording.log == []


@pytest.mark.parametrize("which", [PRIMARY, SECONDARY])
def test_l94_a_copy_is_restored_in_its_place_and_flushed(which: int) -> None:
    header = base(2).header
    place = which * header.metadata_size
    content = bytearray(base(2).device.content)
    sound = bytes(content)
    content[place + 5000] ^= 1
    device = RecordingDevice(content)
    damaged = luks.load_header(device)
    assert damaged.stale_copy == which
    device.log.clear()
    repaired = writer.repair_header(device, damaged)
    assert repaired == replace(damaged, stale_copy=None)
    ((write,),) = steps(device)
    assert write.offset == place
    assert luks.load_header(MemoryDevice(device.content)).stale_copy is None
    other = header.metadata_size - place
    assert device.content[other : other + 4096] == sound[other : other + 4096]
    assert writer.repair_header(device, repaired) is repaired


def test_l94_what_somebody_put_over_a_copy_stays() -> None:
    header = replace(base(2).header, stale_copy=PRIMARY)
    content = bytearray(base(2).device.content)
    content[:4096] = b"XFSB".ljust(4096, b"\0")
    device = RecordingDevice(content)
    with pytest.raises(ForeignImageError):
        writer.repair_header(device, header)
    with pytest.raises(ForeignImageError):
        writer.write_header(device, header, {})
    assert device.log == []


@pytest.mark.parametrize(("stale", "first"), [(None, 0), (PRIMARY, 0), (SECONDARY, 1)])
def test_l11_the_damaged_copy_is_written_first(stale: int | None, first: int) -> None:
    header = replace(base(2).header, stale_copy=stale)
    device = RecordingDevice(bytes(base(2).device.content))
    written = writer.write_header(device, header, {})
    assert written == writer.next_header(replace(header, stale_copy=None))
    one, other, _ = steps(device)
    places = [0, header.metadata_size]
    assert [write.offset for write in one] == [places[first]]
    assert [write.offset for write in other] == [places[1 - first]]


def luks1_with(*active: int) -> luks.Header:
    """Return a LUKS1 header with these keyslots, none of which opens."""
    header = base(1).header
    template_slot = header.keyslots[0]
    keyslots = {
        number: replace(template_slot, area=luks1.blank_keyslot(header, number).area)
        for number in active
    }
    changed = replace(header, keyslots=MappingProxyType(keyslots))
    return luks1.to_model(luks1.from_model(changed))


@pytest.mark.parametrize(
    ("old", "new", "written"),
    [
        ((0,), (0,), []),
        ((0,), (0, 1), [0]),
        ((0, 1), (1,), [0]),
        ((0,), (0, 7), [512]),
        ((0, 7), (0,), [512]),
        ((0,), (0, 6), [512, 0]),
        ((0, 6), (0,), [0, 512]),
        ((0,), (7,), [512, 0]),
        ((7,), (0,), [0, 512]),
        ((6,), (7,), [512, 0, 512]),
        ((7,), (6,), [512, 0, 512]),
        ((6, 7), (0,), [0, 512]),
        ((0, 7), (6, 7), [512, 0]),
    ],
)
def test_l92_keyslots_become_active_before_others_become_inactive(
    old: tuple[int, ...], new: tuple[int, ...], written: list[int]
) -> None:
    before, after = luks1_with(*old), luks1_with(*new)
    content = bytearray(base(1).device.content)
    content[:592] = luks1.encode(before.source)
    device = RecordingDevice(content)
    header = replace(before, keyslots=after.keyslots)
    assert list(writer.write_header(device, header, {}).keyslots) == list(new)
    *sectors, _ = steps(device)
    assert [write.offset for step in sectors for write in step] == written
    assert all(len(write.data) == 512 for step in sectors for write in step)
    current = content
    for step in sectors:
        for write in step:
            current[write.offset : write.offset + 512] = write.data
        slots = luks1.decode(bytes(current[:592])).keyslots
        active = {number for number, slot in enumerate(slots) if slot.active}
        assert active >= set(old) or active >= set(new)
    assert bytes(current[:592]) == luks1.encode(after.source)


def test_l92_keyslot_6_lies_in_two_sectors_and_is_not_replaced() -> None:
    header = luks1_with(6)
    changed = replace(header.keyslots[6], salt=bytes(32))
    device = RecordingDevice(bytes(base(1).device.content))
    with pytest.raises(ValueError, match="keyslot 6"):
        writer.write_header(device, replace(header, keyslots=MappingProxyType({6: changed})), {})
    assert device.log == []
