"""E-PCI: PCI vital product data, and lspci as the judge of this project's output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.pci_vpd import CODEC, PciVpd, Reserve
from formats.errors import FieldError, FormatError
from tests.support.foreign import lspci_vpd

from .support import check_bytes, check_model, damaged, fills, latin1, tails

CARD = PciVpd(
    identifier="Example card",
    read_only={"PN": "EX-1", "SN": "0042", "V0": "bytes \x00\xff"},
    reserved=Reserve(size=5),
    read_write={"YA": "asset 7"},
    free=Reserve(size=20),
)

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=2, max_size=2)
keywords = st.dictionaries(
    names.filter(lambda name: name not in ("RV", "RW")), latin1.map(lambda t: t[:255]), max_size=5
)


def reserves(most: int) -> st.SearchStrategy[Reserve]:
    contents = st.binary(max_size=10).map(lambda content: content.rstrip(b"\x00"))
    return contents.flatmap(
        lambda content: st.builds(
            Reserve, content=st.just(content), size=st.integers(len(content), most)
        )
    )


@st.composite
def cards(draw: st.DrawFn) -> PciVpd:
    fill = draw(fills)
    read_write = draw(st.none() | keywords)
    has_free = read_write is None or draw(st.booleans())
    return PciVpd(
        identifier=draw(latin1),
        read_only=draw(keywords),
        reserved=draw(reserves(254)),
        read_write=read_write,
        has_free=has_free,
        free=draw(reserves(255)) if has_free and read_write is not None else Reserve(),
        tail=draw(tails(fill)),
        fill=fill,
    )


@given(cards())
def test_e_pci_any_model_is_written_and_read(card: PciVpd) -> None:
    check_model(CODEC, card)


@given(damaged(CODEC.encode(CARD, 256)))
def test_e_pci_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_bytes(CODEC, data)


@given(st.binary(max_size=300))
def test_e_pci_random_bytes_are_read_or_refused(data: bytes) -> None:
    check_bytes(CODEC, data)


def test_e_pci_the_bytes_are_those_of_the_specification() -> None:
    card = PciVpd(identifier="AB", read_only={"PN": "1"}, read_write={}, free=Reserve(size=2))
    assert CODEC.encode(card, None) == bytes.fromhex(
        "82 0200 4142  90 0800 504e0131 525601e8  91 0500 5257020000 78".replace(" ", "")
    )


@pytest.mark.parametrize(
    ("change", "rule", "offset"),
    [
        (lambda b: b"\x83" + b[1:], "E-PCI3", 0),
        (lambda b: b[:3] + b"e" + b[4:], "E-PCI5", None),
        (lambda b: b.replace(b"RV", b"RX"), "E-PCI4", None),
        (lambda b: b.replace(b"YA", b"RW"), "E-PCI2", None),
        (lambda b: b.replace(b"V0", b"PN"), "E-PCI2", None),
        (lambda b: b.replace(b"SN\x04", b"SN\xf4"), "E-PCI2", None),
        (lambda b: b[: b.index(b"YA")], "E-PCI1", None),
        (lambda b: b.replace(b"\x91", b"\x93"), "E-PCI3", None),
        (lambda b: b[: b.index(b"\x78\xff")], "E-PCI3", None),
    ],
)
def test_e_pci_what_is_wrong_is_named(
    change: Callable[[bytes], bytes], rule: str, offset: int | None
) -> None:
    data = change(CODEC.encode(CARD, 256))
    with pytest.raises(FormatError) as caught:
        CODEC.decode(data, Findings.strict())
    assert caught.value.rule == rule
    if offset is not None:
        assert caught.value.offset == offset
        return
    report = Findings.tolerant()
    assert CODEC.decode(data, report).read_only["PN"] == "EX-1"
    assert rule in {problem.rule for problem in report.problems}


@pytest.mark.parametrize(
    ("model", "size", "path"),
    [
        (PciVpd(identifier="", read_only={"RV": ""}), None, "read-only.RV"),
        (PciVpd(identifier="", read_only={"P": ""}), None, "read-only"),
        (PciVpd(identifier="", read_only={"PN": "x" * 256}), None, "read-only.PN"),
        (PciVpd(identifier="\u20ac"), None, "identifier"),
        (PciVpd(identifier="", reserved=Reserve(size=255)), None, "reserved.size"),
        (PciVpd(identifier="", reserved=Reserve(size=1, content=b"ab")), None, "reserved.size"),
        (PciVpd(identifier="", reserved=Reserve(size=9, content=b"a\0")), None, "reserved.content"),
        (PciVpd(identifier="", free=Reserve(size=1)), None, "free"),
        (PciVpd(identifier="", tail=b"\xff"), None, "tail"),
        (CARD, 64, ""),
    ],
)
def test_e_pci_what_cannot_be_written_is_named(model: PciVpd, size: int | None, path: str) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(model, size)
    assert caught.value.path.startswith(path)


@pytest.mark.interop
def test_e_pci6_vpd_w_without_rw_is_read_as_lspci_does() -> None:
    card = PciVpd(
        identifier="Card", read_only={"PN": "1"}, read_write={"V1": "note"}, has_free=False
    )
    data = check_model(CODEC, card)
    assert b"RW" not in data
    listing = lspci_vpd(data)
    assert "[V1] Vendor specific: note" in listing
    assert "checksum good" in listing
    with pytest.raises(FieldError, match="has-free: is about VPD-W"):
        CODEC.encode(PciVpd(identifier="Card", has_free=False), None)
    with pytest.raises(FieldError, match="free: is given, but has-free"):
        CODEC.encode(dataclasses.replace(card, free=Reserve(size=1)), None)


@pytest.mark.interop
def test_e_pci_lspci_finds_the_checksum_good() -> None:
    card = dataclasses.replace(CARD, read_only={"PN": "EX-1", "SN": "0042"})
    listing = lspci_vpd(CODEC.encode(card, 256))
    for line in (
        "Product Name: Example card",
        "[PN] Part number: EX-1",
        "[SN] Serial number: 0042",
        "[RV] Reserved: checksum good, 5 byte(s) reserved",
        "[YA] Asset tag: asset 7",
        "[RW] Read-write area: 20 byte(s) free",
        "End",
    ):
        assert line in listing, listing
    assert "checksum bad" in lspci_vpd(CODEC.encode(card, 256).replace(b"0042", b"0043"))
