"""The published test vectors, read by our reader; and that they can be made again."""

from __future__ import annotations

import base64
import json
import lzma
from typing import TYPE_CHECKING, Any

import pytest

from blobstore import errors as store_errors
from formats import errors as format_errors
from tests.generate.container_vectors import DIRECTORY, SCENARIOS, vector
from tests.support.stores import contents, open_store

if TYPE_CHECKING:
    from pathlib import Path

VECTORS = sorted(DIRECTORY.glob("*.json"))


def load(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return a vector's container and what is expected of it."""
    vector = json.loads(path.read_text())
    return lzma.decompress(base64.b64decode(vector["image"])), vector["expect"]


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_vector_reads_as_expected(path: Path) -> None:
    container, expect = load(path)
    if "error" in expect:
        kind = getattr(store_errors, expect["error"], None) or getattr(
            format_errors, expect["error"]
        )
        with pytest.raises(kind) as caught:
            open_store(container, read_only=True)
        assert type(caught.value) is kind
        return
    store = open_store(container, read_only=True)
    found = {
        name: blob.hex() if isinstance(blob, bytes) else blob
        for name, blob in contents(store).items()
    }
    info = store.info()
    assert found == expect["sections"]
    assert info.generation == expect["generation"]
    assert (info.root.hex() if info.root else None) == expect["root"]
    assert info.clean == expect["clean"]


def test_there_is_one_vector_for_each_scenario() -> None:
    assert {path.stem for path in VECTORS} == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_vector_can_be_made_again(name: str) -> None:
    container, expect = load(DIRECTORY / f"{name}.json")
    again = vector(name)
    assert lzma.decompress(base64.b64decode(again["image"])) == container
    assert again["expect"] == expect
