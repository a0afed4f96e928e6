"""swtpm's options: lists of ``name=value`` and of words, to values (V60).

The command line has them, and so has the configuration of an owner.

What is wrong with one is a `ValueError`: the caller's mistake.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blobstore.vtpm.capture import CaptureOptions
from blobstore.vtpm.commands import Startup
from blobstore.vtpm.profile import ProfileSource
from blobstore.vtpm.sockets import Channel

_OCTAL: Final = re.compile("[0-7]+")
# A value with commas: where swtpm finds an object, it takes all of it.
_INLINE_PROFILE: Final = re.compile(r"(?:^|(?<=,))profile=\{")
_TRUTH: Final = {"": True, "true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Of ``--log``.

    Attributes:
        file: To append to; None is stderr or ``descriptor``.
        descriptor: To write to.
        level: 0 for nothing but errors, 1 for warnings, 2 for what happens, 3 and
            more for every request, from 5 on libtpms's own messages as well.
        prefix: In front of every line.
        truncate: Empty the file first.
        silent: Write nothing.
    """

    file: Path | None = None
    descriptor: int | None = None
    level: int = 1
    prefix: str = ""
    truncate: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Of ``--flags``.

    Attributes:
        needs_init: Whether the TPM waits for the control channel's INIT.
        startup: What it is told when it starts.
        auto_shutdown: Whether it is shut down at the end.
    """

    needs_init: bool = True
    startup: Startup = Startup.NONE
    auto_shutdown: bool = True


def parse_server(text: str) -> Channel:
    """Return the data channel that ``--server`` describes."""
    fields = _fields(text, words={"disconnect"})
    return _channel(fields, default="tcp", connected="fd", listening=None)


def parse_control(text: str) -> Channel:
    """Return the control channel that ``--ctrl`` describes."""
    fields = _fields(text, words={"terminate"})
    return _channel(fields, default=None, connected="clientfd", listening="fd")


def parse_flags(text: str) -> Flags:
    """Return what ``--flags`` says; a startup implies that no INIT is needed."""
    words = _words(text, {"not-need-init", "disable-auto-shutdown", *map(str, Startup)})
    startups = [Startup(word) for word in words if word.startswith("startup-")]
    if len(startups) > 1:
        raise ValueError("a TPM starts up in one way")
    startup = startups[0] if startups else Startup.NONE
    return Flags(
        needs_init="not-need-init" not in words and startup is Startup.NONE,
        startup=startup,
        auto_shutdown="disable-auto-shutdown" not in words,
    )


def parse_locality(text: str) -> set[str]:
    """Return the words of ``--locality``."""
    return _words(text, {"reject-locality-4", "allow-set-locality"})


def parse_migration(text: str) -> set[str]:
    """Return the words of ``--migration``."""
    return _words(text, {"release-lock-outgoing", "incoming"})


def parse_info(text: str) -> int:
    """Return the bits that ``--print-info`` asks for, a number as C has it (V95)."""
    try:
        flags = int(text, 8 if _OCTAL.fullmatch(text) and text.startswith("0") else 0)
    except ValueError:
        flags = -1
    if not 0 <= flags < 1 << 32:
        raise ValueError(f"{text} is not a number of 32 bits")
    return flags


def parse_pid(text: str) -> Path | int:
    """Return the file or descriptor of ``--pid``."""
    fields = _fields(text, words=set())
    return _file_or_descriptor(fields)


def parse_log(text: str) -> LogOptions:
    """Return what ``--log`` says."""
    fields = _fields(text, words={"truncate"})
    level = _number(fields.pop("level", "1"), "level")
    prefix = fields.pop("prefix", "")
    truncate = "truncate" in fields
    fields.pop("truncate", None)
    if not fields:
        return LogOptions(level=level, prefix=prefix)
    place = _file_or_descriptor(fields)
    if isinstance(place, int):
        return LogOptions(descriptor=place, level=level, prefix=prefix)
    if str(place) == "-":
        return LogOptions(silent=True)
    return LogOptions(file=place, level=level, prefix=prefix, truncate=truncate)


def parse_profile(text: str) -> ProfileSource:
    """Return the profile that ``--profile`` names (V100)."""
    json_text = None
    found = _INLINE_PROFILE.search(text)
    if found is not None:
        end = _end_of_map(text, found.end() - 1)
        json_text, text = text[found.end() - 1 : end], text[: found.start()] + text[end:]
    fields = _fields(text.strip(","), words=set()) if text.strip(",") else {}
    if "remove-disabled" in fields:
        raise ValueError("remove-disabled is not implemented: name in profile= what there is")
    places: dict[str, Any] = {
        "name": ProfileSource.named,
        "profile": lambda value: ProfileSource(text=value),
        "file": lambda value: ProfileSource(file=Path(value)),
        "fd": lambda value: ProfileSource(descriptor=_number(value, "fd")),
    }
    if json_text is not None:
        fields["profile"] = json_text
    if len(fields) != 1 or not set(fields) <= set(places):
        raise ValueError("--profile takes one of name, profile, file and fd")
    ((kind, value),) = fields.items()
    made: ProfileSource = places[kind](value)
    return made


def parse_capture(text: str) -> CaptureOptions:
    """Return where ``--pcap`` records to (V104)."""
    fields = _fields(text, words={"truncate", "checksums"})
    truncate, checksums = (fields.pop(word, None) is not None for word in ("truncate", "checksums"))
    mode = parse_mode(fields.pop("mode", "640"))
    place = _file_or_descriptor(fields)
    if isinstance(place, int):
        return CaptureOptions(descriptor=place, truncate=truncate, mode=mode, checksums=checksums)
    return CaptureOptions(file=place, truncate=truncate, mode=mode, checksums=checksums)


def parse_state_place(text: str) -> Path | str:
    """Return the directory or the URI of ``--tpmstate`` (V92).

    What else it says is checked and left out: a mode of files that are not made, a lock
    that is always taken, a backup and a flush that every put is.
    """
    fields = _fields(text, words={"lock", "backup", "fsync"})
    if "mode" in fields:
        parse_mode(fields.pop("mode"))
    for word in ("lock", "backup", "fsync"):
        parse_truth(word, fields.pop(word, ""))
    if set(fields) == {"dir"}:
        return Path(fields["dir"])
    if set(fields) == {"backend-uri"}:
        return fields["backend-uri"]
    raise ValueError("--tpmstate takes dir or backend-uri, and mode, lock, backup, fsync")


def parse_mode(text: str) -> int:
    """Return the mode of a file that octal digits say (V90)."""
    mode = int(text, 8) if _OCTAL.fullmatch(text) else -1
    if not 0 <= mode <= 0o777:
        raise ValueError(f"mode={text} is not a mode of a file in octal digits")
    return mode


def parse_truth(name: str, text: str) -> bool:
    """Return what a word says that may have a value; without one it is true."""
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise ValueError(f"{name}={text} is neither true nor false") from None


def _channel(
    fields: dict[str, str], *, default: str | None, connected: str, listening: str | None
) -> Channel:
    kind = fields.pop("type", default)
    disconnect = fields.pop("disconnect", None) is not None
    terminate = fields.pop("terminate", None) is not None
    roles = {"connected": connected, "listening": listening}
    descriptors = {
        role: _number(fields.pop(name), name)
        for role, name in roles.items()
        if name is not None and name in fields
    }
    if kind == "unixio":
        place: dict[str, str] = {"path": "path"}
        more = {"mode", "uid", "gid"}
    elif kind == "tcp":
        place = {"port": "port"}
        more = {"bindaddr", "ifname"}
    else:
        raise ValueError("a channel is of type unixio or tcp")
    named = [name for name in place if name in fields]
    if len(named) + len(descriptors) != 1:
        raise ValueError(f"a channel of type {kind} needs a {next(iter(place))} or a descriptor")
    unknown = set(fields) - more - set(place)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} does not go with type={kind}")
    if "port" in fields and not 0 < _number(fields["port"], "port") < 1 << 16:
        raise ValueError(f"there is no port {fields['port']}")
    given: dict[str, Any] = {}
    if "mode" in fields:
        given["mode"] = parse_mode(fields["mode"])
    if "bindaddr" in fields:
        given["address"] = fields["bindaddr"]
    return Channel(
        path=Path(fields["path"]) if "path" in fields else None,
        owner=(_owner(fields, "uid"), _owner(fields, "gid")),
        port=int(fields["port"]) if "port" in fields else None,
        interface=fields.get("ifname"),
        listening=descriptors.get("listening"),
        connected=descriptors.get("connected"),
        disconnect=disconnect,
        terminate=terminate,
        **given,
    )


def _fields(text: str, words: set[str]) -> dict[str, str]:
    """Return names with values; those of ``words`` have none."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if name in fields or not (name in words if not separator else value):
            raise ValueError(f"{part!r} is not an option here")
        fields[name] = value
    return fields


def _end_of_map(text: str, start: int) -> int:
    """Return where the JSON object that begins at ``start`` ends; braces in texts count, too."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError("the profile does not end")


def _words(text: str, known: set[str]) -> set[str]:
    words = text.split(",")
    for word in words:
        if word not in known:
            raise ValueError(f"{word!r} is not one of {', '.join(sorted(known))}")
    return set(words)


def _file_or_descriptor(fields: dict[str, str]) -> Path | int:
    if set(fields) == {"file"}:
        return Path(fields["file"])
    if set(fields) == {"fd"}:
        return _number(fields["fd"], "fd")
    raise ValueError("name a file or a descriptor")


def _owner(fields: dict[str, str], name: str) -> int:
    """Return the number of a user or group, which may be named (V90)."""
    text = fields.get(name, "-1")  # which swtpm's users write out, too
    if text == "-1" or text.isdecimal():
        return int(text)
    try:
        if name == "uid":
            import pwd  # noqa: PLC0415  absent on Windows

            return pwd.getpwnam(text).pw_uid
        import grp  # noqa: PLC0415  absent on Windows

        return grp.getgrnam(text).gr_gid
    except KeyError:
        kind = "user" if name == "uid" else "group"
        raise ValueError(f"{name}={text}: there is no such {kind}") from None


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name}={text} is not a number")
    return int(text)
