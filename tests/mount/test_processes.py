"""What the system says of processes (M13, M15)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading

from blobstore.mount.processes import SystemProcesses

_SET_NAME = 15


def test_m13_the_process_of_a_thread() -> None:
    found: list[int] = []
    processes = SystemProcesses()

    def look() -> None:
        ctypes.CDLL(None).prctl(_SET_NAME, b") Z 1 (")  # a name that looks like more fields
        found.append(threading.get_native_id())
        found.append(processes.group(found[0]))
        found.append(processes.is_killed(found[0]))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [found[0], os.getpid(), False]
    assert found[0] != os.getpid()


def test_m15_a_process_that_is_not_there_was_not_killed() -> None:
    processes = SystemProcesses()
    with subprocess.Popen(["/bin/true"]) as ended:
        ended.wait()
    for number in (0, ended.pid):
        assert not processes.is_killed(number)
        assert processes.group(number) == number
