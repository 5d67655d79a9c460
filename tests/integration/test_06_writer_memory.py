"""What the writers hold in memory is theirs to decide, not that of whoever fills the streams; and where memory is
missing, an entry waits: it is neither lost nor taken for a bad one."""
import writers
from viwtest import wait_for
from writers import add_telemetry, start_writer, wait_drained

# Without AddressSanitizer's own hoard of freed memory.
LEAN = {"ASAN_OPTIONS": "exitcode=99:quarantine_size_mb=1"}


def add_many_words(client, stream, n):
    """An entry of n empty fields: in the answer of Redis a tenth of what it takes once read."""
    return writers.raw_client(client).execute_command("XADD", stream, "*", *([b"a", b""] * n))


def test_an_entry_too_large_to_read_is_a_dead_letter_and_blocks_nobody(redis, pg, start):
    c = redis.client
    add_telemetry(c, "gw-before", cpu_pct=1)
    large = [c.xadd("viw.telemetry", {**writers.origin("evil"), "frame": "x" * (26 << 20)}),
             add_many_words(c, "viw.telemetry", 400_000).decode()]
    add_telemetry(c, "gw-after", cpu_pct=2)
    w = start_writer(start, "telemetry", redis, pg.uri, env=LEAN)
    peak = 0

    def done():
        nonlocal peak
        peak = max(peak, writers.rss_bytes(w.proc.pid))
        return writers.drained(c, "telemetry", "telemetry-writer")
    wait_for(done, 50)
    rows = pg.query("SELECT entry_id, reason, masked, payload = '(entry too large to read)' AS named FROM dead_letters")
    assert sorted(r["entry_id"] for r in rows) == sorted(large)
    assert all(r["reason"] == "too_large" and r["masked"] and r["named"] for r in rows), rows
    assert [r["agent_id"] for r in pg.query("SELECT agent_id FROM os_gateway_status ORDER BY 1")] == \
        ["gw-after", "gw-before"]
    assert peak < 160 << 20, peak
    assert "redis_down" not in w.proc.text


def test_large_entries_that_may_be_read_still_are(redis, pg, start):
    """Together they are more than one answer may be, in one stream and over all; alone each is fine."""
    c = redis.client
    for stream, field in (("telemetry", "frame"), ("agent_events", "event"), ("agent_hello", "frame")):
        for _ in range(2):
            c.xadd(f"viw.{stream}", {**writers.origin("gw-1"), field: "x" * (9 << 20)})
    add_telemetry(c, "gw-1", cpu_pct=1)
    start_writer(start, "telemetry", redis, pg.uri, env=LEAN)
    wait_drained(c, "telemetry", 40)
    rows = pg.query("SELECT reason, count(*) AS n, min(length(payload)) > 9 << 20 AS whole FROM dead_letters GROUP BY 1")
    assert {r["reason"]: (r["n"], r["whole"]) for r in rows} == {"bad_frame": (4, True), "unknown_event": (2, True)}
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status") == [{"n": 1}]
