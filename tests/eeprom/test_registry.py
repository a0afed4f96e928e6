"""Every codec is what its contract says."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.mirror import mirror_of
from formats.eeprom.framework.registry import MODULES, UNMARKED, built_in_codec, built_in_names
from formats.eeprom.framework.schema import schemas_of
from formats.errors import EmptyImageError, ForeignImageError

from .support import check_bytes


@pytest.mark.parametrize("name", built_in_names())
def test_a_codec_has_its_name_and_a_model_with_a_schema(name: str) -> None:
    codec = built_in_codec(name)
    assert codec.name == name
    assert codec.title
    assert codec.model.__doc__
    options = codec.model.__dataclass_params__
    assert dataclasses.is_dataclass(codec.model)
    assert options.frozen
    assert "__slots__" in vars(codec.model)
    assert mirror_of(codec.model) is mirror_of(codec.model)
    schemas, definitions = schemas_of({name: codec.model})
    assert schemas[name]
    assert definitions


@pytest.mark.parametrize("name", built_in_names())
@pytest.mark.parametrize("blank", [b"", bytes(512), b"\xff" * 512, b"\xff" * 511])
def test_blank_bytes_are_read_or_refused(name: str, blank: bytes) -> None:
    check_bytes(built_in_codec(name), blank)


@pytest.mark.parametrize("name", sorted(set(built_in_names()) - {"raw"}))
@pytest.mark.parametrize("blank", [b"", bytes(4096), b"\xff" * 4096, b"\xff" * 511])
def test_e7_a_blank_chip_is_said_to_be_blank(name: str, blank: bytes) -> None:
    for report in (Findings.strict(), Findings.tolerant()):
        with pytest.raises(EmptyImageError):
            built_in_codec(name).decode(blank, report)


@pytest.mark.parametrize("name", sorted(set(built_in_names()) - UNMARKED))
@pytest.mark.parametrize("foreign", [b"\x7fELF\x02\x01\x01" + bytes(range(1, 250)) * 20])
def test_e7_foreign_content_is_said_to_be_foreign(name: str, foreign: bytes) -> None:
    for report in (Findings.strict(), Findings.tolerant()):
        with pytest.raises(ForeignImageError):
            built_in_codec(name).decode(foreign, report)


@given(data=st.binary(max_size=600), name=st.sampled_from(built_in_names()))
def test_any_bytes_are_read_or_refused(data: bytes, name: str) -> None:
    check_bytes(built_in_codec(name), data)


def test_modules_are_in_the_order_of_their_names() -> None:
    assert list(MODULES) == sorted(MODULES)
