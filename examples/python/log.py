#!/usr/bin/env python3
"""Appends every event of a space to a file, one JSON object a line, each once.

    python3 log.py SPACE FILE [redis://127.0.0.1:6379]

The file itself says how far it has come: after a restart, also after a kill -9, the program goes on
after its last complete line; a line that was being written then is cut off and fetched again. While
the server is down it tries again. One program a file.

The server keeps events for a while (presence.history-length, presence.history-ttl-ms). If the program
was away for longer, some are lost; it says so on stderr and goes on with what there is.

Needs redis-py (requirements.txt) and a server with the presence module.
"""

import json
import os
import sys
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

BLOCK_MS = 5000  # how long one question waits for an answer
RETRY_SECONDS = 0.2  # how long to leave a server alone that is down or still loading


def connect(url):
    return redis.Redis.from_url(
        url,
        protocol=3,  # maps come as dicts, booleans as booleans
        socket_timeout=BLOCK_MS / 1000 + 5,  # a server that is silent for longer is dead
        retry=Retry(NoBackoff(), 0),  # ask() does that
    )


def ask(client, *words):
    """The reply, however long the server is away."""
    while True:
        try:
            return client.execute_command(*words)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            print(f"log: {error}; trying again", file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)


def open_log(path):
    """The file, cut after its last complete line, and the id in that line."""
    file = open(path, "a+b")
    start = file.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and tail.count(b"\n") < 2:
        size = min(start, 1 << 16)
        start = file.seek(start - size)
        tail = file.read(size) + tail
    end = tail.rfind(b"\n") + 1
    file.truncate(start + end)
    lines = tail[:end].split(b"\n")
    return file, json.loads(lines[-2])["id"] if end else "0-0"


def id_of(event):
    return json.loads(event)["id"]


def number(event_id):
    """Ids in their order."""
    epoch, seq = event_id.split("-")
    return int(epoch), int(seq)


def run(space, path, url):
    client = connect(url)
    file, last = open_log(path)
    while True:
        reply = ask(client, "PRESENCE.EVENTS", space, "AFTER", last, "COUNT", 1000, "BLOCK", BLOCK_MS)
        events = reply[b"events"]
        if reply[b"gap"]:
            print(f"log: some events after {last} are lost", file=sys.stderr, flush=True)
            # Where it cannot tell what the file has already, it sends all that it keeps.
            events = [event for event in events if number(id_of(event)) > number(last)]
            last = reply[b"id"].decode()
        if events:
            file.write(b"".join(event + b"\n" for event in events))
            file.flush()
            last = id_of(events[-1])


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: log.py SPACE FILE [redis://127.0.0.1:6379]")
    try:
        run(sys.argv[1], sys.argv[2], *(sys.argv[3:] or ["redis://127.0.0.1:6379"]))
    except KeyboardInterrupt:
        pass
