#!/usr/bin/env python3
"""Keeps a session online until it is told to end (Ctrl-C, SIGTERM).

    python3 heartbeat.py SPACE USER SESSION [redis://127.0.0.1:6379]

A heartbeat every third of the lease, so that two may be lost, and not exactly every third: a thousand
clients that were started by one restart should not beat in the same moment. Each carries the
metadata, which makes no event as long as it is the same, and is there again where the server lost the
session. A server that is away is tried again soon: the lease runs on.

PRESENCE_LEASE_MS is the lease (30000). PRESENCE_LINGER_MS (0) is for one that is restarted: where it is
back with the same session in this time, nobody has noticed that it was gone. Needs redis-py and a server with the presence module.
"""

import json
import os
import random
import signal
import sys
import threading

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

LEASE_MS = int(os.environ.get("PRESENCE_LEASE_MS", "30000"))
LINGER_MS = int(os.environ.get("PRESENCE_LINGER_MS", "0"))
RETRY_SECONDS = min(0.5, LEASE_MS / 10_000)  # for a server that is down or still loading
META = json.dumps({"client": "heartbeat.py"})


def main(space, user, session, url="redis://127.0.0.1:6379"):
    client = redis.Redis.from_url(
        url,
        socket_timeout=LEASE_MS / 3000,  # a reply that comes later is no use
        retry=Retry(NoBackoff(), 0),  # that is done below
    )
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())

    said = False
    pause = 0.0
    while not end.wait(pause):
        try:
            came = client.execute_command(
                "PRESENCE.ONLINE", space, user, "SESSION", session, "META", META, "PX", LEASE_MS
            )
            pause = LEASE_MS / 3000 * random.uniform(0.8, 1.0)
            if came or not said:  # 1: the user was not online before this call
                print("online again" if said else "online", flush=True)
                said = True
        except (redis.ConnectionError, redis.TimeoutError) as error:  # CLOSED, WRONGTYPE end it
            print(f"heartbeat: {error}; trying again", file=sys.stderr, flush=True)
            pause = RETRY_SECONDS

    # Who knows that it goes says so: nobody has to wait for the end of the lease.
    client.execute_command(
        "PRESENCE.OFFLINE", space, user, "SESSION", session, "LINGER", LINGER_MS
    )
    print("offline", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: heartbeat.py SPACE USER SESSION [redis://127.0.0.1:6379]")
    main(*sys.argv[1:])
