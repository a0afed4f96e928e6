"""Files that appear whole, and whether two names are of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_appears_whole_and_replaces_none_unasked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    blobstore.write_file(file, b"first")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"first", 0o600)
    with pytest.raises(blobstore.OutputExistsError) as caught:
        blobstore.write_file(file, b"second")
    assert str(file) in str(caught.value)
    assert file.read_bytes() == b"first"
    blobstore.write_file(file, memoryview(b"second"), overwrite=True)
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_in_use_and_a_pipe_are_not_replaced(tmp_path: Path) -> None:
    image, pipe = tmp_path / "image", tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        blobstore.create(image, {"a": 10}, encrypted=False),
        pytest.raises(luks.DeviceBusyError),
    ):
        blobstore.write_file(image, b"", overwrite=True)
    with pytest.raises(luks.DeviceError, match="not a regular file"):
        blobstore.write_file(pipe, b"", overwrite=True)
    assert pipe.is_fifo()


def test_one_file_has_many_names(tmp_path: Path) -> None:
    file, link, other = tmp_path / "file", tmp_path / "link", tmp_path / "other"
    link.symlink_to(file)
    assert blobstore.is_same_file(file, link)  # before it is made
    file.touch()
    os.link(file, other)
    assert blobstore.is_same_file(str(file), other)
    assert blobstore.is_same_file(file, tmp_path / ".." / tmp_path.name / "file")
    assert not blobstore.is_same_file(file, tmp_path / "none")
