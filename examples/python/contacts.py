#!/usr/bin/env python3
"""A contact list: who of these is online, and who comes and goes. With asyncio.

    python3 contacts.py SPACE CONTACT [CONTACT ...] redis://127.0.0.1:6379

It subscribes first, and then asks for the contacts' status together with the id of the space's last
event, in one transaction. Events up to that id are in the answer; those after it come on the channel,
numbered without gaps. Where one is missing, the epoch is another one (the server has loaded its data
or was promoted, or the space is another one) or the connection broke, it asks again, and so it does if
nothing comes for a while: for a list of contacts that costs less than reading what happened.

Needs redis-py and a server with the presence module.
"""

import asyncio
import json
import sys

import redis
import redis.asyncio

RETRY_SECONDS = 0.2
QUIET_SECONDS = 60  # ask again if nothing comes for so long: a replica does not publish what it has lost


def position(id):  # "1795354360536-8" -> (1795354360536, 8)
    epoch, seq = id.split("-")
    return int(epoch), int(seq)


class Contacts:
    def __init__(self, space, names, url):
        self.space = space
        self.online = dict.fromkeys(names)  # None: not known yet
        self.last = (0, 0)
        self.client = redis.asyncio.Redis.from_url(url, protocol=3, decode_responses=True)

    def set(self, name, online):
        if self.online.get(name, online) != online:
            self.online[name] = online
            print(name, "online" if online else "offline", flush=True)

    async def ask(self):
        """Status and position of one moment."""
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.execute_command("PRESENCE.STATUS", self.space, *self.online)
            pipe.execute_command("PRESENCE.SPACE", self.space, "COUNT", 1)
            sessions, page = await pipe.execute()
        self.last = position(page["id"])
        for name, count in zip(self.online, sessions):
            self.set(name, count > 0)

    async def take(self, event):
        id = position(event["id"])
        if id[0] == self.last[0] and id <= self.last:
            return
        if id != (self.last[0], self.last[1] + 1):
            return await self.ask()
        self.last = id
        if event["type"] in ("join", "leave"):
            self.set(event["user"], event["type"] == "join")
        elif event["type"] == "close":
            for name in self.online:
                self.set(name, False)

    async def follow(self):
        async with self.client.pubsub() as feed:
            await feed.subscribe("presence:" + self.space)
            while True:
                message = await feed.get_message(timeout=QUIET_SECONDS)
                if message is None or message["type"] == "subscribe":  # also after the library's own reconnect
                    await self.ask()
                elif message["type"] == "message":
                    await self.take(json.loads(message["data"]))

    async def run(self):
        while True:
            try:
                await self.follow()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                print(f"contacts: {error}; trying again", file=sys.stderr, flush=True)
                await asyncio.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: contacts.py SPACE CONTACT [CONTACT ...] redis://127.0.0.1:6379")
    try:
        asyncio.run(Contacts(sys.argv[1], sys.argv[2:-1], sys.argv[-1]).run())
    except KeyboardInterrupt:
        pass
