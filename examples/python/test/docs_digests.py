"""For tests/integration/examples.rs: runs the follower of digests of docs/guides.md and prints who is there.

    python3 docs_digests.py docs SPACE redis://127.0.0.1:6379
"""

import json
import re
import sys

import redis

folder, space, url = sys.argv[1:]
code = {"json": json}
for page in "events", "guides":
    text = open(f"{folder}/{page}.md", encoding="utf-8").read()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, code)

before = None
client = redis.Redis.from_url(url, decode_responses=True)
for members in code["follow_digests"](client, space):
    shown = ["/".join(who) + f" {json.dumps(meta)}" for who, meta in sorted(members.items())]
    if shown != before:
        print(", ".join(shown) or "nobody", flush=True)
    before = shown
