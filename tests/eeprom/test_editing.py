"""E8 to E10: changing content that breaks rules, judging sections, and finding a type."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import pytest

import blobstore
from formats.eeprom.edid import CODEC as EDID
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.registry import built_in_codec
from formats.eeprom.intel_nic import CODEC as INTEL
from formats.errors import ForeignImageError, FormatError, UnsupportedError
from tests.eeprom.test_edid import DISPLAY, change
from tests.eeprom.test_examples import MANIFESTS, encoded, section_of
from tests.eeprom.test_intel_nic import CARD
from tests.eeprom.test_uboot_env import PAIR, TWO
from tests.support.cli import blobstore as run_blobstore
from tests.support.cli import fails, succeeds

if TYPE_CHECKING:
    from pathlib import Path

#: A blob of each format.
EXAMPLES = {section_of(name)["type"]: encoded(name) for name in MANIFESTS}
EXAMPLES["uboot-env-redundant"] = TWO.encode(PAIR, 512)

WITHOUT_CHECKSUM = {"beaglebone-cape", "google-vpd", "ti-am335x-board", "ti-am6-board"}

NIC = INTEL.encode(CARD, 256)
NEW = [("ethernet-address", "02:00:00:00:00:07")]


def damaged(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes((blob[at] ^ 0xFF,)) + blob[at + 1 :]


def test_e8_content_that_breaks_a_rule_is_changed_if_nothing_gets_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A text that neither spaces nor equal bytes follow is kept as it is stored.
    octets = "000000FC00 4142 0A 0A0A202020202020 2020"
    broken = change(EDID.encode(DISPLAY, None), 72, octets)
    with pytest.raises(FormatError):
        EDID.decode(broken, Findings.strict())
    with caplog.at_level(logging.WARNING):
        made = blobstore.edit_blob(broken, "edid", [("id-product-code", "7")])
    assert "at byte 77 [E-EDID5]" in caplog.text
    assert {at for at in range(128) if made[at] != broken[at]} <= {10, 11, 127}
    assert made[10] == 7


def test_e8_what_no_field_holds_is_not_lost() -> None:
    broken = change(EDID.encode(DISPLAY, None), 74, "01")  # a reserved byte of a descriptor
    for repair in (False, True):
        with pytest.raises(FormatError, match=r"reserved byte .* at byte 74 \[E-EDID5\]"):
            blobstore.edit_blob(broken, "edid", [("id-product-code", "7")], repair=repair)


def test_e8_a_wrong_checksum_is_computed_anew_on_request_only() -> None:
    broken = damaged(NIC, 40)
    with pytest.raises(FormatError, match="E-INTEL3") as caught:
        blobstore.edit_blob(broken, "intel-nic", NEW)
    assert "--repair" in str(caught.value.hint)
    made = blobstore.edit_blob(broken, "intel-nic", [], repair=True)
    assert [at for at in range(len(made)) if made[at] != broken[at]] == [126, 127]
    INTEL.decode(made, Findings.strict())
    assert blobstore.edit_blob(NIC, "intel-nic", [], repair=True) == NIC


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - WITHOUT_CHECKSUM))
def test_e8_every_format_repairs_its_checksums(name: str) -> None:
    blob, codec = EXAMPLES[name], built_in_codec(name)
    repaired = 0
    for at in range(min(len(blob), 512)):
        broken = damaged(blob, at)
        report = Findings.tolerant()
        try:
            codec.decode(broken, report)
        except (FormatError, UnsupportedError):
            continue
        if not report.problems or not all(problem.checksum for problem in report.problems):
            continue
        made = blobstore.edit_blob(broken, name, [], repair=True)
        codec.decode(made, Findings.strict())
        checksums = {
            place
            for problem in report.problems
            for place in range(problem.offset, problem.offset + problem.checksum)
        }
        assert {place for place in range(len(made)) if made[place] != broken[place]} <= checksums
        repaired += 1
    assert repaired


def test_e8_a_file_is_changed_as_a_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "nic.bin"
    file.write_bytes(damaged(NIC, 40))
    file.chmod(0o644)
    with pytest.raises(FormatError):
        blobstore.edit_file(file, "intel-nic", NEW)
    assert file.read_bytes() == damaged(NIC, 40)
    blobstore.edit_file(file, "intel-nic", NEW, repair=True)
    found = INTEL.decode(file.read_bytes(), Findings.strict())
    assert found.ethernet_address == bytes.fromhex("020000000007")
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_e8_e10_bare_binaries_are_shown_and_changed_without_their_type(tmp_path: Path) -> None:
    file = tmp_path / "nic.bin"
    file.write_bytes(damaged(NIC, 40))
    assert (
        fails("edit", file, "ethernet-address=02:00:00:00:00:07") == 32
    )  # its only mark is broken
    assert fails("edit", file, "--type", "intel-nic", "ethernet-address=02:00:00:00:00:07") == 30
    assert file.read_bytes() == damaged(NIC, 40)
    succeeds_with_warning("edit", file, "--type", "intel-nic", "--repair")
    assert b'ethernet-address = "020000123456"' in succeeds("show", file)
    succeeds("edit", file, "ethernet-address=02:00:00:00:00:07")
    assert b'ethernet-address = "020000000007"' in succeeds("show", file)
    assert fails("edit", file) == 2
    assert fails("edit", file, "--delete", "Boot0001") == 2


def succeeds_with_warning(*arguments: object) -> None:
    done = run_blobstore(*arguments)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"the checksum is" in done.stderr


def test_e9_verifying_reads_the_content_of_typed_sections(tmp_path: Path) -> None:
    manifest, image, file = (tmp_path / name for name in ("m.toml", "image", "file"))
    file.write_bytes(NIC)
    manifest.write_text(
        '[image]\nluks = false\n[[section]]\nname = "nic"\ntype = "intel-nic"\nfile = "file"\n'
        '[[section]]\nname = "plain"\ntext = "any"\n'
    )
    succeeds("pack", manifest, "-o", image)
    succeeds("verify", image)
    for content, message in (
        (b"\x02\x01\x07" * 85, "the checksum is"),
        (b"\xff" * 256, "it is blank"),
        (damaged(NIC, 41), "E-INTEL3"),
    ):
        file.write_bytes(content)
        succeeds("put", image, "nic", file)
        with blobstore.open(image, read_only=True) as store:
            found = blobstore.check_contents(store)
        assert {(problem.section, problem.type) for problem in found} == {("nic", "intel-nic")}
        assert message in found[0].message
        assert fails("verify", image) == 30
        assert fails("verify", image, "--json") == 30


def test_e10_a_type_is_found_by_its_content() -> None:
    for name, blob in EXAMPLES.items():
        assert name in blobstore.likely_types(blob)
    assert blobstore.likely_types(NIC) == ("intel-nic",)
    assert blobstore.likely_types(damaged(EDID.encode(DISPLAY, None), 20)) == ("edid",)
    assert "uboot-env-redundant" in blobstore.likely_types(TWO.encode(PAIR, 512))
    with pytest.raises(ForeignImageError, match="no type that is known"):
        blobstore.likely_types(b"text")
    assert dataclasses.fields(blobstore.ContentProblem)[0].name == "section"
