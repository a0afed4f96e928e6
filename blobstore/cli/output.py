"""What commands print and write: files that appear whole, JSON, progress."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import blobstore
from blobstore.errors import DamagedHeadError
from formats.errors import device_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore import Place

#: A progress bar appears only for what takes longer, in seconds.
_PROGRESS_AFTER = 1.0
#: DEL and C1; the others are escaped already.
_CONTROLS: Final = re.compile("[\x7f-\x9f\ud800-\udfff]")


def check_other(file: Place, *others: object) -> None:
    """Refuse to make a file in the place of one that it is made from, ``--force`` or not.

    Args:
        file: To be made.
        others: Places it must not be; whatever is not a place, such as None, is passed over.
    """
    for other in others:
        if isinstance(other, Path | str) and blobstore.is_same_file(file, other):
            raise click.UsageError(f"{file} is what is read, and would be replaced")


def write_output(path: Place, data: bytes | bytearray | memoryview, *, force: bool) -> None:
    """Write a file that appears whole or not at all; or to a pipe or terminal.

    Raises:
        OutputExistsError: It exists, and not ``force``.
        DeviceError: It cannot be written.
    """
    if isinstance(path, Path) and (path.is_fifo() or path.is_char_device()):
        try:
            with path.open("wb", buffering=0) as stream:
                written = 0
                while written < len(data):
                    written += stream.write(memoryview(data)[written:])
        except OSError as error:
            raise device_error(error, f"cannot write {path}") from error
        return
    blobstore.write_file(path, data, overwrite=force)


def write_blob(path: Place | None, data: bytes | bytearray | memoryview, *, force: bool) -> None:
    """Write to stdout if there is no path or it is ``-``, else as `write_output`."""
    if path is None or str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_output(path, data, force=force)


def sections_hidden(image: Place, info: blobstore.StoreInfo) -> DamagedHeadError:
    """Return the error for an image of which not all sections are known (C82)."""
    return DamagedHeadError(
        f"{image} has {len(info.damaged_heads)} damaged heads: sections may be missing",
        offset=info.damaged_heads[0],
        hint="`blobstore verify` says more, and with --repair mends what something proves",
    )


def print_json(value: Any) -> None:
    """Print a value as JSON; bytes become hexadecimal text."""
    click.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False, default=_plain)))


def escaped(text: str) -> str:
    """Return text without what TOML and JSON leave in strings and a terminal must not get.

    It obeys control characters, and what is printed may come from an EEPROM that anyone wrote.
    Lone surrogates stand for bytes that are not UTF-8, and cannot be printed at all.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_table(rows: list[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> None:
    """Print rows in columns as wide as they need; ``right`` ones are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo(escaped("  ".join(cells).rstrip()))


@contextmanager
def progress(label: str, things: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(done, in all)`` that draws a bar on a terminal's stderr.

    The bar has the share done, the time left, and the rate. A signal that ends the program
    meanwhile ends it as Ctrl-C does: what is half written is removed.

    Args:
        label: In front of the bar.
        things: What is counted; None for bytes.
    """
    with _ending_cleanly():
        yield from _progress(label, things)


def _progress(label: str, things: str | None) -> Iterator[Callable[[int, int], None]]:
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    started = time.monotonic()
    bar: Any = None

    def advance(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            if time.monotonic() - started < _PROGRESS_AFTER:
                return
            bar = click.progressbar(
                length=total, label=label, file=sys.stderr, item_show_func=lambda rate: rate or ""
            )
        rate = done / (time.monotonic() - started) / (1 if things else 1 << 20)
        number = f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"
        bar.update(done - bar.pos, f"{number} {things or 'MiB'}/s")

    try:
        yield advance
    finally:
        if bar is not None:
            bar.render_finish()


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, unless they are ignored, unwind the stack meanwhile."""
    import signal  # noqa: PLC0415  only what takes long needs it

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signals = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    changed = [one for one in signals if one and signal.getsignal(one) == signal.SIG_DFL]
    for one in changed:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in changed:
            signal.signal(one, signal.SIG_DFL)


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show on a terminal's stderr that something goes on whose progress is not known."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    shown = False

    def tick() -> None:
        nonlocal shown
        while not done.wait(_PROGRESS_AFTER):
            click.echo("." if shown else f"{label} ...", nl=False, err=True)
            shown = True

    # Key derivations let other threads run meanwhile.
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if shown:
            click.echo(err=True)


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
