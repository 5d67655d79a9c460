"""The bridge's Lua files as Redis gets them, run by EVAL."""
import re
from pathlib import Path

DIR = Path(__file__).resolve().parents[2] / "agent-bridge" / "redis"
NAMES = sorted(p.stem for p in DIR.glob("*.lua"))


def text(name):
    """The script with its `-- @include` lines expanded, as cmake/embed.cmake does it."""
    body = (DIR / f"{name}.lua").read_text()
    return re.sub(r"^-- @include (\S+)\n", lambda m: (DIR / m.group(1)).read_text(), body, flags=re.M)


class Lua:
    """lua.offer("a1", …): runs agent-bridge/redis/offer.lua with prefix viw."""

    def __init__(self, client):
        self.client = client
        self.bodies = {}

    def run(self, name, *args):
        body = self.bodies.setdefault(name, text(name))
        return self.client.eval(body, 0, "viw", *args)

    def __getattr__(self, name):
        if name not in NAMES:
            raise AttributeError(name)
        return lambda *args: self.run(name, *args)
