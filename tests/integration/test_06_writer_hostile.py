"""What hostile backends and agents can put into the streams: one row each, no dead end, no neighbour hurt, no
memory without bound."""
import json

import pytest

import viwtest
import writers
from bridges import Bridge
from viwtest import wait_for
from writers import add_command, add_result, add_telemetry, start_writer, wait_drained

# Numbers that are JSON and fit a double, but that no jsonb holds.
NO_JSONB = ["1e-16384", "-1.5e-99999", "0e999999999999", "0." + "0" * 20000 + "1"]

# Fields of an entry of viw.commands, over well-formed ones. All of them must end as rejected.
MALFORMED = [
    {"command": b"\xff\xfe"}, {"command": b"a\x00b"}, {"command": b"x" * 1_000_000}, {"command": b""},
    {"issued_by_admin_id": b"adm\xff"}, {"issued_by_admin_id": b"a\x00"}, {"issued_by_admin_id": b"\xed\xa0\x80"},
    {"signature": b"\xc3"}, {"signature": b"s" * 5000},
    {"params": b"\xff"}, {"params": b'{"a":"\xff"}'}, {"params": b'{"a":"\\u0000"}'}, {"params": b"[1]"},
    {"params": b'{"a":' * 20 + b"1" + b"}" * 20}, {"params": b'{"a":' * 100_000},
    {"params": b'{"a":1e400}'}, {"params": b'{"a":1,"a":2}'}, {"params": b'{"a":"' + b"x" * 70_000 + b'"}'},
    {"params": b'{"a":99999999999999999999}'},
    *({"params": b'{"a":%s}' % n.encode()} for n in NO_JSONB),
    {"ttl_s": b"99999999999999999999"}, {"ttl_s": b"-1"}, {"ttl_s": b"1e3"}, {"ttl_s": b"\xff"},
    {"expires_at": b"9999-12-31T23:59:59Z"}, {"expires_at": b"292277026596-12-04T15:30:07Z"},
    {"issued_at": b"0000-00-00T00:00:00Z"}, {"issued_at": b"\xff"},
    {"agent_id": b"\xff\xff"}, {"agent_id": b"../../etc"}, {"agent_id": b"a" * 100}, {"op": b"\xff"},
]


def add_malformed(c):
    raw = writers.raw_client(c)
    for i, fields in enumerate(MALFORMED):
        raw.xadd("viw.commands", {"correlation_id": f"m-{i}", "agent_id": "gw-1", "command": "ECHO", **fields})
    # A field twice: what is checked, stored and rejected is the first one.
    raw.execute_command("XADD", "viw.commands", "*", "correlation_id", f"m-{len(MALFORMED)}", "agent_id", "gw-1",
                        "command", "two words", "command", "ECHO", "params", "{}", "params", b"\xff")
    return [f"m-{i}" for i in range(len(MALFORMED) + 1)]


def assert_all_rejected(pg, ids):
    pg.wait_row("SELECT 1 WHERE (SELECT count(*) FROM agent_command_results) >= %s", len(ids), timeout=60)
    got = {r["correlation_id"]: r["status"] for r in pg.query("SELECT * FROM agent_commands")}
    assert got == {cid: "rejected" for cid in ids}
    rows = pg.query("SELECT correlation_id FROM agent_command_results WHERE status = 'rejected'")
    assert sorted(r["correlation_id"] for r in rows) == sorted(ids)
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_malformed_commands_end_rejected_with_one_row_each(redis, pg, start, connect):
    w = start_writer(start, "results", redis, pg.uri)
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    ids = add_malformed(redis.client)
    add_command(redis.client, "c-good", params={"message": "é"}, issued_by_admin_id="Zoë")
    sent = agent.expect("COMMAND", timeout=10)
    assert (sent["correlation_id"], sent["issued_by"]) == ("c-good", "Zoë")
    agent.send(writers.result("c-good", rc=0))
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-good' AND status = 'done' "
                "AND issued_by_admin_id = 'Zoë'")
    pg.query("DELETE FROM agent_command_results WHERE correlation_id = 'c-good'")
    pg.query("DELETE FROM agent_commands WHERE correlation_id = 'c-good'")
    assert_all_rejected(pg, ids)
    assert w.proc.alive


@pytest.mark.timeout(90)
def test_malformed_commands_that_redis_lost_are_rejected_and_never_run(redis, pg, start, connect):
    """results-writer has read them, no bridge has; then Redis loses all. What it queues again must be rejected."""
    w = start_writer(start, "results", redis, pg.uri)
    ids = add_malformed(redis.client)
    wait_drained(redis.client, "results")
    rows = pg.query("SELECT correlation_id, status, malformed FROM agent_commands")
    assert {r["correlation_id"] for r in rows} == set(ids)
    assert all(r["status"] == "queued" and r["malformed"] for r in rows), [r for r in rows if not r["malformed"]]
    redis.client.flushall()
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    assert_all_rejected(pg, ids)
    assert w.metric("viw_commands_requeued_total") == len(ids)
    add_command(redis.client, "c-good")
    assert agent.expect("COMMAND", timeout=10)["correlation_id"] == "c-good"  # and nothing before it


@pytest.mark.timeout(90)
@pytest.mark.parametrize("entry_ms", ["9000000000000000000", "18446744073709551000"])
def test_an_entry_id_from_the_far_future_stops_nobody(redis, pg, start, connect, entry_ms):
    """Whoever may XADD may choose the id, and Redis counts on from the highest: all that follow have it too."""
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    c.xadd("viw.commands", {"correlation_id": "c-0", "agent_id": "gw-1", "command": "ECHO"}, id=f"{entry_ms}-1")
    add_command(c, "c-1", ttl_s=100)
    add_command(c, "c-off", agent="gw-off", ttl_s=1)
    for cid in ("c-0", "c-1"):
        assert agent.expect("COMMAND", timeout=10)["correlation_id"] == cid
        agent.send(writers.result(cid, rc=0))
        pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s AND status = 'done'", cid)
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-off' AND status = 'expired'")
    rows = pg.query("SELECT expires_at - now() < interval '101 s' AND queued_at <= now() AS sane FROM agent_commands")
    assert [r["sane"] for r in rows] == [True] * 3
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}] and w.proc.alive


def test_frames_no_row_can_hold_cost_no_transaction(redis, pg, start):
    """A flood of them from one agent must not make the writer search each batch for the bad row."""
    c = redis.client
    for i in range(200):
        add_telemetry(c, f"gw-{i:03}", seq=i, cpu_pct=i)
        frame = f'{{"type":"TELEMETRY","agent_id":"evil","ts":"{viwtest.rfc3339()}","metrics":' \
                f'{{"x":{NO_JSONB[i % len(NO_JSONB)]}}}}}'
        c.xadd("viw.telemetry", {**writers.origin("evil"), "frame": frame})
    w = start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry")
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status") == [{"n": 200}]
    assert pg.query("SELECT reason, count(*) AS n FROM dead_letters GROUP BY 1") == [{"reason": "bad_frame", "n": 200}]
    assert w.metric("viw_batch_rows_count") < 30
    # Nor fill the log: thirty lines a minute, the rest is a number.
    assert w.metric("viw_dead_letters_total", reason="bad_frame") == 200
    assert 30 <= len(w.proc.find_logs("dead_letter")) <= 60


def test_words_no_row_can_hold_cost_no_transaction(redis, pg, start):
    """What is no UTF-8, or holds a NUL, where a bridge says who it is; in the reason of an end it costs the reason alone."""
    c = redis.client
    words = [b"\xff", b"a\x00b", b"\xed\xa0\x80", b"x" * 300]
    for i in range(200):
        add_telemetry(c, f"gw-{i:03}", seq=i, cpu_pct=i)
        field = ("bridge_id", "conn_id", "ip")[i % 3]
        fields = {**writers.origin("evil"), "frame": json.dumps(writers.frame("evil", cpu_pct=1)), field: words[i % len(words)]}
        c.xadd("viw.telemetry", fields)
        writers.add_event(c, f"gw-{i:03}", "connected", conn=f"c{i}")
        c.xadd("viw.agent_events", {**writers.origin(f"gw-{i:03}", conn=f"c{i}"), "event": "disconnected", "reason": words[i % len(words)]})
    w = start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry")
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status") == [{"n": 200}]
    assert pg.query("SELECT count(*) AS n FROM agent_sessions WHERE disconnected_at IS NOT NULL AND close_reason IS NULL") == [{"n": 200}]
    assert pg.query("SELECT reason, count(*) AS n FROM dead_letters GROUP BY 1") == [{"reason": "bad_field", "n": 200}]
    assert w.metric("viw_batch_rows_count") < 30


def test_figures_at_the_edges_of_a_double_cost_no_transaction(redis, pg, start):
    """Sums and means that overflow or underflow are refused by the server, and each would be searched for."""
    c = redis.client
    now = viwtest.rfc3339()
    edges = {"over": [1.7e308, 1.7e308, 1.7e308], "under": [5e-324, 0, 0], "minus": [-1.7e308, -1.7e308, 1]}
    w = start_writer(start, "telemetry", redis, pg.uri)
    for i in range(3):
        for agent, figures in edges.items():
            add_telemetry(c, agent, ts=now, seq=i, **{k: figures[i] for k in ("cpu_pct", "mem_pct", "disk_pct", "load1")})
        add_telemetry(c, "gw-1", ts=now, seq=i, cpu_pct=i)
        wait_drained(c, "telemetry")  # so that minutes are updated, not only made
    rows = {r["agent_id"]: r for r in pg.query("SELECT * FROM os_gateway_metrics")}
    assert {a: r["samples"] for a, r in rows.items()} == {"over": 3, "under": 3, "minus": 3, "gw-1": 3}
    assert rows["over"]["load1_max"] == 1.7e308 and rows["gw-1"]["cpu_avg"] == 1
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    assert w.metric("viw_batch_rows_count") <= 12


def test_a_flood_of_one_agent_ends_at_3000_samples_a_minute(redis, pg, start):
    c = redis.client
    now, n = viwtest.rfc3339(), 8000
    pipe = c.pipeline(transaction=False)
    for i in range(n):
        add_telemetry(pipe, "evil", ts=now, seq=i, cpu_pct=50)
        if i % 100 == 0:
            add_telemetry(pipe, f"gw-{i:05}", ts=now, seq=1, cpu_pct=1)
    pipe.execute()
    w = start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry", 30)
    samples = pg.query("SELECT samples FROM os_gateway_metrics WHERE agent_id = 'evil'")[0]["samples"]
    assert 3000 <= samples <= 4000
    # What did not count is said, and the newest figures are there all the same.
    assert w.metric("viw_frames_skipped_total", reason="seen_or_past_retention") == n - samples
    assert pg.query("SELECT seq FROM os_gateway_status WHERE agent_id = 'evil'") == [{"seq": n - 1}]
    assert pg.query("SELECT count(*) AS n FROM os_gateway_metrics") == [{"n": 1 + n // 100}]


def test_deep_wide_and_odd_frames_are_stored_or_refused_whole(redis, pg, start):
    """Whatever the decoder lets pass, PostgreSQL takes."""
    c = redis.client
    odd = {
        "deep": '{"a":' * 13 + "1" + "}" * 13, "wide": json.dumps({f"k{i}": i for i in range(9000)}),
        "long": json.dumps({"x": "y" * 200_000}), "tiny": '{"cpu_pct":1e-16383,"load1":5e-324}',
        "huge": '{"cpu_pct":1.7976931348623157e308,"mem_pct":-1.7976931348623157e308,"load1":1e308}',
        "types": '{"cpu_pct":"no","mem_pct":null,"disk_pct":[1],"services":7,"containers_running":1.5}',
        "ints": '{"containers_running":9223372036854775807,"cpu_pct":-9223372036854775808}',
        "names": '{"":1,"\\uffff":2,"\\ud83d\\ude00":3,"\\u007f":4,"a\\nb":5}',
    }
    for agent, metrics in odd.items():
        for seq in (0, 18446744073709551615):
            c.xadd("viw.telemetry", {**writers.origin(agent), "frame":
                   f'{{"type":"TELEMETRY","agent_id":"{agent}","ts":"{viwtest.rfc3339()}","seq":{seq},'
                   f'"metrics":{metrics}}}'})
    for ts in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z"):
        add_telemetry(c, "times", ts=ts, cpu_pct=1)
    start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry")
    dead = pg.query("SELECT reason, convert_from(payload, 'UTF8') AS p FROM dead_letters")
    assert {r["reason"] for r in dead} <= {"bad_frame"}, [r["reason"] for r in dead]
    stored = {r["agent_id"] for r in pg.query("SELECT agent_id FROM os_gateway_status")}
    refused = {a for a in odd for r in dead if f'"{a}"' in r["p"]}
    assert stored | refused == set(odd) | {"times"} and {"tiny", "huge", "names", "wide", "long", "deep"} <= stored
    assert pg.query("SELECT cpu_max FROM os_gateway_metrics WHERE agent_id = 'huge'") == [
        {"cpu_max": 1.7976931348623157e308}]


def test_frames_of_years_ago_cost_nothing(redis, pg, start):
    """A retention of ten years must not let a wrong clock make thousands of days."""
    c = redis.client
    for year in range(2017, 2026):
        add_telemetry(c, f"gw-{year}", ts=f"{year}-07-01T00:00:00Z", cpu_pct=1)
    add_telemetry(c, "gw-now", cpu_pct=1)
    w = start_writer(start, "telemetry", redis, pg.uri, RETENTION_DAYS=3650)
    wait_drained(c, "telemetry")
    assert pg.query("SELECT agent_id FROM os_gateway_metrics") == [{"agent_id": "gw-now"}]
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status") == [{"n": 10}]
    assert pg.query("SELECT count(*) AS n FROM viw_partition_days")[0]["n"] < 20
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    assert w.metric("viw_frames_skipped_total", reason="seen_or_past_retention") == 9


def test_events_of_years_ago_or_ahead_take_no_neighbour_with_them(redis, pg, start):
    """Entry ids of a Redis whose clock was wrong for a while; first of all, at a start."""
    c, wrong = redis.client, {**writers.origin("gw-1"), "event": "connected"}
    c.xadd("viw.agent_events", wrong, id="5-1")
    writers.add_event(c, "gw-1", "connected", conn="c2")
    w = start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry")
    writers.add_event(c, "gw-1", "disconnected", conn="c2")
    wait_drained(c, "telemetry")
    c.xadd("viw.agent_events", wrong, id="9102444800000-1")
    wait_drained(c, "telemetry")
    assert [r["event"] for r in pg.query("SELECT event FROM agent_events WHERE conn_id = 'c2' ORDER BY at")] == [
        "connected", "disconnected"]
    assert {r["entry_id"] for r in pg.query("SELECT entry_id FROM dead_letters")} <= {"5-1", "9102444800000-1"}
    assert not w.proc.find_logs("postgres_failed")


def test_heavy_entries_after_light_ones_keep_memory_flat(redis, pg, start):
    """The batch had grown on light entries when heavy ones come: one answer of Redis would be 100 MB."""
    c = redis.client
    pipe = c.pipeline(transaction=False)
    for i in range(6000):
        add_command(pipe, f"c-{i:05}")
    pipe.execute()
    # Without AddressSanitizer's own hoard of freed memory.
    w = start_writer(start, "results", redis, pg.uri, BATCH_MAX=5000,
                     env={"ASAN_OPTIONS": "exitcode=99:quarantine_size_mb=1"})
    wait_for(lambda: (w.metric("viw_batch_rows_count") or 0) >= 1)
    w.proc.freeze()
    for n in range(2):
        pipe = c.pipeline(transaction=False)
        for i in range(n * 250, (n + 1) * 250):
            add_result(pipe, f"c-{i:05}", rc=0, stdout="x" * 200_000)
        pipe.execute()
    w.proc.thaw()
    peak = 0
    while not writers.drained(c, "command_results", "results-writer"):
        peak = max(peak, writers.rss_bytes(w.proc.pid))
        viwtest.time.sleep(0.01)
    assert pg.query("SELECT count(*) AS n FROM agent_command_results") == [{"n": 500}]
    assert peak < 96 << 20, peak
    assert "redis_down" not in w.proc.text
