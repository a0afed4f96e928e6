"""A clone has the same TPM or a new one, as it is asked for (C83)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cli import QUICK, fails, succeeds
from tests.vtpm.support import PERMANENT, STARTED, key_of, opened, reads, vtpm_of

if TYPE_CHECKING:
    from pathlib import Path


def endorsement_key(image: Path, scratch: Path) -> bytes:
    """Start the TPM of an image, and return what it makes of its endorsement seed."""
    public = scratch / f"{image.name}.pub"
    with vtpm_of(image, *STARTED) as tpm:
        tpm.tpm2("createek", "-G", "ecc", "-c", scratch / "context", "-u", public)
        assert tpm.end() == 0
    return public.read_bytes()


def cloned(image: Path, name: str, *options: object) -> Path:
    """Clone an image, with the same passphrase."""
    key = key_of(image)
    path = image.with_name(name)
    succeeds("clone", image, path, "--key-file", key, "--new-key-file", key, *QUICK, *options)
    return path


@pytest.mark.interop
def test_c83_a_clone_has_the_same_endorsement_key_only_if_it_is_kept(
    copy: Path, tmp_path: Path
) -> None:
    key = key_of(copy)
    refused = ("clone", copy, tmp_path / "x", "--key-file", key, "--new-key-file", key, *QUICK)
    assert fails(*refused) == 53
    assert not (tmp_path / "x").exists()
    original = endorsement_key(copy, tmp_path)
    kept, fresh, second, dropped = (
        cloned(copy, name, "--tpm", tpm)
        for name, tpm in (("a", "keep"), ("b", "fresh"), ("c", "fresh"), ("d", "drop"))
    )
    reads(kept)
    with opened(fresh, read_only=True) as store, opened(copy, read_only=True) as source:
        assert store.section(PERMANENT).size is None
        assert store.section(PERMANENT).type == source.section(PERMANENT).type
    with opened(dropped, read_only=True) as store:
        assert not len(store)
    keys = [endorsement_key(image, tmp_path) for image in (kept, fresh, second, dropped)]
    assert keys[0] == original
    assert len({original, *keys[1:]}) == 4
