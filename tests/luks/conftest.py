"""Fixtures of the LUKS tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luks.crypto.fast import wide_aes, xts_bulk
from luks.crypto.fast.bulk import Bulk, BulkPath

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["sector by sector", "in bulk", "in bulk by ECB"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Make requests of any size go one way, which is the parameter."""

    def always(path: BulkPath, size: int, _least: int) -> Bulk | None:
        return path._make() if size else None

    def never(_path: BulkPath, _size: int, _least: int) -> Bulk | None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BulkPath, "_for_size", never if "sector" in request.param else always)
        if "ECB" in request.param:
            patch.setattr(xts_bulk, "is_whitened", lambda: False)
        else:
            assert wide_aes.is_whitened()
        yield request.param
