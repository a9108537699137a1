"""For tests/integration/examples.rs: runs the worker of docs/events.md and prints each event that it applies.

    python3 docs_worker.py docs/events.md SPACE redis://127.0.0.1:6379

The client has a timeout of 3 s, the default of go-redis (that of redis-py 8 is 5 s), and makes no second attempt that
would hide a timeout.
"""

import re
import sys

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

page, space, url = sys.argv[1:]
code = {}
for block in re.findall(r"```python\n(.*?)```", open(page, encoding="utf-8").read(), re.DOTALL):
    exec(block, code)

apply = code["apply"]


def printed(members, event):
    apply(members, event)
    print(event["type"], event["user"], len(members), flush=True)


code["apply"] = printed
client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=3, retry=Retry(NoBackoff(), 0))
code["work"](client, space)
