"""Chapter 03: each atomic step of agent-bridge/redis alone, by EVAL on a real Redis."""
import re
import time

import lua as lua_files
import pytest
import redis as redis_py
from bridges import results
from viwtest import wait_for

NOW = "2026-11-20T12:00:00.000Z"


@pytest.fixture
def db(redis):
    return redis.client


@pytest.fixture
def lua(redis):
    return lua_files.Lua(redis.client)


def now_ms(db):
    s, us = db.time()
    return s * 1000 + us // 1000


def dump(db):
    """Everything in Redis, to see that nothing changed."""
    return {k: db.dump(k) for k in sorted(db.scan_iter("*"))}


class Site:
    """A router lease, a bridge lease and an agent that is connected: what the steps stand on."""

    def __init__(self, db, lua, agent="a1", bridge="b1", conn="c1"):
        self.db, self.lua, self.agent, self.bridge, self.conn = db, lua, agent, bridge, conn
        lua.bridge_lease(bridge, "inst-1", "", 15000)
        token = lua.router_lease(bridge, "", 4000, -1, "")[0]
        self.lease, self.token, self.offers = f"{bridge}|{token}", token, 0
        self.claim()
        db.xgroup_create("viw.commands", "agent-bridge", "0", mkstream=True)

    def claim(self, conn=None, bridge=None):
        self.conn, self.bridge = conn or self.conn, bridge or self.bridge
        word, self.epoch, _, _ = self.lua.claim(self.agent, self.bridge, self.conn, "", 0, "")
        assert word == "claimed"
        self.owner = f"{self.bridge}|{self.epoch}|{self.conn}"

    def entry(self, cid, kind="run", ttl_ms=60000, agent=None, verb="ECHO", params="{}", digest="d", extra=""):
        entry_id = self.db.xadd("viw.commands", {"correlation_id": cid})
        self.lua.router_read(self.lease, ">", 64)
        exp = now_ms(self.db) + ttl_ms
        return [entry_id, kind, cid, agent or self.agent, digest, verb, params, exp, NOW, NOW, "admin",
                "", extra]

    def route(self, *entries, lease=None):
        flat = [v for e in entries for v in e]
        out = self.lua.route(lease or self.lease, self.bridge, NOW, self.offers, *flat)
        if out == "FENCED":
            return out
        self.offers = int(out[0])
        return out[2:]

    def expire(self, count=64):
        """How long until the next deadline, how many ended, and the agents to look at."""
        out = self.lua.expire(self.lease, self.bridge, NOW, self.offers, count)
        self.offers = int(out[2])
        return out[:2] + out[4:]

    def offer(self, journal="", window=4, again=0, owner=None):
        out = self.lua.offer(self.agent, owner or self.owner, journal, window, again, self.bridge, self.conn,
                             self.epoch, NOW, self.offers)
        if out == "FENCED":
            return out
        self.offers = int(out[1])
        names = ("kind", "cid", "verb", "params", "left", "exp", "issued_at", "by", "sig", "age")
        return [dict(zip(names, out[i:i + 10])) for i in range(5, len(out), 10)]

    def answer(self, cid, agent=None, frame='{"type":"RESULT"}'):
        return self.lua.result(agent or self.agent, cid, frame, self.bridge, self.epoch, NOW)[0]

    def marker(self, cid):
        return self.db.hgetall(f"viw.cid.{cid}")

    def open_keys(self):
        return [k for k in (f"viw.mbox.{self.agent}", f"viw.offered.{self.agent}", "viw.deadlines", "viw.waiting")
                if self.db.exists(k)]

    def pending(self):
        return self.db.xpending("viw.commands", "agent-bridge")["pending"]


@pytest.fixture
def site(db, lua):
    return Site(db, lua)


# ---------------------------------------------------------------- claim, reclaim, release, check


def test_claim_epochs_rise_and_the_former_bridge_is_told(db, lua):
    lua.bridge_lease("b1", "i", "", 15000)
    word, first, former, now = lua.claim("a1", "b1", "c1", "n-1", 60000, "")
    assert (word, former) == ("claimed", "") and abs(int(first) - now_ms(db)) < 5000
    assert abs(int(now) - now_ms(db)) < 5000
    word, second, former, _ = lua.claim("a1", "b2", "c2", "n-2", 60000, "")
    assert int(second) > int(first) and former == f"b1|{first}|c1"
    assert db.hget("viw.owner", "a1") == f"b2|{second}|c2"
    assert db.lrange("viw.wake.b1", 0, -1) == [f"s|a1|{second}"]
    db.hset("viw.epoch", "a1", 2**52)  # a clock that once ran ahead never lowers it
    assert int(lua.claim("a1", "b1", "c3", "", 0, "")[1]) == 2**52 + 1


def test_claim_knows_a_nonce_of_another_connection_only(db, lua):
    keep = 60000
    assert lua.claim("a1", "b1", "c1", "n", keep, "")[0] == "claimed"
    assert lua.claim("a1", "b1", "c1", "n", keep, "")[0] == "claimed"  # its answer was lost
    before = dump(db)
    assert lua.claim("a1", "b2", "c2", "n", keep, "") == ["nonce_seen"]
    assert dump(db) == before
    assert lua.claim("a2", "b2", "c3", "n", keep, "")[0] == "claimed"  # another agent's
    assert 50000 < db.pttl("viw.nonce.a1.n") <= 60000


def test_claim_refuses_decommissioned_and_revoked(db, lua):
    db.sadd("viw.decommissioned", "a1")
    db.sadd("viw.revoked", "ab12")
    assert lua.claim("a1", "b1", "c1", "n", 1000, "") == ["decommissioned"]
    assert lua.claim("a2", "b1", "c1", "n", 1000, "ab12") == ["revoked"]
    assert not db.exists("viw.owner") and not db.exists("viw.nonce.a1.n")


def test_reclaim_keeps_the_epoch_and_the_later_connection_wins(db, lua, site):
    db.delete("viw.owner", "viw.epoch")
    assert lua.reclaim("a1", "b1", "c1", site.epoch) == ["kept"]
    assert db.hget("viw.owner", "a1") == site.owner
    later = int(site.epoch) + 5
    assert lua.reclaim("a1", "b2", "c2", later) == ["kept"]
    assert lua.reclaim("a1", "b1", "c1", site.epoch) == ["superseded"]
    assert lua.reclaim("a1", "b3", "c3", later) == ["superseded"]  # a tie keeps who is there
    db.sadd("viw.decommissioned", "a1")
    assert lua.reclaim("a1", "b2", "c2", later) == ["decommissioned"]


def test_release_only_of_what_is_ours(db, lua, site):
    assert lua.release("a1", "b9|1|c9") == 0
    assert db.hexists("viw.owner", "a1")
    assert lua.release("a1", site.owner) == 1
    assert not db.hexists("viw.owner", "a1") and db.hexists("viw.epoch", "a1")


def test_check_names_only_who_needs_something(db, lua):
    owners = {}
    for i in range(6):
        epoch = lua.claim(f"a{i}", "b1", f"c{i}", "", 0, "")[1]
        owners[f"a{i}"] = f"b1|{epoch}|c{i}"
    lua.claim("a1", "b2", "c9", "", 0, "")
    db.hdel("viw.owner", "a2")
    db.sadd("viw.decommissioned", "a3")
    db.sadd("viw.waiting", "a4", "a5")
    args = [v for pair in owners.items() for v in pair]
    assert lua.check(*args) == [1, "superseded", 2, "ownerless", 3, "decommissioned", 4, "waiting", 5, "waiting"]
    assert lua.check() == []


# ---------------------------------------------------------------- leases


def test_bridge_lease_remembers_since_when(db, lua):
    started, other = lua.bridge_lease("b1", "i1", "", 15000)
    assert abs(int(started) - now_ms(db)) < 5000 and other == ""
    assert lua.bridge_lease("b1", "i1", started, 15000) == [started, ""]
    assert db.get("viw.bridge.b1") == f"{started}|i1" and 14000 < db.pttl("viw.bridge.b1") <= 15000
    db.delete("viw.bridge.b1")  # lapsed or lost: the sessions since then are still ours
    assert lua.bridge_lease("b1", "i1", started, 15000) == [started, ""]
    assert lua.bridge_lease("b1", "i2", "", 15000)[1] == f"{started}|i1"


def test_router_lease_is_taken_kept_and_never_kept_once_lapsed(db, lua):
    token, word = lua.router_lease("b1", "", 4000, -1, "")[:2]
    assert word == "taken"
    assert lua.router_lease("b1", token, 4000, 0, "")[:2] == [token, "kept"]
    none, holder, ms = lua.router_lease("b2", "", 4000, -1, "")[:3]
    assert none == "" and holder == f"b1|{token}" and 0 < ms <= 4000
    assert lua.router_lease("b1", "", 4000, 0, "")[0] == ""  # the same name without the token is another process
    db.delete("viw.lease.router")
    fresh, word = lua.router_lease("b1", token, 4000, 0, "")[:2]
    assert word == "taken" and int(fresh) > int(token)
    db.delete("viw.lease.router", "viw.fence.router")  # Redis lost both: tokens rise all the same
    time.sleep(0.002)
    assert int(lua.router_lease("b2", "", 4000, 0, "")[0]) > int(fresh)


def test_router_lease_goes_to_who_remembers_after_redis_was_emptied(db, lua):
    wait_for(lambda: db.info("server")["uptime_in_seconds"] >= 3)  # before that it is taken for a new one
    assert lua.router_lease("b1", "", 4000, -1, "") == ["", "", -1, 0, 0]  # just started: it cannot tell
    assert lua.router_lease("b2", "", 4000, 3, "")[1:] == ["taken", "4000", 3, 1] and db.exists("viw.doubt")
    db.delete("viw.lease.router")
    assert lua.router_lease("b1", "", 4000, 0, "")[1] == "taken"  # a second later
    db.flushall()
    assert lua.router_lease("b1", "", 4000, 0, "")[1] == "taken"  # it was here before the emptying


def test_router_yield_gives_back_only_its_own(db, lua, site):
    assert lua.router_yield("b1|1") == 0 and db.exists("viw.lease.router")
    assert lua.router_yield(site.lease) == 1 and not db.exists("viw.lease.router")


# ---------------------------------------------------------------- read, route


def test_router_read_is_fenced_and_reads_pending_again(db, lua, site):
    ids = [db.xadd("viw.commands", {"n": i}) for i in range(3)]
    assert lua.router_read("b1|1", ">", 64) == "FENCED"
    last, entries = lua.router_read(site.lease, ">", 2)
    assert [e[0] for e in entries] == ids[:2] and last == ids[1]
    assert [e[0] for e in lua.router_read(site.lease, "0", 64)[1]] == ids[:2]
    assert [e[0] for e in lua.router_read(site.lease, ">", 64)[1]] == ids[2:]
    assert lua.router_read(site.lease, ">", 64) == [ids[2], []]


def test_router_read_cuts_what_is_longer_than_any_field_may_be(db, lua, site):
    """And changes nothing else: what means something is there, the first of each name."""
    plain = {"correlation_id": "x1", "agent_id": "a1", "params": "p" * 65536, "note": "n" * 100}
    db.xadd("viw.commands", plain)
    db.xadd("viw.commands", {**plain, "params": "p" * 1_000_000, "note": "n" * 1_000_000, "m" * 1_000_000: "1"})
    many = [word for i in range(100) for word in (f"junk-{i}", "j" * 1000)]
    db.execute_command("XADD", "viw.commands", "*", *many, "correlation_id", "x3", "op", "run", "op", "cancel", "agent_id", "a1")
    entries = [dict(zip(e[1][::2], e[1][1::2])) for e in lua.router_read(site.lease, ">", 64)[1]]
    assert entries == [plain, {"correlation_id": "x1", "agent_id": "a1", "params": "p" * 70000},
                       {"correlation_id": "x3", "op": "run", "agent_id": "a1"}]
    db.xdel("viw.commands", db.xrange("viw.commands")[0][0])
    first = lua.router_read(site.lease, "0", 64)[1][0]  # deleted before it was routed
    assert not first[1]
    kept = re.search(r"local KEPT = \{(.*?)\}", lua_files.text("router_read"), re.S)[1]
    read = re.findall(r'stream_field\(e, "(\w+)"\)', (lua_files.DIR.parent / "command.c").read_text())
    assert set(re.findall(r"(\w+) =", kept)) == set(read)  # a field that is read has its place there


def test_router_read_takes_over_what_other_consumers_left(db, lua, site):
    ids = [db.xadd("viw.commands", {"n": i}) for i in range(5)]
    db.xreadgroup("agent-bridge", "gone", {"viw.commands": ">"}, count=2)
    lua.router_read(site.lease, ">", 1)
    db.xreadgroup("agent-bridge", "person", {"viw.commands": ">"}, count=1)
    assert [e[0] for e in lua.router_read(site.lease, ">", 64)[1]] == ids[4:]  # new ones: nothing is claimed
    assert lua.router_read("b1|1", "0", 64) == "FENCED"
    assert [e[0] for e in lua.router_read(site.lease, "0", 64)[1]] == ids
    assert [(c["name"], c["pending"]) for c in db.xpending("viw.commands", "agent-bridge")["consumers"]] == [("router", 5)]


def test_router_read_says_nogroup(db, lua, site):
    db.delete("viw.commands")
    with pytest.raises(redis_py.exceptions.ResponseError, match="^NOGROUP"):
        lua.router_read(site.lease, ">", 64)


def test_route_puts_into_the_mailbox_in_order_and_acknowledges(db, lua, site):
    entries = [site.entry("x1", params='{"a":1}'), site.entry("x2"), site.entry("x3", agent="a2")]
    assert site.route(*entries) == ["queued", "b1", "queued", "b1", "queued", ""]
    assert [f["cid"] for _, f in db.xrange("viw.mbox.a1")] == ["x1", "x2"]
    marker = site.marker("x1")
    assert marker["state"] == "queued" and marker["agent"] == "a1" and marker["entry"] == db.xrange("viw.mbox.a1")[0][0]
    assert db.ttl("viw.cid.x1") == -1  # unfinished: never forgotten
    assert db.smembers("viw.waiting") == {"a1", "a2"} and db.zcard("viw.deadlines") == 3
    assert site.pending() == 0 and results_of(db) == []


def results_of(db, cid=None):
    class R:
        client = db
    return results(R, cid)


def test_route_repeated_changes_nothing(db, lua, site):
    entries = [site.entry("x1"), site.entry("x2", ttl_ms=-1), site.entry("x3", kind="cancel")]
    site.route(*entries)
    before = dump(db)
    assert site.route(*entries)[::2] == ["duplicate", "duplicate", "finished"]
    assert dump(db) == before


def test_route_is_fenced(db, lua, site):
    entry = site.entry("x1")
    before = dump(db)
    assert site.route(entry, lease="b1|17") == "FENCED"
    assert dump(db) == before
    db.delete("viw.lease.router")
    assert site.route(entry) == "FENCED"


def test_route_same_id_twice_is_one_command(db, lua, site):
    assert site.route(site.entry("x1"), site.entry("x1", params='{"other":1}', digest="e"))[::2] == ["queued", "duplicate"]
    assert db.xlen("viw.mbox.a1") == 1 and site.pending() == 0


def test_route_expired_rejected_decommissioned_end_with_a_result(db, lua, site):
    db.sadd("viw.decommissioned", "gone")
    words = site.route(site.entry("x1", ttl_ms=-1), site.entry("x2", kind="reject", verb="bad_ttl", extra="why not"),
                       site.entry("x3", agent="gone"))[::2]
    assert words == ["expired", "rejected", "rejected"]
    rows = {r["correlation_id"]: r for r in results_of(db)}
    assert (rows["x1"]["state"], rows["x1"]["frame"]["status"]) == ("expired", "expired")
    assert (rows["x2"]["state"], rows["x2"]["frame"]["status"]) == ("rejected", "error")
    assert rows["x2"]["frame"]["error"] == {"code": "bad_ttl", "msg": "why not"}
    assert rows["x3"]["error_code"] == "decommissioned" and rows["x3"]["source"] == "bridge"
    assert rows["x1"]["command"] == "ECHO" and rows["x1"]["issued_by_admin_id"] == "admin"
    for cid in rows:
        assert site.marker(cid)["state"] == "done" and 7 * 86400 < db.ttl(f"viw.cid.{cid}") <= 8 * 86400
    assert site.open_keys() == [] and site.pending() == 0


def test_route_a_reject_never_ends_a_known_command(db, lua, site):
    site.route(site.entry("x1"))
    assert site.route(site.entry("x1", kind="reject", verb="bad_ttl", extra="no"))[0] == "duplicate"
    assert results_of(db) == [] and site.marker("x1")["state"] == "queued"


def test_route_drop_only_acknowledges(db, lua, site):
    assert site.route(site.entry("", kind="drop", agent="?"))[0] == "dropped"
    assert site.pending() == 0 and results_of(db) == []


def test_route_cancel_before_run_leaves_a_tombstone(db, lua, site):
    assert site.route(site.entry("x1", kind="cancel"))[0] == "tombstone"
    assert site.marker("x1")["state"] == "tombstone" and db.ttl("viw.cid.x1") > 7 * 86400
    assert site.route(site.entry("x1"))[0] == "cancelled"
    assert [r["state"] for r in results_of(db, "x1")] == ["cancelled"]
    assert site.open_keys() == []


def test_route_cancel_that_named_another_agent_ends_it_too(db, lua, site):
    """Behind its tombstone the command stayed open, and was queued again every half minute, for eight days."""
    assert site.route(site.entry("x1", kind="cancel", agent="a9"))[0] == "tombstone"
    assert site.route(site.entry("x1"))[0] == "cancelled"
    assert [(r["state"], r["agent_id"]) for r in results_of(db, "x1")] == [("cancelled", "a1")]
    assert site.marker("x1")["agent"] == "a1"
    assert site.route(site.entry("x2", kind="cancel", agent="a9"), site.entry("x2", extra="1"))[::2] == ["tombstone", "asked"]
    assert [(o["kind"], o["cid"]) for o in site.offer()] == [("cancel", "x2")]
    assert site.answer("x2") == "stored" and site.open_keys() == []


def test_route_a_malformed_one_ends_behind_a_tombstone(db, lua, site):
    """But not while Redis may have forgotten that the same id ran before; it is queued again later."""
    assert site.route(site.entry("x1", kind="cancel"), site.entry("x2", kind="cancel"))[::2] == ["tombstone"] * 2
    assert site.route(site.entry("x1", kind="reject", verb="bad_ttl", extra="no"))[0] == "rejected"
    assert [r["state"] for r in results_of(db, "x1")] == ["rejected"] and site.marker("x1")["state"] == "done"
    db.set("viw.doubt", now_ms(db) + 60000)
    assert site.route(site.entry("x2", kind="reject", verb="bad_ttl", extra="no"))[0] == "duplicate"
    db.delete("viw.doubt")
    assert site.route(site.entry("x2", kind="reject", verb="bad_ttl", extra="no"))[0] == "rejected"
    assert site.open_keys() == []


def test_route_cancel_of_a_queued_one_ends_it_and_of_an_offered_one_asks(db, lua, site):
    site.route(site.entry("x1"), site.entry("x2"))
    assert [o["cid"] for o in site.offer(window=1)] == ["x1"]
    assert site.route(site.entry("x1", kind="cancel"), site.entry("x2", kind="cancel")) == ["asked", "b1", "cancelled", ""]
    assert [r["correlation_id"] for r in results_of(db)] == ["x2"]
    assert [(o["kind"], o["cid"]) for o in site.offer()] == [("cancel", "x1")]
    assert site.answer("x1") == "stored"
    assert site.route(site.entry("x1", kind="cancel"))[0] == "finished"
    assert site.route(site.entry("x1", kind="cancel", agent="a9"))[0] == "mismatch"
    assert site.open_keys() == []


def test_route_requeued_is_never_ended_by_the_bridge(db, lua, site):
    assert site.route(site.entry("x1", ttl_ms=-5000, extra="1"), site.entry("x2", extra="1"))[::2] == ["queued", "queued"]
    assert results_of(db) == []
    assert [(o["kind"], o["cid"]) for o in site.offer()] == [("cancel", "x1"), ("command", "x2")]
    assert site.expire()[1] == 0 and results_of(db) == []
    assert site.answer("x1") == "stored" and site.answer("x2") == "stored"
    assert site.open_keys() == []


@pytest.mark.parametrize("kind", ["run", "cancel"])
def test_route_requeued_behind_a_tombstone_asks_the_agent(db, lua, site, kind):
    """Redis lost the command, then its cancel came and found nothing: it may have run all the same."""
    assert site.route(site.entry("x1", kind="cancel"))[0] == "tombstone"
    assert site.route(site.entry("x1", kind=kind, extra="1"))[0] == "asked"
    assert results_of(db) == [] and db.ttl("viw.cid.x1") == -1
    assert [(o["kind"], o["cid"]) for o in site.offer()] == [("cancel", "x1")]
    assert site.answer("x1") == "stored" and site.open_keys() == []


def test_route_cancel_of_what_redis_lost_asks_the_agent(db, lua, site):
    assert site.route(site.entry("x1", kind="cancel", extra="1"))[0] == "asked"
    assert [(o["kind"], o["cid"]) for o in site.offer()] == [("cancel", "x1")]
    assert site.answer("x1") == "stored" and site.open_keys() == []


def test_route_lost_then_cancelled_then_requeued_asks_the_agent(db, lua, site):
    """Redis lost an id that may have run; a cancel came first, then its requeue: never a mere `cancelled`."""
    assert site.route(site.entry("x1", kind="cancel"))[0] == "tombstone"
    assert site.route(site.entry("x1", extra="1"))[0] == "asked"
    assert results_of(db) == [] and db.ttl("viw.cid.x1") == -1
    assert [(o["kind"], o["cid"]) for o in site.offer()] == [("cancel", "x1")]
    assert site.answer("x1") == "stored" and site.open_keys() == []


def test_route_hints_another_bridge_once_a_batch(db, lua, site):
    lua.bridge_lease("b2", "i2", "", 15000)
    site.claim(conn="c2", bridge="b2")
    site.bridge = "b1"
    assert site.route(site.entry("x1"), site.entry("x2"))[1::2] == ["b2", "b2"]
    assert db.lrange("viw.wake.b2", 0, -1) == ["o|a1"]
    db.delete("viw.bridge.b2", "viw.wake.b2")  # dead: nobody reads hints
    assert site.route(site.entry("x3"))[1] == ""
    assert not db.exists("viw.wake.b2")


def test_hints_are_capped(db, lua, site):
    lua.bridge_lease("b2", "i2", "", 15000)
    site.claim(conn="c2", bridge="b2")
    site.bridge = "b1"
    db.rpush("viw.wake.b2", *["o|x"] * 10000)
    site.route(site.entry("x1"))
    assert db.llen("viw.wake.b2") == 10000 and db.lindex("viw.wake.b2", -1) == "o|a1"


# ---------------------------------------------------------------- offer


def test_offer_keeps_order_and_window(db, lua, site):
    site.route(*[site.entry(f"x{i}") for i in range(5)])
    assert [o["cid"] for o in site.offer(window=2)] == ["x0", "x1"]
    assert site.offer(window=2) == []  # both unanswered
    site.answer("x0")
    assert [o["cid"] for o in site.offer(window=2)] == ["x2"]
    assert [o["cid"] for o in site.offer(window=2, again=1)] == ["x1", "x2"]
    assert site.marker("x1")["state"] == "offered" and site.marker("x4")["state"] == "queued"
    events = [(f["correlation_id"], f["event"], f["conn_id"]) for _, f in db.xrange("viw.command_events")]
    assert events == [("x0", "offered", "c1"), ("x1", "offered", "c1"), ("x2", "offered", "c1")]


def test_offer_is_fenced_by_the_epoch(db, lua, site):
    site.route(site.entry("x1"))
    old = site.owner
    site.claim(conn="c2")
    before = dump(db)
    assert site.offer(owner=old) == "FENCED"
    db.hdel("viw.owner", "a1")
    assert site.offer() == "FENCED"
    db.hset("viw.owner", "a1", site.owner)
    assert dump(db) == before
    assert [o["cid"] for o in site.offer()] == ["x1"]


def test_offer_never_to_another_journal(db, lua, site):
    site.route(site.entry("x1"), site.entry("x2"))
    assert [o["cid"] for o in site.offer("J1", window=1)] == ["x1"]
    assert [o["cid"] for o in site.offer("J2", again=1)] == ["x2"]
    row = results_of(db, "x1")[0]
    assert row["state"] == "unknown" and row["error_code"] == "journal_changed"
    assert db.hgetall("viw.offered.a1") == {"x2": "J2"}
    # The true answer may still come, once, as evidence.
    assert site.answer("x1") == "stored" and site.answer("x1") == "finished"
    assert [r["source"] for r in results_of(db, "x1")] == ["bridge", "agent"]


def test_offer_under_no_journal_binds_to_the_first_one_and_is_held_without(db, lua, site):
    site.route(site.entry("x1"))
    assert [o["cid"] for o in site.offer("")] == ["x1"]
    assert [o["cid"] for o in site.offer("J1", again=1)] == ["x1"]
    assert db.hgetall("viw.offered.a1") == {"x1": "J1"}
    assert site.offer("", again=1) == []  # who has lost its helper is not asked to run it
    assert results_of(db) == []
    assert [o["cid"] for o in site.offer("J1", again=1)] == ["x1"]


def test_offer_past_its_time_is_never_a_command(db, lua, site):
    site.route(site.entry("x1", ttl_ms=400), site.entry("x2", ttl_ms=400), site.entry("x3"))
    assert [o["cid"] for o in site.offer("J", window=1)] == ["x1"]
    wait_for(lambda: now_ms(db) > int(site.marker("x2")["exp"]), 3)
    offers = site.offer("J", again=1)
    assert [(o["kind"], o["cid"]) for o in offers] == [("cancel", "x1"), ("command", "x3")]
    assert offers[0]["left"] == "0" and 0 < int(offers[1]["left"]) <= 60000
    assert [(r["correlation_id"], r["state"]) for r in results_of(db)] == [("x2", "expired")]


def test_offer_looks_behind_entries_it_ends(db, lua, site):
    site.route(*[site.entry(f"x{i}", ttl_ms=300) for i in range(9)], site.entry("y"))
    wait_for(lambda: now_ms(db) > int(site.marker("x8")["exp"]), 3)
    assert [o["cid"] for o in site.offer(window=2)] == ["y"]
    assert len(results_of(db)) == 9


# ---------------------------------------------------------------- doubt: Redis has forgotten offers


def test_offer_ends_no_more_than_some_at_a_time(db, lua, site):
    """A mailbox full of what is past its time holds up nobody else in Redis."""
    for first in range(0, 200, 50):
        site.route(*(site.entry(f"x{i}", ttl_ms=2000) for i in range(first, first + 50)))
    site.route(site.entry("live"))
    wait_for(lambda: now_ms(db) > int(site.marker("x199")["exp"]), 5)

    def offer():
        out = lua.offer("a1", site.owner, "J", 4, 1, "b1", "c1", site.epoch, NOW, site.offers)
        return out[0], out[4], [out[i + 1] for i in range(5, len(out), 10)]
    assert [offer() for _ in range(3)] == [(137, 1, []), (73, 1, []), (9, 1, [])]
    assert offer() == (1, 0, ["live"]) and len(results_of(db)) == 200


def test_offers_are_counted_and_a_count_that_fell_is_a_loss(db, lua, site):
    site.route(*[site.entry(f"x{i}") for i in range(3)])
    site.offer(window=2)
    site.offer(window=2, again=1)  # offering again is no new offer
    assert db.hgetall("viw.offers") == {"b1": "2"} and site.offers == 2
    # A bridge that has just started learns the number; so does one whose last answer got lost.
    assert lua.router_lease("b1", site.token, 4000, -1, "")[3:] == [2, 0]
    assert lua.router_lease("b1", site.token, 4000, 1, "")[3:] == [2, 0]
    assert lua.router_lease("b2", "", 4000, -1, "")[3:] == [0, 0] and not db.exists("viw.doubt")
    assert lua.router_lease("b1", site.token, 4000, 7, "")[3:] == [7, 1]
    assert 290_000 < int(db.get("viw.doubt")) - now_ms(db) <= 300_000 and db.ttl("viw.doubt") > 7 * 86400
    assert lua.router_lease("b1", site.token, 4000, 7, "")[3:] == [7, 0]  # noticed once


def lose_offers(db, lua, site):
    """What the bridge finds after its Redis has come back without the last offer."""
    db.hset("viw.offers", "b1", 3)
    assert lua.router_lease("b1", site.token, 4000, 4, "")[4] == 1


def test_doubt_cancelled_then_sent_again_asks_the_agent(db, lua, site):
    lose_offers(db, lua, site)
    assert site.route(site.entry("x1", kind="cancel"), site.entry("x1"))[::2] == ["tombstone", "asked"]
    assert results_of(db) == []
    assert [(o["kind"], o["cid"]) for o in site.offer("J")] == [("cancel", "x1")]
    assert site.answer("x1") == "stored" and site.open_keys() == []


def test_doubt_cancel_of_a_queued_one_asks_the_agent(db, lua, site):
    site.route(site.entry("x1"))  # before the loss: its offer may be what was forgotten
    lose_offers(db, lua, site)
    site.route(site.entry("x2"))
    assert site.route(site.entry("x1", kind="cancel"), site.entry("x2", kind="cancel"))[::2] == ["asked", "asked"]
    assert results_of(db) == []
    assert [(o["kind"], o["cid"]) for o in site.offer("J")] == [("cancel", "x1"), ("cancel", "x2")]
    assert site.answer("x1") == site.answer("x2") == "stored" and site.open_keys() == []


def test_doubt_nothing_expires_without_its_agent(db, lua, site):
    site.route(site.entry("x1", ttl_ms=200))
    lose_offers(db, lua, site)
    assert site.route(site.entry("x2", ttl_ms=200), site.entry("x3", ttl_ms=-1))[::2] == ["queued", "queued"]
    wait_for(lambda: now_ms(db) > int(site.marker("x2")["exp"]), 3)
    assert site.expire()[1:] == [0, "a1", "a1", "a1"] and results_of(db) == []
    assert [(o["kind"], o["cid"], o["left"]) for o in site.offer("J")] == [("cancel", f"x{i}", "0") for i in (1, 2, 3)]
    assert [site.answer(f"x{i}") for i in (1, 2, 3)] == ["stored"] * 3 and site.open_keys() == []


def test_hold_after_redis_was_away_defers_what_ends_without_an_agent(db, lua, site):
    site.route(site.entry("x1"), site.entry("x2", ttl_ms=300))
    assert lua.router_lease("b1", site.token, 4000, 0, "1")[3:] == [0, 0] and 2500 < db.pttl("viw.hold") <= 3000
    words = site.route(site.entry("x1", kind="cancel"), site.entry("x3", kind="cancel"), site.entry("x3"),
                       site.entry("x4", ttl_ms=-1))[::2]
    assert words == ["asked", "tombstone", "asked", "queued"]
    wait_for(lambda: now_ms(db) > int(site.marker("x2")["exp"]), 2)
    wait, ended = site.expire()[:2]
    assert 0 < wait <= 3000 and ended == 0 and results_of(db) == []
    # Nothing was lost, nobody asked: now they end by themselves.
    db.delete("viw.hold")
    assert site.expire()[1] == 4
    assert {r["correlation_id"]: r["state"] for r in results_of(db)} == {
        "x1": "cancelled", "x2": "expired", "x3": "cancelled", "x4": "expired"}
    assert site.open_keys() == []


def test_hold_asks_an_agent_that_is_there(db, lua, site):
    lua.router_lease("b1", site.token, 4000, 0, "1")
    site.route(site.entry("x1", kind="cancel"), site.entry("x1"), site.entry("x2", ttl_ms=-1))
    assert [(o["kind"], o["cid"]) for o in site.offer("J")] == [("cancel", "x1"), ("cancel", "x2")]
    db.delete("viw.hold")
    assert site.expire()[1:] == [0, "a1", "a1"] and results_of(db) == []
    assert site.answer("x1") == site.answer("x2") == "stored" and site.open_keys() == []


def test_after_a_loss_the_ledger_is_asked_before_the_first_offer(db, lua, site):
    site.route(site.entry("x1"), site.entry("x2"))
    assert [o["cid"] for o in site.offer("J", window=1)] == ["x1"]
    lose_offers(db, lua, site)
    site.route(site.entry("x3"))

    def asked():
        return [f["correlation_id"] for _, f in db.xrange("viw.command_events") if f["event"] == "offering"]

    def offer():
        out = lua.offer("a1", site.owner, "J", 4, 0, "b1", "c1", site.epoch, NOW, 4)
        return out[3], [out[i + 1] for i in range(5, len(out), 10)]
    assert offer() == (1, []) and asked() == ["x2", "x3"]
    assert offer() == (1, []) and asked() == ["x2", "x3"]  # once
    db.xgroup_create("viw.command_events", "results-writer", "0")
    assert offer() == (1, [])  # not read
    first, second = [entry for entry, f in db.xreadgroup("results-writer", "w", {"viw.command_events": ">"})[0][1]
                     if f["event"] == "offering"]
    assert offer() == (1, [])  # read, not acknowledged
    db.xack("viw.command_events", "results-writer", second)
    assert offer() == (1, [])  # x3 does not overtake
    db.xack("viw.command_events", "results-writer", first)
    assert offer() == (0, ["x2", "x3"]) and offer() == (0, [])
    # An answer of before a later loss is none.
    site.route(site.entry("x4"))
    assert offer() == (1, []) and asked() == ["x2", "x3", "x4"]
    [(last, _)] = db.xreadgroup("results-writer", "w", {"viw.command_events": ">"})[0][1][-1:]
    db.xack("viw.command_events", "results-writer", last)
    time.sleep(0.002)
    db.set("viw.verify", now_ms(db))
    assert offer() == (1, []) and asked() == ["x2", "x3", "x4", "x4"]
    # A cancel needs no answer of the ledger, but overtakes nothing; what was routed after a reconnect alone was never forgotten.
    site.route(site.entry("x6"), site.entry("x6", kind="cancel"))
    assert offer() == (1, []) and asked()[-1] == "x4"
    site.route(site.entry("x4", kind="cancel"))
    assert offer() == (0, ["x4"])
    db.delete("viw.doubt")
    time.sleep(0.002)
    site.route(site.entry("x5"))
    assert [site.answer(f"x{i}") for i in (1, 2, 3, 4)] == ["stored"] * 4
    assert offer() == (0, ["x6", "x5"])


@pytest.mark.parametrize("key, ahead_ms", [("viw.verify", 0), ("viw.doubt", 300_000)])
def test_the_ledger_is_asked_once_also_when_the_clock_was_set_back_since_the_loss(db, lua, site, key, ahead_ms):
    site.route(site.entry("x1"))
    db.set(key, now_ms(db) + 3_600_000 + ahead_ms)

    def offer():
        out = lua.offer("a1", site.owner, "J", 4, 0, "b1", "c1", site.epoch, NOW, 0)
        return out[3], [out[i + 1] for i in range(5, len(out), 10)]
    assert [offer() for _ in range(3)] == [(1, [])] * 3
    [(entry, fields)] = db.xrange("viw.command_events")
    assert fields["event"] == "offering"
    db.xgroup_create("viw.command_events", "results-writer", "0")
    db.xreadgroup("results-writer", "w", {"viw.command_events": ">"})
    db.xack("viw.command_events", "results-writer", entry)
    assert offer() == (0, ["x1"])


def test_what_the_router_ends_is_counted_as_well(db, lua, site):
    """A Redis that forgot only this is noticed too."""
    site.route(site.entry("x1"), site.entry("x1", kind="cancel"), site.entry("x2", ttl_ms=-1),
               site.entry("x3", kind="reject", verb="bad"), site.entry("x4", kind="cancel"), site.entry("x4"),
               site.entry("x5", ttl_ms=400))
    assert site.offers == 4
    wait_for(lambda: now_ms(db) > int(site.marker("x5")["exp"]), 3)
    assert site.expire()[1] == 1 and site.offers == 5
    db.hset("viw.offers", "b1", 4)
    assert lua.expire(site.lease, "b1", NOW, 5, 64)[2:4] == [5, 1] and db.exists("viw.doubt")
    db.delete("viw.doubt")
    db.hset("viw.offers", "b1", 4)
    assert lua.route(site.lease, "b1", NOW, 5, *site.entry("x6"))[:2] == [5, 1] and db.exists("viw.doubt")


def test_doubt_ends(db, lua, site):
    lose_offers(db, lua, site)
    db.set("viw.doubt", now_ms(db) - 1)
    site.route(site.entry("x1"), site.entry("x2", kind="cancel"))
    assert site.route(site.entry("x1", kind="cancel"), site.entry("x2"), site.entry("x3", ttl_ms=-1))[::2] == [
        "cancelled", "cancelled", "expired"]
    assert site.open_keys() == []


# ---------------------------------------------------------------- lookup, result


def test_lookup_gives_parameters_while_they_exist(db, lua, site):
    site.route(site.entry("x1", params='{"userpass":"s"}'))
    assert lua.lookup("a1", "x1") == ["open", "ECHO", '{"userpass":"s"}']
    assert lua.lookup("a2", "x1") == ["not_yours"]
    assert lua.lookup("a1", "never") == ["unknown"]
    db.delete("viw.mbox.a1")
    assert lua.lookup("a1", "x1") == ["withhold"]
    site.answer("x1")
    assert lua.lookup("a1", "x1") == ["finished"]
    site.route(site.entry("x2", kind="cancel"))
    assert lua.lookup("a1", "x2") == ["unknown"]


def test_result_is_stored_once_and_leaves_no_secret(db, lua, site):
    site.route(site.entry("x1", params='{"userpass":"hush"}'), site.entry("x2"))
    site.offer()
    assert lua.result("a1", "x1", "{}", "b1", site.epoch, NOW) == ["stored", 1]
    assert lua.result("a1", "x1", "{}", "b1", site.epoch, NOW) == ["finished", 1]
    row = results_of(db, "x1")[0]
    assert row["command"] == "ECHO" and row["issued_by_admin_id"] == "admin" and row["source"] == "agent"
    assert row["epoch"] == site.epoch and "state" not in row
    assert site.answer("x2", agent="a9") == "not_yours" and site.answer("nope") == "unknown"
    assert site.answer("x2") == "stored" and site.open_keys() == []
    db.xtrim("viw.commands", 0)
    for key in db.scan_iter("*"):
        assert b"hush" not in redis_py.Redis(unix_socket_path=db.connection_pool.connection_kwargs["path"]).dump(key)


def test_result_of_an_offer_of_an_older_connection_counts(db, lua, site):
    site.route(site.entry("x1"))
    site.offer()
    site.claim(conn="c2", bridge="b2")
    assert site.answer("x1") == "stored"


# ---------------------------------------------------------------- expire, trim, post


def test_expire_ends_what_was_not_offered_and_asks_for_the_rest(db, lua, site):
    site.route(site.entry("x1", ttl_ms=200), site.entry("x2", ttl_ms=200), site.entry("x3", ttl_ms=30000))
    site.offer(window=1)
    out = site.expire()
    assert out[1] == 0 and 0 <= out[0] <= 200
    wait_for(lambda: now_ms(db) > int(site.marker("x2")["exp"]), 3)
    out = site.expire()
    assert out[1:] == [1, "a1"] and out[0] <= 30000  # x2 ended; a1's bridge is told to ask for x1
    assert [(r["correlation_id"], r["state"]) for r in results_of(db)] == [("x2", "expired")]
    again = db.zscore("viw.deadlines", "x1") - now_ms(db)
    assert 25000 < again <= 30000
    assert lua.expire("b1|9", "b1", NOW, 0, 64) == "FENCED"
    for cid in ("x1", "x3"):
        site.answer(cid)
    assert site.expire() == [-1, 0]


def test_expire_forgets_deadlines_of_what_is_gone(db, lua, site):
    db.zadd("viw.deadlines", {"ghost": 1})
    assert site.expire() == [-1, 0]


def test_trim_bytes_keeps_what_was_written_last(db, lua):
    def write(n, size):
        for _ in range(n):
            db.xadd("viw.telemetry", {"frame": "x" * size})
        return lua.trim_bytes(n * size, 100000)
    # Up to the bound nothing goes, however many entries that is.
    assert [write(100, 100) for _ in range(9)] == [0] * 9
    assert db.xlen("viw.telemetry") == 900
    # Large ones push the small ones out, also when Redis is full.
    db.config_set("maxmemory", 1)
    assert lua.trim_bytes(90000, 100000) > 700
    db.config_set("maxmemory", 0)
    for _ in range(20):
        write(10, 1000)
    assert 100 <= db.xlen("viw.telemetry") <= 120 and db.llen("viw.telemetry_marks") <= 11
    # Emptied, or forgotten by Redis, it begins anew.
    db.xtrim("viw.telemetry", maxlen=0)
    assert write(1, 90000) == 0 and db.xlen("viw.telemetry") == 1
    db.delete("viw.telemetry")
    assert lua.trim_bytes(100, 100000) == 0 and not db.exists("viw.telemetry_marks")
    assert write(1, 100) == 0 and db.lrange("viw.telemetry_marks", 0, -1)[0].endswith(" 100")


def test_trim_only_behind_the_slowest_group(db, lua, site):
    ids = [db.xadd("viw.commands", {"n": i}) for i in range(6)]
    trim = lambda: lua.trim(site.lease, "commands", "agent-bridge", "results-writer")
    db.xreadgroup("agent-bridge", "router", {"viw.commands": ">"}, count=5)
    db.xack("viw.commands", "agent-bridge", *ids[:5])
    assert trim() == ["no_group", "results-writer"] and db.xlen("viw.commands") == 6
    db.xgroup_create("viw.commands", "results-writer", "0")
    assert trim() == ["trimmed", 0]
    db.xreadgroup("results-writer", "w", {"viw.commands": ">"}, count=4)
    db.xack("viw.commands", "results-writer", ids[0], ids[1], ids[3])
    assert trim() == ["trimmed", 2]  # ids[2] is unacknowledged
    db.xack("viw.commands", "results-writer", ids[2])
    assert trim() == ["trimmed", 2] and [e for e, _ in db.xrange("viw.commands")] == ids[4:]
    db.xgroup_create("viw.commands", "somebody", ids[4])  # any other group is respected
    assert trim() == ["trimmed", 0]
    assert lua.trim("b1|9", "commands") == "FENCED"
    assert lua.trim(site.lease, "nothing", "g") == ["no_stream", 0]


def test_post_is_idempotent_and_bounded(db, lua, site):
    post = lambda cid, digest="d", agent="a1", connected=0, most=64: lua.post(
        agent, cid, digest, connected, most, "correlation_id", cid, "agent_id", agent, "command", "ECHO")
    assert post("x1") == "queued" and post("x1") == "queued" and db.xlen("viw.commands") == 1
    assert post("x1", digest="other") == "conflict" and post("x1", agent="a2") == "conflict"
    assert post("x2", agent="nobody", connected=1) == "offline" and post("x2", connected=1) == "queued"
    db.delete("viw.bridge.b1")  # its bridge is dead: connected to nobody
    assert post("x3", connected=1) == "offline"
    lua.router_read(site.lease, ">", 64)
    entry = lambda cid, digest: [db.xrange("viw.commands")[0][0], "run", cid, "a1", digest, "ECHO", "{}",
                                 now_ms(db) + 9000, NOW, NOW, "", "", ""]
    assert site.route(entry("x1", "d"))[0] == "queued"
    assert site.route(entry("x2", "other"))[0] == "duplicate"  # not what was posted
    assert db.ttl("viw.cid.x1") == -1
    assert post("x4", most=1) == "full" and post("x1", most=1) == "queued"


def test_post_of_cancels_is_idempotent_and_bounded(db, lua):
    cancel = lambda cid, agent="a1", most=3: lua.post(agent, cid, "", 0, most, "correlation_id", cid, "op", "cancel")
    assert [cancel(f"x{i}") for i in (1, 2, 1, 3, 2, 4, 5)] == ["queued"] * 5 + ["full"] * 2
    assert [f["correlation_id"] for _, f in db.xrange("viw.commands")] == ["x1", "x2", "x3"]
    assert cancel("x4", agent="a2") == "queued"
    assert 0 < db.ttl("viw.cancels.a1") <= 60
    db.expire("viw.cancels.a1", 30)
    assert cancel("x1") == "queued" and cancel("x4", most=4) == "queued" and db.ttl("viw.cancels.a1") <= 30
    db.delete("viw.cancels.a1")  # its minute is over
    assert cancel("x5") == "queued" and db.xlen("viw.commands") == 6


# ---------------------------------------------------------------- out of memory

# flags=allow-oom: these only free, or keep the fleet alive. no-writes: they only look.
UNDER_OOM = {
    "release": "works", "bridge_lease": "works", "router_lease": "works", "router_yield": "works",
    "trim": "works", "trim_bytes": "works", "check": "works", "lookup": "works",
    "claim": "refused", "reclaim": "refused", "expire": "refused", "offer": "refused", "post": "refused",
    "result": "refused", "route": "refused", "router_read": "refused",
}


@pytest.mark.parametrize("name", lua_files.NAMES)
def test_out_of_memory(db, lua, site, name):
    """Either a step is refused before its first write, or it is one that must go on."""
    site.route(site.entry("x1"), site.entry("x2", ttl_ms=1))
    site.offer(window=1)
    args = {
        "release": ["a1", site.owner], "bridge_lease": ["b1", "inst-1", "1", 15000],
        "router_lease": ["b1", site.token, 4000, 0, "1"], "router_yield": [site.lease],
        "trim": [site.lease, "commands", "agent-bridge"], "trim_bytes": [1, 100], "check": ["a1", site.owner], "lookup": ["a1", "x1"],
        "claim": ["a1", "b1", "c9", "n", 1000, ""], "reclaim": ["a1", "b1", "c1", site.epoch],
        "expire": [site.lease, "b1", NOW, 0, 64], "router_read": [site.lease, ">", 64],
        "offer": ["a1", site.owner, "", 4, 1, "b1", "c1", site.epoch, NOW, 0],
        "post": ["a1", "x9", "d", 0, 64, "correlation_id", "x9"],
        "result": ["a1", "x1", "{}", "b1", site.epoch, NOW],
        "route": [site.lease, "b1", NOW, 0, *site.entry("x3")],
    }[name]
    db.config_set("maxmemory", 1)
    before = dump(db)
    try:
        lua.run(name, *args)
        outcome = "works"
    except redis_py.exceptions.RedisError as e:
        assert "OOM" in type(e).__name__ + str(e) or "maxmemory" in str(e)
        outcome = "refused"
        assert dump(db) == before
    assert outcome == UNDER_OOM[name]
    db.config_set("maxmemory", 0)
    lua.run(name, *args)
