"""Re-encryption of the owner's image, as resources (O220 to O224)."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

import luks
from blobstore.image.moving import SERVED_ZONE
from blobstore.image.place import place_of
from blobstore.owner import documents, problems, requests
from blobstore.owner.lines import wants_lines
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import (
    DOCUMENT_SIZE,
    JSON,
    LINES,
    Found,
    Method,
    Reply,
    Request,
    Resources,
)
from blobstore.reencryption.decrypting import begin_decryption
from formats.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.owner.owner import Owner
    from formats.devices.device import BlockDevice

    Begin = Callable[[BlockDevice, luks.Place | None, list[luks.Secret]], luks.Reencryption]


#: Bytes of a sector of LUKS2, unless a store has smaller blocks (O207).
_SECTOR_SIZE: Final = 4096


class ReencryptionResources:
    """Answers with the re-encryption of an image. Threads may share it."""

    def __init__(self, owner: Owner) -> None:
        """Answer from ``owner``."""
        self._moving, self._store = owner.reencryption, owner.store
        self._ending = owner.ending

    def resources(self) -> Resources:
        """Return these resources."""
        return {
            "/v1/reencryption": {
                "GET": Method(self._show),
                "POST": Method(self._begin, DOCUMENT_SIZE),
            },
            "/v1/reencryption/stop": {"POST": Method(self._stop)},
        }

    def _show(self, request: Request, _found: Found) -> Reply:
        if request.method == "GET" and wants_lines(request):
            return Reply(200, (LINES,), self._lines())
        return self._reply()

    def _begin(self, request: Request, _found: Found) -> Reply:
        wanted = requests.decode(request.body, requests.NewReencryption)
        if wanted.mode == "resume" and wanted.key_file is None:
            self._moving.carry_on(as_bytes=wanted.as_bytes)
            return self._reply()
        if request.peer is None or request.peer[1] not in (0, os.geteuid()):
            # The key file is read with the owner's rights, wherever the client says.
            message = "only root and the owner's user have it read key files"
            raise RefusedError(403, message, "O222")
        if wanted.key_file is None:
            raise RefusedError(400, "key_file must be the path of a key file", "O222")
        for path in (wanted.key_file, *wanted.other_key_files):
            if not Path(path).is_absolute():
                raise RefusedError(400, f"the path {path!r} is not absolute", "O222")
        if wanted.mode == "encrypt" and wanted.sector_size is None:
            block_size = self._store.session.container.block_size
            wanted.sector_size = min(_SECTOR_SIZE, block_size)
        begin, sector_size = _beginning(wanted)
        layers = self._store.session.layers
        known = None if layers is None else layers.header_path
        header = known if wanted.header is None else place_of(wanted.header)
        if isinstance(header, Path) and not header.is_absolute() and header is not known:
            raise RefusedError(400, f"the path {wanted.header!r} is not absolute", "O221")
        with ExitStack() as stack:
            secret = stack.enter_context(
                luks.Secret.from_file(
                    wanted.key_file, offset=wanted.keyfile_offset, size=wanted.keyfile_size
                )
            )
            others = [
                stack.enter_context(luks.Secret.from_file(path)) for path in wanted.other_key_files
            ]
            self._moving.begin(
                lambda device, place: begin(device, place, [secret, *others]),
                secret,
                mode=wanted.mode,
                header_path=header,
                sector_size=sector_size,
                zone=wanted.hotzone_size or SERVED_ZONE,
                as_bytes=wanted.as_bytes,
                runs=not wanted.begin_only,
            )
        return self._reply()

    def _stop(self, _request: Request, _found: Found) -> Reply:
        self._moving.stop()
        return self._reply()

    def _reply(self) -> Reply:
        return Reply(200, (JSON,), documents.encode(self._document()))

    def _lines(self) -> Iterator[bytes]:
        for _ in self._moving.watch():
            yield documents.encode(self._document()) + b"\n"
            if self._ending.is_set():
                return

    def _document(self) -> documents.Reencryption:
        moving = self._moving
        is_running, error, status = moving.is_running, moving.error, moving.status
        if is_running:
            state = "running"
        elif error is not None:
            state = "failed"
        elif moving.is_finished:
            state = "finished"
        else:
            status = status or moving.on_disk()
            state = "none" if status is None else "stopped"
        told = _told(status) | {"state": state, "error": _problem(error)}
        return msgspec.convert(told, documents.Reencryption)


def _beginning(wanted: requests.NewReencryption) -> tuple[Begin, int | None]:
    """Return what begins what is wanted, and the sector size that it says.

    Raises:
        ArgumentError, PolicyError, UnsupportedError: As `luks.ReencryptionOptions` and
            `luks.FormatOptions`.
    """
    cost = _kdf(wanted)
    moved: dict[str, Any] = {
        "resilience": wanted.resilience,
        "hotzone_size": wanted.hotzone_size or SERVED_ZONE,
        "workers": wanted.workers,
    }
    made: dict[str, Any] = {
        "cipher": wanted.cipher,
        "key_size": wanted.key_size,
        "hash_name": wanted.hash,
    }
    made |= {"sector_size": wanted.sector_size, "kdf": cost, "iter_time": wanted.iter_time}
    if wanted.mode == "encrypt":
        return _encryption(wanted, moved, made), wanted.sector_size
    if wanted.mode == "reencrypt":
        return _reencryption(wanted, moved | made), wanted.sector_size
    if any(value is not None for value in made.values()):
        raise ArgumentError(f"to {wanted.mode} chooses neither cipher, sectors nor keyslots")
    options = luks.ReencryptionOptions(**_said(moved))
    decrypts = wanted.mode == "decrypt"
    function = begin_decryption if decrypts else luks.resume_reencryption

    def begin(
        device: BlockDevice, header: luks.Place | None, secrets: list[luks.Secret]
    ) -> luks.Reencryption:
        return function(device, secrets[0], header=header, options=options)

    return begin, None


def _reencryption(wanted: requests.NewReencryption, said: dict[str, Any]) -> Begin:
    options = luks.ReencryptionOptions(**_said(said), drop_keyslots=wanted.drop_keyslots)

    def begin(
        device: BlockDevice, header: luks.Place | None, secrets: list[luks.Secret]
    ) -> luks.Reencryption:
        first, *others = secrets
        return luks.begin_reencryption(device, first, header=header, others=others, options=options)

    return begin


def _encryption(
    wanted: requests.NewReencryption, moved: dict[str, Any], made: dict[str, Any]
) -> Begin:
    made |= {"label": wanted.label or None}
    moved |= {"data_shift": wanted.data_shift, "grow": wanted.grow}
    options = luks.ReencryptionOptions(**_said(moved))
    format_options = luks.FormatOptions(**_said(made))

    def begin(
        device: BlockDevice, header: luks.Place | None, secrets: list[luks.Secret]
    ) -> luks.Reencryption:
        return luks.begin_encryption(
            device,
            secrets[0],
            header=header,
            format_options=format_options,
            options=options,
        )

    return begin


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _kdf(wanted: requests.NewReencryption) -> luks.KdfCost | str | None:
    """Return the cost of the key derivation, or its kind; None leaves it to `luks`."""
    if wanted.iterations is None:
        return wanted.pbkdf
    if wanted.pbkdf == "pbkdf2":
        return luks.Pbkdf2("sha256", wanted.iterations)
    variant: Any = wanted.pbkdf or "argon2id"
    return luks.Argon2(variant, wanted.iterations, wanted.memory or 1 << 20, wanted.parallel or 4)


def _told(status: luks.ReencryptionStatus | None) -> dict[str, Any]:
    if status is None:
        return {}
    return {
        name: getattr(status, name)
        for name in documents.Reencryption.__struct_fields__
        if name not in ("state", "error")
    }


def _problem(error: Exception | None) -> dict[str, Any] | None:
    if not isinstance(error, StorageError | ValueError):
        return None
    found: dict[str, Any] = msgspec.json.decode(problems.problem_of(error)[1])
    return found
