"""Making an independent store with the same sections: `blobstore clone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack, get_args

from blobstore.container.initialise import SectionSpec
from blobstore.errors import BlobNotFoundError
from blobstore.foreign.states import belongs_to_tpm, is_tpm_state
from blobstore.image.files import is_same_file
from blobstore.image.layers import QCOW2, qcow2_options
from blobstore.opening import CreateKeywords, create_store
from blobstore.store.description import parse_kind
from blobstore.store.store import Store, as_names
from formats.errors import ArgumentError, refuse_unknown
from luks.errors import PolicyError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable

    import luks
    from blobstore.image.info import ImageInfo
    from blobstore.store.description import SectionInfo
    from blobstore.store.protocol import AnyStore

#: What becomes of a TPM in a clone.
Tpm = Literal["keep", "fresh", "drop"]


def clone(
    source: AnyStore,
    destination: str | os.PathLike[str],
    secret: bytes | luks.Secret | None = None,
    *,
    tpm: Tpm | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    **options: Unpack[CreateKeywords],
) -> Store:
    """Make a new image with the sections and blobs of a store, and open it.

    Unlike a copy it is a store of its own: with a new store id, a new key that
    authenticates it, and, if it is encrypted, a new volume key. So neither can be
    taken for the other, and parts of one do not pass for older parts of the other. Older
    copies of blobs are not taken along. A qcow2 image becomes another one, encrypted
    by itself if that one is, without its snapshots.

    What is cloned is there whole, or the clone is not made (C82). The state of a TPM is
    the identity of one machine, so what becomes of it has to be said (C83).

    Args:
        source: Not modified. Its sections are read one at a time; all of them at first, if
            it is a store that another process owns.
        destination: The new image, which appears whole or not at all.
        secret: Passphrase or content of a key file of the new image; None makes
            one in the clear.
        tpm: What becomes of sections with the state of a TPM. ``"keep"``: the clone has
            the same TPM, with the same keys. ``"fresh"``: they are registered and were
            never written, so that an emulator makes a new TPM. ``"drop"``: they are left
            out. None is for stores without any.
        only: Names of the sections that are taken; None for all.
        without: Names of sections that are left out.
        options: Further ones of `blobstore.create`, such as ``size``.

    Raises:
        CorruptBlobError: A blob of the source does not verify.
        DamagedHeadError: Damage may hide sections of the source.
        BlobNotFoundError: A name in ``only`` or ``without`` is not that of a section.
        PolicyError: There is the state of a TPM, and ``tpm`` does not say what becomes
            of it.
        ImageExistsError, ForeignImageError, NoSpaceError, DeviceError,
        ValueError: As `blobstore.create`.
        TypeError: There is no such option.
    """
    refuse_unknown("blobstore.clone", options, CreateKeywords.__annotations__)
    image, header = source.image_info(), options.get("header")
    if image and any(
        written and read and is_same_file(written, read)
        for written in (destination, header)
        for read in (image.path, image.header_path)
    ):
        raise ArgumentError("a clone takes neither the place of the image nor of its header")
    if tpm not in (None, *get_args(Tpm)):
        raise ArgumentError(f"tpm is one of {', '.join(get_args(Tpm))}, not {tpm!r}")

    def make(sections: Iterable[SectionInfo], get: Callable[[str], bytes]) -> Store:
        chosen = _chosen(sections, only, without)
        of_tpm = {section.name for section in chosen if _is_of_tpm(get, section)}
        if of_tpm and tpm is None:
            raise PolicyError(
                f"section {min(of_tpm)!r} holds a TPM: a clone of it is the same TPM, with the "
                "same endorsement key [C83]",
                hint="say what becomes of it: --tpm keep, fresh or drop (in Python, tpm=)",
            )
        if tpm == "drop":
            chosen = [section for section in chosen if section.name not in of_tpm]
        blank = of_tpm if tpm == "fresh" else set()

        def fill(store: Store) -> None:
            for section in chosen:
                if section.size is not None and section.name not in blank:
                    store.put(section.name, get(section.name))

        chosen_options: CreateKeywords = {
            "block_size": source.info().block_size,
            "encrypted": secret is not None,
            **_kind(image, encrypted=secret is not None, detached=header is not None),
            **options,
        }
        specs = [
            SectionSpec(
                section.name,
                section.max_size,
                parse_kind(section.kind),
                section.copies,
                section.type,
            )
            for section in chosen
        ]
        return create_store(destination, specs, secret, fill=fill, **chosen_options)

    if isinstance(source, Store):
        return source.at_one_moment(lambda: make(source.sections(), source.get))
    # Nothing is made before all of it was read: others do not wait meanwhile.
    return make(*source.at_one_moment(lambda: _all_of(source)))


def _all_of(source: AnyStore) -> tuple[tuple[SectionInfo, ...], Callable[[str], bytes]]:
    sections = source.sections()
    blobs = {one.name: source.get(one.name) for one in sections if one.size is not None}
    return sections, blobs.__getitem__


def _chosen(
    sections: Iterable[SectionInfo], only: Collection[str] | None, without: Collection[str]
) -> list[SectionInfo]:
    """Return the sections that are asked for, in order."""
    known = {section.name: section for section in sections}
    wanted, unwanted = as_names(known if only is None else only), as_names(without)
    for name in (*wanted, *unwanted):
        if name not in known:
            raise BlobNotFoundError(f"there is no section {name!r}")
    return [known[name] for name in known if name in wanted and name not in unwanted]


def _is_of_tpm(get: Callable[[str], bytes], section: SectionInfo) -> bool:
    """Say whether a section is a TPM's: by its name or type, or by what it holds."""
    if belongs_to_tpm(section.name, section.type):
        return True
    return section.size is not None and is_tpm_state(get(section.name))


def _kind(image: ImageInfo | None, *, encrypted: bool, detached: bool) -> CreateKeywords:
    """Return what `blobstore.create` is told to make an image of the same kind."""
    if image is None or image.format != QCOW2:
        return {}
    return {
        "image_format": QCOW2,
        "own_luks": image.luks is not None
        and image.luks.place == "beside"
        and encrypted
        and not detached,
        "qcow2_options": qcow2_options(image.cluster_size),
    }
