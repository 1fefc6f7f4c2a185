"""A server whose log stands still while all else of it goes on: as of a disk that does not answer.

One thread of it is stopped, as a debugger does it. Only the thread that stopped it lets it go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import lab

from .ensemble import Member

ATTACH, DETACH = 16, 17
# Of waitpid: a thread that is nobody's child is waited for too.
WAIT_ALL = 0x40000000
LOG_THREAD = "log"


@contextlib.contextmanager
def log(server: Member) -> Iterator[None]:
    """As long as this lasts, the server writes nothing to its log."""
    assert server.process is not None
    thread = _thread(server.process.pid, LOG_THREAD)
    _trace(ATTACH, thread)
    try:
        os.waitpid(thread, WAIT_ALL)
        yield
    finally:
        _trace(DETACH, thread)


def _thread(process: int, name: str) -> int:
    tasks = list(Path(f"/proc/{process}/task").iterdir())
    names = {int(task.name): (task / "comm").read_text().strip() for task in tasks}
    found = [thread for thread, its in names.items() if its == name]
    assert len(found) == 1, f"no thread {name}, or several: {names}"
    return found[0]


def _trace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, thread, None, None) != 0:
        error = ctypes.get_errno()
        raise lab.Skipped(f"no thread of another process may be stopped: {os.strerror(error)}")
