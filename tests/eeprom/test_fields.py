"""Models to plain data and back, and what is said of what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta

from formats.eeprom.framework.fields import from_plain, to_plain, validate
from formats.eeprom.framework.limits import UInt8
from formats.eeprom.framework.paths import assign
from formats.eeprom.framework.schema import schemas_of
from formats.errors import FieldError


class Colour(IntEnum):
    DARK_RED = 3
    BLUE = 4


class Shape(StrEnum):
    ROUND = "is-round"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSupply:
    """A supply."""

    watts: UInt8


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    record_type: UInt8
    content: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    serial_number: Annotated[str, Meta(max_length=4)]
    mac: Annotated[bytes, Meta(min_length=6, max_length=6)] | None = None
    custom: tuple[Annotated[str, Meta(max_length=3)], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    board: Board
    spare: Board | None = None
    records: tuple[PowerSupply | Raw, ...] = ()
    variables: Mapping[Annotated[str, Meta(max_length=20)], str] = field(default_factory=dict)
    colour: Colour = Colour.BLUE
    shape: Shape | None = None
    either: UInt8 | str | None = None
    on: bool = False
    made: Annotated[datetime, Meta(tz=True)] | None = None
    fill: UInt8 = 255
    tail: bytes = b""


FULL = Everything(
    board=Board(serial_number="A1", mac=bytes.fromhex("020000000001"), custom=("x", "y")),
    records=(PowerSupply(watts=7), Raw(record_type=9, content=b"\x01")),
    variables={"boot-delay": "3"},
    colour=Colour.DARK_RED,
    shape=Shape.ROUND,
    either="text",
    on=True,
    made=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    tail=b"\xab",
)
PLAIN: dict[str, Any] = {
    "board": {"serial-number": "A1", "mac": "020000000001", "custom": ["x", "y"]},
    "records": [
        {"kind": "power-supply", "watts": 7},
        {"kind": "raw", "record-type": 9, "content": "01"},
    ],
    "variables": {"boot-delay": "3"},
    "colour": "dark-red",
    "shape": "is-round",
    "either": "text",
    "on": True,
    "made": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    "tail": "ab",
}


def test_a_model_is_plain_data_and_back() -> None:
    assert to_plain(FULL) == PLAIN
    assert from_plain(PLAIN, Everything) == FULL
    least = Everything(board=Board(serial_number=""))
    assert to_plain(least) == {"board": {"serial-number": ""}}
    assert from_plain(to_plain(least), Everything) == least


@pytest.mark.parametrize(
    "value",
    [
        "0102",
        "01:02",
        "01-02 ",
        {"hex": "01 02"},
        {"base64": "AQI="},
        {"text": "\x01\x02"},
        {"file": "name"},
        b"\x01\x02",
    ],
)
def test_bytes_come_in_several_forms(value: object) -> None:
    plain = {"board": {"serial-number": ""}, "tail": value}
    found = from_plain(plain, Everything, read_file=lambda name: {"name": b"\x01\x02"}[name])
    assert found.tail == b"\x01\x02"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"board": {}}, "board: the field 'serial-number' is missing$"),
        (
            {"board": {"serial-number": "12345"}},
            "board.serial-number: '12345' is not text of at most 4 characters$",
        ),
        ({"board": {"serial-number": "", "mac": "01"}}, "board.mac: has 1 bytes, and exactly 6"),
        (
            {"board": {"serial-number": "", "custom": ["a", 1]}},
            r"board.custom\[1\]: 1 is not text$",
        ),
        ({"records": [{"kind": "raw"}]}, r"records\[0\]: the field 'record-type' is missing"),
        (
            {"records": [{"kind": "wrong"}]},
            r"records\[0\].kind: 'wrong' is not one of power-supply, raw$",
        ),
        ({"records": [{"kind": ["raw"]}]}, r"records\[0\].kind: \['raw'\] is not one of"),
        (
            {"records": [{"watts": 1}]},
            r"records\[0\]: the field 'kind' is missing: power-supply or raw",
        ),
        (
            {"records": [{"kind": "power-supply", "watts": 256}]},
            r"records\[0\].watts: 256 is not a whole number from 0 to 255$",
        ),
        ({"records": {"kind": "raw"}}, r"records: \{'kind': 'raw'\} is not a list$"),
        ({"records": [3]}, r"records\[0\]: 3 is not a table$"),
        ({"variables": {"a": "1", "b": 2}}, r"variables.b: 2 is not text$"),
        (
            {"variables": {"b" * 21: ""}},
            "variables: the name 'b+' in it is not text of at most 20 characters$",
        ),
        (
            {"variables": {"a": "", "b" * 21: "", "c": ""}},
            "variables: the name 'b+' in it is not text of at most 20",
        ),
        ({"variables": {3: ""}}, "variables: the name 3 in it is not text$"),
        ({"variables": {"b": 2}}, r"variables.b: 2 is not text$"),
        ({"colour": "green"}, "colour: 'green' is not one of dark-red, blue$"),
        ({"colour": 3}, "colour: 3 is not one of dark-red, blue$"),
        ({"shape": []}, r"shape: \[\] is not one of is-round$"),
        ({"either": 1.5}, "either: 1.5 is not a whole number from 0 to 255 or text$"),
        ({"either": 256}, "either: 256 is not a whole number from 0 to 255$"),
        ({"board": 3}, "board: 3 is not a table$"),
        ({"spare": []}, r"spare: \[\] is not a table$"),
        ({"serial": "1"}, "there is no field 'serial', only board, spare, records, "),
        ({"board": {"serial-number": "x" * 99}}, r"board.serial-number: 'x+… \(99 characters\) is"),
        ({"tail": "0"}, "tail: is not hexadecimal"),
        ({"tail": {"base64": "%"}}, "tail: is not base64"),
        ({"tail": {"file": "x"}}, "tail: no file can be named here"),
        ({"tail": {"hex": "00", "text": "x"}}, "tail: bytes are text in hexadecimal, or"),
        ({"on": 1}, "on: 1 is not true or false$"),
        ({"fill": True}, "fill: True is not a whole number$"),
        ({"fill": None}, "fill: None is not a whole number$"),
        ({"made": datetime(2026, 1, 1)}, "made: .* is not a date and time with a time zone$"),  # noqa: DTZ001
        ({"made": "today"}, "made: 'today' is not a date and time$"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=f"^{message}") as caught:
        from_plain({"board": {"serial-number": ""}} | change, Everything)
    assert message.startswith(caught.value.path.replace("[", r"\[").replace("]", r"\]"))


def test_a_model_made_in_python_is_checked() -> None:
    validate(FULL)
    wrong = dataclasses.replace(FULL, board=Board(serial_number="12345"))
    with pytest.raises(FieldError, match=r"board\.serial-number"):
        validate(wrong)


def test_texts_are_values_of_their_fields() -> None:
    plain: dict[str, Any] = {}
    for path, text in [
        ("board.serial-number", "0012"),
        ("board.mac", "02:00:00:00:00:01"),
        ("board.custom[0]", "a"),
        ("board.custom.1", "b"),
        ("records[0].kind", "power-supply"),
        ("records[0].watts", "0x1F"),
        ("variables.baud", "115200"),
        ("colour", "dark-red"),
        ("either", "12"),
        ("on", "true"),
        ("made", "2026-01-02T03:04:00Z"),
    ]:
        assign(plain, Everything, path, text)
    assert from_plain(plain, Everything) == Everything(
        board=Board(serial_number="0012", mac=bytes.fromhex("020000000001"), custom=("a", "b")),
        records=(PowerSupply(watts=31),),
        variables={"baud": "115200"},
        colour=Colour.DARK_RED,
        either=12,
        on=True,
        made=FULL.made,
    )


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("board.serial", "x", "no field 'serial', only serial-number, mac, custom"),
        ("board", "x", "not a single value"),
        ("board..x", "x", "is not a path"),
        pytest.param(f"board.custom[{'9' * 5000}]", "x", "there is no item 9", id="digits"),
        ("", "x", "is not a path"),
        ("board.custom[1]", "x", "no item 1: there are 0"),
        ("board.serial-number.x", "x", "nothing for 'x' to be in"),
        ("records[0].watts", "x", "needs a kind first"),
        ("fill", "ten", "'ten' is not a whole number"),
        ("on", "yes", "is true or false"),
    ],
)
def test_paths_that_lead_nowhere_are_named(path: str, text: str, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        assign({"board": {"serial-number": ""}}, Everything, path, text)


def test_the_schema_accepts_what_is_accepted() -> None:
    schemas, definitions = schemas_of({"all": Everything})
    validator = Draft202012Validator({**schemas["all"], "$defs": definitions})
    validator.check_schema(validator.schema)
    plain = PLAIN | {"made": "2026-01-02T03:04:00Z"}
    assert from_plain(plain, Everything) == FULL
    assert validator.is_valid(plain)
    for change in ({"fill": 256}, {"colour": "green"}, {"tail": "0"}, {"unknown": 1}):
        assert not validator.is_valid(plain | change), change
    assert not validator.is_valid(plain | {"records": [{"kind": "wrong"}]})


def test_a_type_that_no_model_can_have_is_an_error() -> None:
    @dataclass(frozen=True)
    class Wrong:
        number: complex

    with pytest.raises(TypeError, match=r"Wrong\.number"):
        validate(Wrong(number=1j))


def test_plain_enumerations_are_by_name() -> None:
    class Plain(Enum):
        FIRST_ONE = object()

    globals()["Plain"] = Plain

    @dataclass(frozen=True)
    class Model:
        plain: Plain

    assert to_plain(Model(Plain.FIRST_ONE)) == {"plain": "first-one"}
