"""The writers when something is away, slow, killed or lost: nothing lost, nothing twice, no neighbour hurt."""
import datetime
import json
import random
import time

import pytest

import viwtest
import writers
from viwtest import wait_for
from writers import Writer, add_command, add_event, add_result, add_telemetry, start_writer, wait_drained


@pytest.fixture
def own_pg(pg_server):
    """A database on a server of this test's own, which may be stopped."""
    db = pg_server.new_database()
    yield db
    db._conn and db._conn.close()


def minute(offset_s=0):
    t = datetime.datetime.now(datetime.timezone.utc).replace(second=0, microsecond=0)
    t += datetime.timedelta(minutes=-2, seconds=offset_s)
    return t.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def test_why_it_cannot_come_back_is_told_at_once(redis, own_pg, start):
    """Not only, for five minutes, what once cut the connection."""
    own_pg.query("DO $$ BEGIN CREATE ROLE barred LOGIN IN ROLE viw_telemetry_writer; "
                 "EXCEPTION WHEN duplicate_object THEN ALTER ROLE barred LOGIN; END $$")
    w = start_writer(start, "telemetry", redis, own_pg.uri_as("barred"))
    wait_for(lambda: w.get("/_readyz")[0] == 200)
    own_pg.query("ALTER ROLE barred NOLOGIN")
    own_pg.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'barred'")
    told = wait_for(lambda: [line for line in w.proc.find_logs("postgres_failed") if "not permitted to log in" in line["error"]], 15)
    assert len(told) == 1
    own_pg.query("ALTER ROLE barred LOGIN")
    wait_for(lambda: w.get("/_readyz")[0] == 200, 15)


def test_postgres_away_loses_nothing_and_catches_up(redis, own_pg, start):
    """Also: lag is told while it is away, and true after a trim."""
    server, c = own_pg.server, redis.client
    w = start_writer(start, "telemetry", redis, own_pg.uri, BATCH_MAX=100)
    r = start_writer(start, "results", redis, own_pg.uri)
    add_telemetry(c, "gw-first", cpu_pct=1)
    own_pg.wait_row("SELECT 1 FROM os_gateway_status")
    own_pg._conn.close()
    server.stop()
    for i in range(300):
        add_telemetry(c, f"gw-{i}", seq=i, cpu_pct=i)
    add_command(c, "c-1")
    wait_for(lambda: w.get("/_readyz")[0] == 503 and w.metric("viw_pg_up") == 0, 15)
    wait_for(lambda: r.get("/_readyz")[0] == 503, 15)
    wait_for(lambda: w.metric("viw_stream_lag_entries", stream="viw.telemetry") == 300, 15)
    c.xtrim("viw.telemetry", maxlen=250, approximate=False)
    pending = c.xpending("viw.telemetry", "telemetry-writer")["pending"]
    trimmed_unread = max(0, 50 - pending)
    # Redis forgets that trimmed ones are pending as soon as the writer asks to keep them.
    wait_for(lambda: w.metric("viw_stream_lag_entries", stream="viw.telemetry") in (250, 250 + pending), 15)
    assert 0 < w.metric("viw_stream_lag_seconds", stream="viw.telemetry") < 60
    server.start()
    own_pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'", timeout=20)
    wait_drained(c, "telemetry")
    # What was delivered before the trim was in the writer's hands; the rest of the trimmed is gone, and said so.
    wait_for(lambda: own_pg.query("SELECT count(*) AS n FROM os_gateway_status") ==
             [{"n": 301 - trimmed_unread}])
    wait_for(lambda: w.metric("viw_stream_lag_entries", stream="viw.telemetry") == 0, 15)
    assert w.metric("viw_stream_lag_seconds", stream="viw.telemetry") == 0
    wait_for(lambda: (w.metric("viw_entries_lost_total", stream="viw.telemetry") or 0) == trimmed_unread, 15)
    assert own_pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    wait_for(lambda: w.get("/_readyz")[0] == 200)


def test_lag_is_true_behind_ids_that_lie_ahead(redis, start, tmp_path):
    """Whoever adds entries may choose their ids, and Redis counts on from the highest."""
    c = redis.client
    then = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=500)).strftime(
        "%Y-%m-%dT%H:%M:%SZ")
    far = "9000000000000000000"
    c.xadd("viw.telemetry", {**writers.origin("gw-1", received_at=then), "frame": "{}"}, id=f"{far}-1")
    c.xadd("viw.agent_hello", {"agent_id": "gw-1"}, id=f"{far}-1")  # says nothing of when it came
    c.xadd("viw.agent_events", {**writers.origin("gw-1"), "event": "connected"})
    w = start_writer(start, "telemetry", redis, f"postgresql:///none?host={tmp_path}")

    def lag(stream):
        return w.metric("viw_stream_lag_seconds", stream=f"viw.{stream}")
    wait_for(lambda: (lag("telemetry") or 0) >= 500 and (lag("agent_hello") or 0) > 2, 15)
    assert lag("telemetry") < 560 and lag("agent_hello") < 60 and lag("agent_events") < 60


def test_killed_at_any_moment_each_frame_counts_once(redis, pg, start):
    """Under load, so that one batch is written, the next one staged and another on its way; with entries that are
    refused by the writer, and rows refused by the server, in each of them."""
    c, n, rng = redis.client, 4000, random.Random(5)
    pg.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' "
             "USING ERRCODE = '22023'; END $$")
    pg.query("CREATE TRIGGER refuse BEFORE INSERT ON os_gateway_status FOR EACH ROW "
             "WHEN (NEW.agent_id = 'gw-refused') EXECUTE FUNCTION refuse()")
    now, bad, refused = minute(), 0, 0
    for i in range(n):
        if i % 800 == 0:
            pipe = c.pipeline(transaction=False)
        if i % 800 == 500:
            pipe.xadd("viw.telemetry", {**writers.origin("gw-bad"), "frame": "{"})
            add_telemetry(pipe, "gw-refused", seq=i, cpu_pct=1)
            bad, refused = bad + 1, refused + 1
        add_telemetry(pipe, f"gw-{i % 10}", ts=now, seq=i, cpu_pct=i % 100)
        if i % 50 == 0:
            add_event(pipe, f"gw-{i % 10}", "audit", record={"n": i})
        if i % 800 == 799:
            pipe.execute()
            w = start_writer(start, "telemetry", redis, pg.uri, BATCH_MAX=300, CONSUMER="one")
            time.sleep(rng.random() * 0.3)
            w.proc.kill()
    w = start_writer(start, "telemetry", redis, pg.uri, BATCH_MAX=300, CONSUMER="one")
    wait_drained(c, "telemetry", 60)
    assert pg.query("SELECT sum(samples) AS n FROM os_gateway_metrics WHERE agent_id <> 'gw-refused'") == [{"n": n}]
    assert pg.query("SELECT count(*) AS n FROM agent_events") == [{"n": n // 50}]
    dead = {r["reason"]: r["n"] for r in pg.query("SELECT reason, count(*) AS n FROM dead_letters GROUP BY 1")}
    assert dead == {"bad_frame": bad, "sqlstate_22023": refused}
    assert pg.query("SELECT max(seq) AS n FROM os_gateway_status") == [{"n": n - 1}]


def test_a_killed_workers_entries_are_taken_over_within_5_s(redis, pg, start):
    """Killed in the middle of its transaction; the other one stores all of it, once."""
    c = redis.client
    a = start_writer(start, "results", redis, pg.uri, CONSUMER="a")
    add_command(c, "c-0")
    wait_drained(c, "results")
    blocker = pg.connect()
    blocker.autocommit = False
    blocker.cursor().execute("LOCK TABLE agent_commands IN EXCLUSIVE MODE")
    for i in range(200):
        add_command(c, f"c-{i}")
        add_result(c, f"c-{i}", rc=0)

    def pending():
        return sum(c.xpending(f"viw.{s}", "results-writer")["pending"] for s in ("commands", "command_results"))
    wait_for(lambda: pending() > 0)
    a.proc.kill()
    assert pending() > 0
    b = start_writer(start, "results", redis, pg.uri, CONSUMER="b", CONSUMER_IDLE_S=1)
    blocker.rollback()
    blocker.close()
    wait_drained(c, "results", 6)
    assert pg.query("SELECT count(*) AS n FROM agent_commands WHERE status = 'done'") == [{"n": 200}]
    assert pg.query("SELECT count(*) AS n FROM agent_command_results") == [{"n": 200}]
    assert pg.query("SELECT count(*) AS n FROM agent_command_late_results") == [{"n": 0}]
    # No consumer is left behind, and a restarted one is the same.
    b.proc.stop()
    start_writer(start, "results", redis, pg.uri, CONSUMER="b", CONSUMER_IDLE_S=1)
    wait_for(lambda: [x["name"] for x in c.xinfo_consumers("viw.command_results", "results-writer")] == ["b"], 10)


def test_a_locked_table_is_waited_for_and_blames_no_row(redis, pg, start):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    blocker = pg.connect()
    blocker.autocommit = False
    blocker.cursor().execute("LOCK TABLE agent_commands IN EXCLUSIVE MODE")
    add_command(c, "c-1")
    wait_for(lambda: w.metric("viw_pg_retries_total", verdict="retry"), 15)  # lock_timeout, 55P03
    blocker.rollback()
    blocker.close()
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'", timeout=15)
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_a_missing_right_pauses_and_blames_no_row(redis, pg, start):
    """42501: nobody's data is at fault; it waits, says so, and goes on when the right is there."""
    pg.query("DO $$ BEGIN CREATE ROLE login_results LOGIN IN ROLE viw_results_writer; "
             "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    pg.query("REVOKE INSERT ON agent_commands FROM viw_results_writer")
    w = start_writer(start, "results", redis, pg.uri_as("login_results"))
    add_command(redis.client, "c-1")
    w.proc.wait_log("postgres_refuses")
    wait_for(lambda: w.get("/_readyz")[0] == 503 and w.metric("viw_pg_retries_total", verdict="pause"))
    pg.query("GRANT INSERT ON agent_commands TO viw_results_writer")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'")
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_refused_after_an_outage_is_told_as_such(redis, own_pg, start):
    """Away and then refusing are two things to do for whoever is called."""
    server = own_pg.server
    own_pg.query("CREATE ROLE login_results LOGIN IN ROLE viw_results_writer")
    own_pg.query("REVOKE INSERT ON agent_commands FROM viw_results_writer")
    w = start_writer(start, "results", redis, own_pg.uri_as("login_results"))
    own_pg._conn.close()
    server.stop()
    add_command(redis.client, "c-1")
    w.proc.wait_log("postgres_failed")
    server.start()
    w.proc.wait_log("postgres_refuses", timeout=15)
    own_pg.query("GRANT INSERT ON agent_commands TO viw_results_writer")
    own_pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'", timeout=15)
    wait_for(lambda: w.proc.find_logs("postgres_up")[-1].get("duration_ms", 0) > 0, 5, "how long it was away")


def test_what_a_chore_is_refused_stops_no_batch(redis, pg, start):
    """A missing grant of a chore is a warning and a number; the writer stays ready, for it stores."""
    pg.query("DO $$ BEGIN CREATE ROLE login_results LOGIN IN ROLE viw_results_writer; "
             "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    pg.query("REVOKE SELECT ON agent_lost_declarations FROM viw_results_writer")
    w = start_writer(start, "results", redis, pg.uri_as("login_results"))
    wait_for(lambda: w.get("/_readyz")[0] == 200)
    ready, until = [], viwtest.time.monotonic() + 20
    while viwtest.time.monotonic() < until:
        ready.append(w.get("/_readyz")[0])
        if w.metric("viw_pg_retries_total", verdict="pause") and until > viwtest.time.monotonic() + 1.5:
            until = viwtest.time.monotonic() + 1.5
        viwtest.time.sleep(0.05)
    assert w.metric("viw_pg_retries_total", verdict="pause") and set(ready) == {200}
    assert [(x["detail"], x["error"][:5]) for x in w.proc.find_logs("postgres_refuses")] == [("requeue", "42501")]
    assert len(w.proc.find_logs("postgres_up")) == 1
    add_command(redis.client, "c-1")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'")


def test_an_entry_that_cannot_even_be_a_dead_letter_blocks_nobody(redis, pg, start):
    """It stays pending, in the way of nothing, and is tried again every few seconds."""
    c = redis.client
    pg.query("ALTER TABLE dead_letters ADD CONSTRAINT wrong CHECK (stream <> 'viw.telemetry')")
    c.xgroup_create("viw.telemetry", "telemetry-writer", "0", mkstream=True)
    c.xadd("viw.telemetry", {**writers.origin("gw-bad"), "frame": "{"})
    c.xreadgroup("telemetry-writer", "w", {"viw.telemetry": ">"})  # its own, from before it was killed
    add_telemetry(c, "gw-1", cpu_pct=1)
    w = start_writer(start, "telemetry", redis, pg.uri, CONSUMER="w")
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-1'")
    add_telemetry(c, "gw-2", cpu_pct=1)
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-2'")
    assert len(w.proc.find_logs("dead_letter_failed")) < 10
    assert c.xpending("viw.telemetry", "telemetry-writer")["pending"] == 1
    pg.query("ALTER TABLE dead_letters DROP CONSTRAINT wrong")
    pg.wait_row("SELECT 1 FROM dead_letters WHERE reason = 'bad_frame'", timeout=10)
    wait_drained(c, "telemetry")


def test_what_redis_cannot_be_told_blocks_nobody(redis, pg, start):
    """A bridge is about to offer what has ended, and Redis refuses to hear of it: not acknowledged, so not offered."""
    c = redis.client
    for cid in ("c-1", "c-2"):
        add_result(c, cid, rc=0)
    w = start_writer(start, "results", redis, pg.uri)
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'done' HAVING count(*) = 2")
    wait_drained(c, "results")
    c.set("viw.deadlines", "no set")
    for cid in ("c-1", "c-2"):
        writers.add_command_event(c, cid, "offering")
    told = w.proc.wait_log("redis_not_told", timeout=10)
    assert "WRONGTYPE" in told["error"]
    for cid in ("c-3", "c-4"):
        add_command(c, cid)
        pg.wait_row(f"SELECT 1 FROM agent_commands WHERE correlation_id = '{cid}'")
    assert c.xpending("viw.command_events", "results-writer")["pending"] == 2
    w.proc.wait_log("redis_not_told", count=2, timeout=10)
    assert len(w.proc.find_logs("redis_not_told")) < 6
    c.delete("viw.deadlines")
    wait_drained(c, "results")
    assert [c.hget(f"viw.cid.{cid}", "state") for cid in ("c-1", "c-2")] == ["lost", "lost"]


def test_days_that_vanished_are_made_again(redis, pg, start):
    """The database was restored, or failed over to a standby that lagged: days the writer had made are not there."""
    c = redis.client
    w = start_writer(start, "telemetry", redis, pg.uri)
    add_telemetry(c, "gw-1", seq=1, cpu_pct=1)
    writers.add_event(c, "gw-1", "connected")
    wait_drained(c, "telemetry")
    wait_for(lambda: w.metric("viw_partition_days_ahead", table="agent_events"), 10, "its first chores are over")
    for day in pg.query("SELECT child FROM viw_partition_days"):
        pg.query(f"DROP TABLE viw_partitions.{day['child']}")
    add_telemetry(c, "gw-2", seq=1, cpu_pct=1)
    wait_drained(c, "telemetry")
    writers.add_event(c, "gw-2", "connected")
    wait_drained(c, "telemetry")
    assert pg.query("SELECT agent_id FROM os_gateway_metrics") == [{"agent_id": "gw-2"}]
    assert pg.query("SELECT agent_id FROM agent_events") == [{"agent_id": "gw-2"}]
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_several_workers_share_the_load_exactly(redis, pg, start):
    """Frames of the same agents and minutes through three workers at once: every sample counts once."""
    c = redis.client
    pipe, now = c.pipeline(transaction=False), minute()
    for i in range(6000):
        fields = writers.origin(f"gw-{i % 40:02}", epoch=1)
        fields["frame"] = json.dumps(writers.frame(f"gw-{i % 40:02}", ts=now, seq=i, cpu_pct=i % 100))
        pipe.xadd("viw.telemetry", fields)
    pipe.execute()
    ws = [start_writer(start, "telemetry", redis, pg.uri, CONSUMER=f"w{i}", BATCH_MAX=200) for i in range(3)]
    wait_drained(c, "telemetry", 40)
    rows = pg.query("SELECT sum(samples) AS n, count(*) AS agents, sum(cpu_sum) AS total, max(cpu_max) AS m "
                    "FROM os_gateway_metrics")
    assert rows == [{"n": 6000, "agents": 40, "total": float(sum(i % 100 for i in range(6000))), "m": 99.0}]
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status WHERE seq >= 5960") == [{"n": 40}]
    # All lock in one order: nobody waits for somebody who waits.
    assert not [x for w in ws for x in w.proc.find_logs("postgres_failed") if x["error"].startswith("40P01")]
    stored = [w.metric("viw_entries_stored_total", stream="viw.telemetry") or 0 for w in ws]
    assert sum(stored) >= 6000
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_lost_group_is_rebuilt_from_0_and_changes_nothing(redis, pg, start):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    for i in range(50):
        add_command(c, f"c-{i}")
        add_result(c, f"c-{i}", rc=0)
    wait_drained(c, "results")
    for s in ("commands", "command_results"):
        c.xgroup_destroy(f"viw.{s}", "results-writer")
    add_command(c, "c-new")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-new'")
    wait_drained(c, "results")
    assert pg.query("SELECT count(*) AS n FROM agent_command_results") == [{"n": 50}]
    assert pg.query("SELECT count(*) AS n FROM agent_command_late_results") == [{"n": 0}]
    c.flushall()  # all of Redis is gone, streams too
    add_command(c, "c-after")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-after'")
    assert w.proc.alive


def test_redis_restarts_are_survived(redis, pg, start):
    c = redis.client
    start_writer(start, "telemetry", redis, pg.uri)
    for round in range(2):
        add_telemetry(c, f"gw-{round}", cpu_pct=1)
        pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = %s", f"gw-{round}")
        redis.stop()
        redis.start()
        c = redis.client
    add_telemetry(c, "gw-last", cpu_pct=1)
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-last'")


def test_entries_deleted_before_they_were_stored_are_an_alarm(redis, pg, start):
    c = redis.client
    c.xgroup_create("viw.telemetry", "telemetry-writer", "0", mkstream=True)
    ids = [add_telemetry(c, f"gw-{i}", cpu_pct=1) for i in range(3)]
    # A consumer that died with all three in hand; two of them are trimmed away meanwhile.
    c.xreadgroup("telemetry-writer", "dead", {"viw.telemetry": ">"})
    c.xdel("viw.telemetry", *ids[:2])
    w = start_writer(start, "telemetry", redis, pg.uri)
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-2'", timeout=10)
    wait_for(lambda: w.metric("viw_entries_lost_total", stream="viw.telemetry") == 2)
    w.proc.wait_log("entries_lost")
    wait_for(lambda: c.xpending("viw.telemetry", "telemetry-writer")["pending"] == 0)


def test_retention_drops_whole_days_and_makes_days_ahead(redis, pg, start):
    for table in ("os_gateway_metrics", "agent_events"):
        pg.query("SELECT viw_make_partitions(%s, CURRENT_DATE - 40, CURRENT_DATE - 38)", table)
    pg.query("DROP TABLE viw_partitions.agent_events_" +
             (datetime.datetime.utcnow() + datetime.timedelta(days=3)).strftime("%Y%m%d"))
    pg.query("INSERT INTO agent_sessions (conn_id, agent_id, epoch, disconnected_at) "
             "VALUES ('old', 'gw-1', 1, now() - interval '20 d'), ('new', 'gw-1', 2, now() - interval '1 d')")
    reader = pg.connect()
    reader.autocommit = False
    reader.cursor().execute("SELECT count(*) FROM os_gateways")
    w = start_writer(start, "telemetry", redis, pg.uri, RETENTION_DAYS=30, EVENTS_RETENTION_DAYS=39,
                     SESSIONS_RETENTION_DAYS=10, PARTITIONS_AHEAD=5, DATABASE_WATERMARK_MB=1)

    def days(table):
        return [r["d"] for r in pg.query("SELECT day - CURRENT_DATE AS d FROM viw_partition_days "
                                         "WHERE parent = %s AND attached ORDER BY 1", table)]
    wait_for(lambda: days("os_gateway_metrics") == [-1, 0, 1, 2, 3, 4, 5], what="days of metrics")
    wait_for(lambda: days("agent_events") == [-39, -38, -1, 0, 1, 2, 3, 4, 5], what="days of events")
    wait_for(lambda: pg.query("SELECT conn_id FROM agent_sessions") == [{"conn_id": "new"}])
    wait_for(lambda: w.metric("viw_partition_days_ahead", table="agent_events") == 5)
    assert w.metric("viw_database_over_watermark") == 1
    w.proc.wait_log("watermark")
    reader.rollback()
    reader.close()
    # A frame of a day that has no partition yet gets one; one past retention is skipped, not a fault.
    c = redis.client
    old = (datetime.datetime.utcnow() - datetime.timedelta(days=7)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    ancient = (datetime.datetime.utcnow() - datetime.timedelta(days=50)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    add_telemetry(c, "gw-7", ts=old, cpu_pct=1)
    add_telemetry(c, "gw-50", ts=ancient, cpu_pct=1)
    wait_drained(c, "telemetry")
    assert [r["agent_id"] for r in pg.query("SELECT agent_id FROM os_gateway_metrics")] == ["gw-7"]
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status") == [{"n": 2}]
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_large_entries_keep_memory_flat(redis, pg, start):
    """200 results of 200 KB: the batch follows what entries weigh."""
    c = redis.client
    for i in range(200):
        add_result(c, f"c-{i}", rc=0, stdout="x" * 200_000)
    w = start_writer(start, "results", redis, pg.uri)
    peak = 0
    deadline = viwtest.time.monotonic() + 40
    while not writers.drained(c, "command_results", "results-writer"):
        peak = max(peak, writers.rss_bytes(w.proc.pid))
        assert viwtest.time.monotonic() < deadline
    assert pg.query("SELECT count(*) AS n, min(length(stdout_redacted)) AS l FROM agent_command_results") == [
        {"n": 200, "l": 200_000}]
    assert w.metric("viw_batch_rows_count") > 3  # not all at once


def test_check_config_names_a_manifest_that_would_stop_the_start(start, tmp):
    (tmp / "bad.json").write_text("{")
    for folder, word in ((tmp, "bad.json"), (tmp / "none", "No such file")):
        p = start("results-writer", args=["--check-config"], env={
            "RESULTS_WRITER_DATABASE_URL": "postgresql:///viw", "RESULTS_WRITER_VERBS_DIR": folder})
        assert p.wait_exit() == 78
        assert f"RESULTS_WRITER_VERBS_DIR {folder}" in p.text and word in p.text, p.text


@pytest.mark.parametrize("kind", ["telemetry", "results"])
def test_a_start_without_descriptors_exits_71_and_says_what_to_raise(redis, pg, start, tmp, kind):
    """From the fewest the dynamic loader gets along with, and the first number that is not refused works."""
    prefix, port = f"{kind.upper()}_WRITER", viwtest.free_port()
    env = {f"{prefix}_REDIS_URL": redis.unix_url, f"{prefix}_DATABASE_URL": pg.uri, "ASAN_OPTIONS": "detect_leaks=0",
           f"{prefix}_INTERNAL_BIND": f"127.0.0.1:{port}"}
    if kind == "results":
        env["RESULTS_WRITER_VERBS_DIR"] = str(tmp)
    for n in range(4, 40):
        p = start("/usr/bin/prlimit", args=[f"--nofile={n}", viwtest.BIN / f"{kind}-writer"], env=env)
        wait_for(lambda: not p.alive or p.find_logs("started"), 10)
        if p.alive:
            break
        assert p.wait_exit() == 71, (n, p.text)
        why = p.find_logs("start_failed")
        assert len(why) == 1 and why[0]["error"] == "Too many open files", (n, p.text)
        assert f"limit is {n} in all;" in why[0]["msg"] and "LimitNOFILE" in why[0]["msg"]
    assert 15 < n < 35
    wait_for(lambda: Writer(p, port).get("/_readyz")[0] == 200)
    p.stop()


@pytest.mark.parametrize("kind", ["telemetry", "results"])
def test_what_was_acknowledged_is_there_after_a_crash_of_postgres(redis, own_pg, start, kind):
    """Also where the database has been given synchronous_commit = off, and the log is written every ten seconds only."""
    server, c = own_pg.server, redis.client
    own_pg.query("ALTER SYSTEM SET wal_writer_delay = '10s'")
    own_pg.query(f"ALTER DATABASE {own_pg.name} SET synchronous_commit = off")
    own_pg.query("SELECT pg_reload_conf()")
    w = start_writer(start, kind, redis, own_pg.uri)
    for i in range(5):
        add_command(c, f"c-{i}")
        add_telemetry(c, f"gw-{i}", cpu_pct=1)
        wait_drained(c, kind)
    own_pg._conn.close()
    server.kill()
    server.start()
    table = {"telemetry": "os_gateway_status", "results": "agent_commands"}[kind]
    assert own_pg.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 5}]
    wait_for(lambda: w.get("/_readyz")[0] == 200, 15)
