"""Images out of manifests."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from typing import TYPE_CHECKING, Final, Unpack

from blobstore.errors import ManifestError, NoSpaceError
from blobstore.image.files import write_file
from blobstore.image.layers import qcow2_options
from blobstore.opening import PackKeywords, create_store
from formats.errors import refuse_unknown
from formats.logs import LateLogger
from luks import Argon2, Pbkdf2, SeededSource, benchmark_kdf

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from blobstore.manifests.manifest import Manifest
    from blobstore.manifests.tables import UnitTable
    from blobstore.store.store import Store
    from luks import KdfCost, Secret

_log: Final = LateLogger(__name__)

#: Units of a table that are made at the same time.
_WORKERS: Final = 16

#: Costs of key derivations where nothing is to be measured: what takes a second or two.
_FIXED_COSTS: Final[dict[str, KdfCost]] = {
    "argon2id": Argon2("argon2id", 4, 1 << 20, 4),
    "argon2i": Argon2("argon2i", 4, 1 << 20, 4),
    "pbkdf2": Pbkdf2("sha256", 4_000_000),
}


def pack(
    manifest: Manifest,
    output: str | os.PathLike[str],
    secret: bytes | Secret | None = None,
    *,
    overwrite: bool = False,
    **options: Unpack[PackKeywords],
) -> Store:
    """Make the image that a manifest describes, and open its store.

    It is as large as the worst-case sizes of its sections need, unless the
    manifest says otherwise. With a seed, the same manifest, secret and options make
    the same bytes.

    Args:
        manifest: From `blobstore.load_manifest`.
        output: The image, complete or not there at all.
        secret: Passphrase or content of a key file; None exactly if the
            manifest says ``luks = false``.
        overwrite: Replace what is there.
        options: Those of `blobstore.create` that a manifest leaves open: ``key_size``,
            ``kdf``, ``iter_time``, ``label`` and ``random``.

    Raises:
        ManifestError: The sections do not fit the size that the manifest gives the image.
        ImageExistsError, ForeignImageError, DeviceError, ValueError: As
            `blobstore.create`.
        TypeError: There is no such option.
    """
    refuse_unknown("blobstore.pack", options, PackKeywords.__annotations__)
    _warn_of_seed(manifest)
    return _create(manifest, output, secret, overwrite=overwrite, options=options)


def _create(
    manifest: Manifest,
    output: str | os.PathLike[str],
    secret: bytes | Secret | None,
    *,
    overwrite: bool,
    options: PackKeywords,
) -> Store:
    if manifest.seed is not None:
        options = _seeded(manifest, options)
    try:
        return create_store(
            output,
            manifest.sections,
            secret,
            header=manifest.header,
            encrypted=manifest.encrypted,
            image_format=manifest.image_format,
            own_luks=manifest.own_luks,
            luks_version=manifest.luks_version or 2,
            sector_size=manifest.sector_size,
            qcow2_options=qcow2_options(manifest.cluster_size),
            size=manifest.size,
            free=0,
            block_size=manifest.block_size,
            overwrite=overwrite,
            **options,
        )
    except NoSpaceError as error:
        if manifest.size is None:
            raise
        raise ManifestError(f"{output}: image.size is too small: {error}") from error


def pack_raw(
    manifest: Manifest,
    name: str,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write the content of one section to a file, as a programmer puts it into a chip.

    Args:
        manifest: From `blobstore.load_manifest`; with ``chip`` or ``size`` in the section
            the file is exactly that large.
        name: Of the section.
        output: The file, complete or not there at all.
        overwrite: Replace what is there.

    Raises:
        ManifestError: There is no such section, or it has no content.
        OutputExistsError: The file exists.
        DeviceError: It cannot be written.
    """
    write_file(output, manifest.content(name), overwrite=overwrite)


def pack_table(
    table: UnitTable,
    secret: bytes | Secret | None = None,
    *,
    raw: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[PackKeywords],
) -> int:
    """Make an image, or the binary of one section, for each row of a table.

    A key derivation that is to be measured is measured once, for all of them.

    Args:
        table: The units, and the files they go to.
        secret: For all the images; None if they are in the clear.
        raw: Name of a section: make its bare binary instead of images.
        overwrite: Replace files that are there.
        progress: Called with units done and in all.
        options: As `pack`.

    Returns:
        How many were made.

    Raises:
        ManifestError: A row is wrong; the units before it are made.
        OutputExistsError, ImageExistsError, DeviceError, ValueError: As `pack` and
            `pack_raw`; the units before it are made, and perhaps a few after it.
        TypeError: There is no such option.
    """
    refuse_unknown("blobstore.pack_table", options, PackKeywords.__annotations__)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  only for tables

    total, done = len(table), 0
    # Most of the time goes into making files durable, which may be done side by side;
    # key derivations take memory that there is once.
    workers = _WORKERS if secret is None else 1
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for number, (path, manifest) in enumerate(table.units()):
            if manifest.header is not None and raw is None:
                raise ManifestError(f"image.header: {manifest.header} cannot be of many images")
            if not number and raw is None:
                _warn_of_seed(manifest)
                if secret is not None and manifest.seed is None:
                    _measure_once(options, manifest)
            pending.append(
                pool.submit(_make_unit, path, manifest, secret, raw, options, overwrite=overwrite)
            )
            while len(pending) >= 2 * workers:
                pending.popleft().result()
                done += 1
                if progress:
                    progress(done, total)
        while pending:
            pending.popleft().result()
            done += 1
            if progress:
                progress(done, total)
    return done


def _make_unit(
    path: Path,
    manifest: Manifest,
    secret: bytes | Secret | None,
    raw: str | None,
    options: PackKeywords,
    *,
    overwrite: bool,
) -> None:
    if raw is not None:
        pack_raw(manifest, raw, path, overwrite=overwrite)
    else:
        _create(manifest, path, secret, overwrite=overwrite, options=options).close()


def _seeded(manifest: Manifest, options: PackKeywords) -> PackKeywords:
    """Return options with which everything random comes from the manifest's seed.

    What is derived depends on all that the manifest says, so that two manifests with
    one seed have no key in common.
    """
    assert manifest.seed is not None
    says = [
        [manifest.luks_version, manifest.size, manifest.block_size, manifest.sector_size],
        [manifest.image_format, manifest.own_luks, manifest.cluster_size],
        *([s.name, s.max_size, s.kind.name, s.copies, s.type] for s in manifest.sections),
    ]
    digests = [
        b"" if spec.content is None else hashlib.sha256(spec.content).digest()
        for spec in manifest.sections
    ]
    source = SeededSource(manifest.seed, json.dumps(says).encode(), *digests)
    if not manifest.encrypted:
        return {**options, "random": source}
    kind = options.get("kdf")
    if kind is None or isinstance(kind, str):
        # A measured cost would differ from one time to the next.
        kind = _FIXED_COSTS[kind or _default_kdf(manifest)]
    return {**options, "random": source, "kdf": kind}


def _default_kdf(manifest: Manifest) -> str:
    return "pbkdf2" if manifest.own_luks or manifest.luks_version == 1 else "argon2id"


def _warn_of_seed(manifest: Manifest) -> None:
    if manifest.seed is not None and manifest.encrypted:
        _log.warning("all keys can be derived from the seed: who has it needs no secret")


def _measure_once(options: PackKeywords, manifest: Manifest) -> None:
    """Replace the kind of a key derivation in the options by a cost that was measured."""
    kind = options.get("kdf")
    if kind is None or isinstance(kind, str):
        options["kdf"] = benchmark_kdf(
            kind or _default_kdf(manifest),
            iter_time=options.get("iter_time", 2000),
            key_size=options.get("key_size", 64),
        )
