"""A kazoo client that only wants to read, driven by lines on standard input.

    python3 reader.py HOSTS

It prints `state STATE` whenever that changes, and `answer …` for each line `get PATH` or
`create PATH`, until its input ends.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.protocol.states import KeeperState


def main() -> None:
    (hosts,) = sys.argv[1:]
    logging.basicConfig(level=logging.DEBUG)
    client = KazooClient(hosts, timeout=10, read_only=True, connection_retry={"max_tries": -1})
    last: list[Any] = []

    def tell(_: str) -> None:
        # What `add_listener` is told does not say whether writes are taken.
        state = client.client_state
        if last[-1:] != [state]:
            last.append(state)
            print("state", state, flush=True)

    client.add_listener(tell)
    client.start(timeout=60)
    for line in sys.stdin:
        word, path = line.split()
        try:
            done = client.get(path)[0].decode() if word == "get" else client.create(path)
        except KazooException as error:
            done = type(error).__name__
        print("answer", done, flush=True)
    assert KeeperState.CONNECTED_RO in last


main()
