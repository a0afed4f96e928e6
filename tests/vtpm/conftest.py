"""An image for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vtpm.support import make_image

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image")
