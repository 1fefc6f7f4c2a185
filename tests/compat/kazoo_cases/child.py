"""A kazoo client in a process of its own, to be paused or killed by the cases of `sessions`.

    python3 child.py HOSTS TIMEOUT_SECONDS EPHEMERAL_PATH

It creates the ephemeral, prints `session ID PASSWORD_HEX`, and then each state with the session id
of that moment, until its standard input ends. If the connection breaks under its requests, its
only line is `lost`.
"""

from __future__ import annotations

import logging
import sys

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss


def main() -> None:
    hosts, timeout_seconds, path = sys.argv[1:]
    logging.basicConfig(level=logging.CRITICAL)
    client = KazooClient(hosts, timeout=float(timeout_seconds))

    def tell(state: str) -> None:
        print(state, client.client_id[0] if client.client_id else 0, flush=True)

    # `start` gives up if the connection is gone again before it looks.
    client.start_async().wait(30)
    try:
        client.create(path, ephemeral=True, makepath=True)
    except ConnectionLoss:
        print("lost", flush=True)
        return
    session, password = client.client_id
    print("session", session, password.hex(), flush=True)
    client.add_listener(tell)
    sys.stdin.read()


main()
