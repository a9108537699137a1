#!/usr/bin/env python3
"""Follows a space: calls online(user) and offline(user) once for each transition.

    python3 follow.py SPACE [redis://127.0.0.1:6379]

It begins with who is there, and then waits for what happens (PRESENCE.EVENTS ... BLOCK). While the
server is down it tries again, and goes on after the event that it saw last: nothing is missed. Where
the server no longer has what came after that event (a gap: too many events meanwhile, the space
deleted, the server back without its data), it reads again who is there, and calls the difference.

Needs redis-py (requirements.txt) and a server with the presence module. Put your work in the place
of online() and offline().
"""

import json
import sys
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

BLOCK_MS = 5000  # how long one question waits for an answer
RETRY_SECONDS = 0.2  # how long to leave a server alone that is down or still loading


def online(user):
    print("online", user, flush=True)


def offline(user):
    print("offline", user, flush=True)


class Follower:
    def __init__(self, space, url):
        self.space = space
        self.users = set()  # who is online, as far as was told
        self.last = None  # the id of the last event that was taken in
        self.client = redis.Redis.from_url(
            url,
            protocol=3,  # maps come as dicts, booleans as booleans
            decode_responses=True,
            socket_timeout=BLOCK_MS / 1000 + 5,  # a server that is silent for longer is dead
            retry=Retry(NoBackoff(), 0),  # ask() does that
        )

    def ask(self, command, *words):
        """The reply, however long the server is away."""
        while True:
            try:
                return self.client.execute_command(command, self.space, *words)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                print(f"follow: {error}; trying again", file=sys.stderr, flush=True)
                time.sleep(RETRY_SECONDS)

    def came(self, user):
        if user not in self.users:
            self.users.add(user)
            online(user)

    def went(self, user):
        if user in self.users:
            self.users.remove(user)
            offline(user)

    def take_snapshot(self):
        """Page by page, for there may be many. What happens meanwhile comes after the first page's id."""
        users, cursor, first = set(), "0", None
        while first is None or cursor != "0":
            page = self.ask("PRESENCE.SPACE", "CURSOR", cursor, "COUNT", 1000)
            first = first or page["id"]
            cursor = page["cursor"]
            users.update(page["members"])
        for user in sorted(self.users - users):
            self.went(user)
        for user in sorted(users - self.users):
            self.came(user)
        self.last = first

    def take(self, event):
        if event["type"] == "join":
            self.came(event["user"])
        elif event["type"] == "leave":
            self.went(event["user"])
        elif event["type"] == "close":  # everybody is gone, without a leave of their own
            for user in sorted(self.users):
                self.went(user)
        self.last = event["id"]

    def run(self):
        self.take_snapshot()
        while True:
            reply = self.ask("PRESENCE.EVENTS", "AFTER", self.last, "COUNT", 1000, "BLOCK", BLOCK_MS)
            if reply["gap"]:
                self.take_snapshot()
                continue
            for text in reply["events"]:
                self.take(json.loads(text))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: follow.py SPACE [redis://127.0.0.1:6379]")
    try:
        Follower(sys.argv[1], *(sys.argv[2:] or ["redis://127.0.0.1:6379"])).run()
    except KeyboardInterrupt:
        pass
