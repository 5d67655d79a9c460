"""Reads along what the bridges offer and what ends, as Redis has it: mailbox order and the window of
AGENT_BRIDGE_MAX_IN_FLIGHT are checked against it. A consumer group of its own keeps trimming behind it."""
import threading

import redis as redis_py

GROUP = "chaos"
STREAMS = ("viw.command_events", "viw.command_results")
WINDOW = 4


class Watch:
    """One round's offers and ends. Of a round in which Redis loses data it says nothing."""

    def __init__(self, world):
        self.socket = world.redis.socket
        self.seen = set()  # (ms, is an offer, the id's second part, correlation id, agent)
        self.over = threading.Event()
        db = self.connect()
        for stream in STREAMS:
            try:
                db.xgroup_destroy(stream, GROUP)
            except redis_py.exceptions.ResponseError:  # no such stream yet
                pass
            db.xgroup_create(stream, GROUP, "$", mkstream=True)
        self.thread = threading.Thread(target=self.read_on, daemon=True)
        self.thread.start()

    def connect(self):
        return redis_py.Redis(unix_socket_path=self.socket, decode_responses=True, socket_timeout=2)

    def read_on(self):
        db = self.connect()
        while not self.over.wait(0.1):
            try:
                self.take(db, "0")  # read before, but its answer or its XACK was lost
                while self.take(db, ">"):
                    pass
            except redis_py.exceptions.RedisError:
                db = self.connect()

    def take(self, db, start):
        got = db.xreadgroup(GROUP, "one", {s: start for s in STREAMS}, count=500)
        n = 0
        for stream, entries in got:
            for entry, fields in entries:
                n += 1
                offer = stream == STREAMS[0]
                if fields and (not offer or fields["event"] == "offered"):
                    ms, seq = map(int, entry.split("-"))
                    self.seen.add((ms, offer, seq, fields["correlation_id"], fields["agent_id"]))
            if entries:
                db.xack(stream, GROUP, *[e for e, _ in entries])
        return n

    def stop(self):
        """Reads what is left, then gives the group up."""
        self.over.set()
        self.thread.join(10)
        db = self.connect()
        for start in ("0", ">"):
            while self.take(db, start):
                pass
        for stream in STREAMS:
            db.xgroup_destroy(stream, GROUP)

    def violations(self, load):
        return misplaced(self.seen, load.sent.values())


def misplaced(seen, sent):
    """Offers out of order, twice or beyond the window. Ends of the same millisecond count as earlier than
    offers: the two streams have no common order."""
    number = {s.cid: i for i, s in enumerate(sent) if s.sure}
    last, open_ids, ended, offered = {}, {}, set(), set()
    for _, offer, _, cid, agent in sorted(seen):
        here = open_ids.setdefault(agent, set())
        if not offer:
            ended.add(cid)
            here.discard(cid)
            continue
        if cid in offered:
            yield f"{cid}: offered to {agent} as new a second time"
        offered.add(cid)
        if cid not in ended:
            here.add(cid)
        if len(here) > WINDOW:
            yield f"{agent}: {len(here)} commands are open at once: {sorted(here)}"
        if cid in number:
            if number[cid] < number.get(last.get(agent), -1):
                yield f"{agent}: {cid} offered after {last[agent]}, which was sent later"
            last[agent] = cid
