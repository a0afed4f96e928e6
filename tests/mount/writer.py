"""A program that writes files again and again, and says what it has finished.

    python -S writer.py DIRECTORY METHOD FIRST

Each content is a number, as often as that is long: a mixture of two, or a part of one, shows.
"""

import os
import sys


def content(number: int) -> bytes:
    """Return the content with this number, of one of many sizes."""
    return b"%08d" % number * (1 + number * 7919 % 6000)


def is_whole(found: bytes) -> bool:
    """Say whether it is one of these contents."""
    return bool(found) and found == content(int(found[:8]))


def save(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    half = len(data) // 2
    os.write(descriptor, data[:half])
    os.write(descriptor, data[half:])
    os.close(descriptor)


def synchronise(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, data[:99])
    os.write(descriptor, data[99:])
    os.fsync(descriptor)
    os.close(descriptor)


def replace(path: str, data: bytes) -> None:
    save(f"{path}.tmp", data)
    os.rename(f"{path}.tmp", path)


def recreate(path: str, data: bytes) -> None:
    """Write a section, and let it replace another one."""
    save(f"{path}-new", data)
    os.rename(f"{path}-new", path)


METHODS = {"save": save, "fsync": synchronise, "replace": replace, "recreate": recreate}

if __name__ == "__main__":
    directory, method, first = sys.argv[1:]
    number = int(first)
    while True:
        METHODS[method](f"{directory}/file", content(number))
        print(number, flush=True)
        number += 1
