"""Orders of typed parts: as little is stated as is needed, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.parts.ordering import arrange, stated_order
from formats.errors import FieldError

types = st.lists(st.integers(0, 4), max_size=8).map(sorted)


@given(st.data(), types)
def test_what_is_stated_gives_the_order_back(data: st.DataObject, usual: list[int]) -> None:
    stored = data.draw(st.permutations(usual))
    order = stated_order(stored, usual)
    parts = [(kind, bytes((place,))) for place, kind in enumerate(usual)]
    arranged = arrange(parts, order, range(5))
    assert [kind for kind, _ in arranged] == stored
    assert sorted(arranged, key=lambda part: part[1]) == parts
    # One type less says something else.
    assert not order or [kind for kind, _ in parts] != stored
    if order:
        shorter = [*order[:-1], *_without(usual, list(order[:-1]))]
        assert shorter != stored


@pytest.mark.parametrize(
    ("stored", "order"),
    [
        ([], ()),
        ([1, 2, 3], ()),
        ([2, 1, 3], (2,)),
        ([3, 2, 1], (3, 2)),
        ([1, 3, 2], (1, 3)),
        ([2, 1, 1], (2,)),
        ([1, 2, 1], (1, 2)),
    ],
)
def test_as_little_is_stated_as_is_needed(stored: list[int], order: tuple[int, ...]) -> None:
    assert stated_order(stored, sorted(stored)) == order


@pytest.mark.parametrize(
    ("order", "message"),
    [((1,), "come next"), ((2, 1), "come next"), ((2, 2), "more often"), ((9,), "more often")],
)
def test_an_order_that_reading_would_not_give_is_refused(
    order: tuple[int, ...], message: str
) -> None:
    with pytest.raises(FieldError, match=message):
        arrange([(1, b""), (2, b""), (3, b"")], order, range(10))


def test_unnamed_types_stay_in_their_order() -> None:
    parts = [(1, b"a"), (7, b"b"), (8, b"c")]
    assert [kind for kind, _ in arrange(parts, (7,), (1,))] == [7, 1, 8]
    with pytest.raises(FieldError, match="other"):
        arrange(parts, (8,), (1,))


def _without(usual: list[int], some: list[int]) -> list[int]:
    rest = list(usual)
    for kind in some:
        rest.remove(kind)
    return rest
