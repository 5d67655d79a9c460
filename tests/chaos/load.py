"""What backends do: XADD of good, doubled, cancelled, late, malformed and misdirected commands."""
import json
import time

import redis as redis_py


class Sent:
    """One accepted id and what may become of it."""

    __slots__ = ("cid", "agent", "kind", "rc", "at", "sure", "cancelled")

    def __init__(self, cid, agent, kind, rc):
        self.cid, self.agent, self.kind, self.rc = cid, agent, kind, rc
        self.at, self.sure, self.cancelled = time.time(), False, False


class Load:
    KINDS = (("mark", 62), ("plain", 14), ("echo", 6), ("read", 3), ("short", 6), ("offline", 2),
             ("malformed", 2), ("decommissioned", 1), ("cancelled", 5), ("cancel_unseen", 1))

    def __init__(self, world, rng, tag):
        self.world, self.rng, self.tag, self.n = world, rng, tag, 0
        self.sent, self.errors, self.duplicates = {}, 0, 0
        self.kinds = dict(self.KINDS)
        self.doubled = 0.05
        self.waits_ms = (0, 0, 0, 0, 20, 300)
        self.again = []  # (time, fields): duplicates and cancels to come

    def _xadd(self, fields):
        try:
            self.world.backend.xadd("viw.commands", fields)
            return True
        except redis_py.exceptions.RedisError:
            self.errors += 1
            return False

    def step(self, count):
        errors = self.errors
        for _ in range(count):
            self._one()
            if self.errors > errors:  # Redis is away or full: look after the faults first
                return
        now = time.monotonic()
        due, self.again = ([a for a in self.again if a[0] <= now], [a for a in self.again if a[0] > now])
        for _, fields in due:
            self._xadd(fields)

    def _one(self):
        rng, w = self.rng, self.world
        kind = rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        self.n += 1
        cid = f"{self.tag}-{self.n}"
        host = rng.choice(w.hosts)
        agent = {"plain": lambda: rng.choice(w.plain).agent_id, "offline": lambda: "nobody-here",
                 "decommissioned": lambda: "gone-1"}.get(kind, lambda: host.agent_id)()
        rc = rng.choice((0, 0, 0, 1, 7))
        ms = rng.choice(self.waits_ms) if kind != "short" else 0
        s = Sent(cid, agent, kind, rc)
        fields = {"correlation_id": cid, "agent_id": agent, "command": "mark", "ttl_s": "120",
                  "params": json.dumps({"cid": cid, "rc": rc, "s": str(ms / 1000) if ms else "0"})}
        if kind == "plain":
            fields["params"] = json.dumps({"rc": rc, "ms": ms})
        elif kind == "echo":
            fields.update(command="ECHO", params=json.dumps({"message": cid}))
        elif kind == "read":
            fields.update(command="get_system_health", params="{}")
        elif kind in ("short", "offline"):
            fields["ttl_s"] = str(rng.choice((1, 2, 3)))
        elif kind == "decommissioned":
            fields["ttl_s"] = "3"
        elif kind == "malformed":
            fields.update(rng.choice(({"params": "[1"}, {"params": "[]"}, {"ttl_s": "0"}, {"command": ""},
                                      {"ttl_s": "999999999"}, {"agent_id": "not an id"})))
        elif kind == "cancel_unseen":
            s.cancelled = True
            self._xadd({"correlation_id": cid, "agent_id": agent, "op": "cancel"})
        s.sure = self._xadd(fields)
        self.sent[cid] = s
        if kind == "cancelled":
            s.cancelled = True
            self.again.append((time.monotonic() + rng.random() * 1.5,
                               {"correlation_id": cid, "agent_id": agent, "op": "cancel"}))
        if rng.random() < self.doubled:
            self.duplicates += 1
            for _ in range(rng.choice((1, 2))):
                self.again.append((time.monotonic() + rng.random() * 4, fields))
