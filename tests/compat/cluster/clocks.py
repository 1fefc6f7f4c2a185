"""A clock of the calendar for each server: the machine's, and as far ahead as the suite says.

Namespaces shift other clocks only, so a library is preloaded into the server (`clock.c`).
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import lab

SOURCE = Path(__file__).with_name("clock.c")
BUILD = lab.CACHE / "clock"
SECOND_NS = 1_000_000_000


def build_library() -> Path:
    """Compiles the library, which is named after what went into it."""
    command = ["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += [str(SOURCE), "-ldl"]
    text = SOURCE.read_text(encoding="utf-8")
    digest = hashlib.sha256(repr((command, text)).encode()).hexdigest()[:16]
    library = BUILD / f"clock-{digest}.so"
    if library.exists():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        made = Path(scratch) / "clock.so"
        try:
            done = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise lab.Skipped(f"there is no C compiler: {error}") from error
        if done.returncode != 0:
            raise RuntimeError(f"{SOURCE.name} does not compile:\n{done.stderr}")
        made.rename(library)
    return library


class Clock:
    """One server's."""

    def __init__(self, library: Path, file: Path) -> None:
        self._library = library
        self._file = file
        self.ahead_s = 0
        file.write_bytes(bytes(8))

    @property
    def wrapper(self) -> Sequence[str]:
        """Runs a server by this clock."""
        return ("env", f"LD_PRELOAD={self._library}", f"CLOCK_AHEAD={self._file}")

    def step(self, ahead_s: int) -> None:
        """Jumps to so many seconds ahead of the machine's clock, also if the server runs."""
        with open(self._file, "r+b", buffering=0) as file:
            file.write(struct.pack("=q", ahead_s * SECOND_NS))
        self.ahead_s = ahead_s
