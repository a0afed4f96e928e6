"""Records do what frozen dataclasses do, as far as anybody uses it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from formats.frozen import Frozen, as_dict, field, replace


class Point(Frozen):
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list, compare=False)
    secret: bytes = field(default=b"", repr=False)


class Named(Frozen, kw_only=True):
    name: str
    size: int = 0

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


@dataclasses.dataclass(frozen=True)
class Twin:
    x: int
    y: int = 2
    tags: list[str] = dataclasses.field(default_factory=list, compare=False)
    secret: bytes = dataclasses.field(default=b"", repr=False)


MAKERS: list[Any] = [Point, Twin]


@pytest.mark.parametrize("make", MAKERS)
def test_what_dataclasses_do(make: Any) -> None:
    one = make(1)
    assert (one.x, one.y, one.tags, one.secret) == (1, 2, [], b"")
    assert make(1, 3).y == make(1, y=3).y == make(x=1, y=3).y == 3
    assert one.tags is not make(1).tags
    assert one == make(1, tags=["other"])
    assert one != make(2)
    assert one != (1, 2, [], b"")
    assert hash(one) == hash(make(1, tags=["other"]))
    assert repr(make(1, secret=b"hunter2")) == f"{make.__name__}(x=1, y=2, tags=[])"
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.x = 5
    with pytest.raises(AttributeError):
        del one.x
    for values, named in (((), {}), ((1, 2, [], b"", 5), {}), ((1,), {"z": 1}), ((1,), {"x": 1})):
        with pytest.raises(TypeError):
            make(*values, **named)


def test_replacing_and_listing() -> None:
    one = Point(1, 2, ["a"], b"s")
    assert replace(one, y=5) == Point(1, 5, ["a"], b"s")
    assert one.y == 2
    assert as_dict(one) == {"x": 1, "y": 2, "tags": ["a"], "secret": b"s"}
    with pytest.raises(TypeError):
        replace(one, z=1)


def test_fields_by_name_only_and_checks() -> None:
    assert Named(name="n").size == 0
    wrong: Any = Named
    with pytest.raises(TypeError):
        wrong("n")
    with pytest.raises(ValueError, match="negative"):
        Named(name="n", size=-1)
    with pytest.raises(ValueError, match="negative"):
        replace(Named(name="n"), size=-1)


def test_records_of_different_classes_differ() -> None:
    class Other(Frozen):
        x: int
        y: int = 2
        tags: list[str] = field(default_factory=list, compare=False)
        secret: bytes = b""

    other: object = Other(1)
    assert other != Point(1)
