"""How the writers work: batches, transactions, acknowledgements, what is kept how long, what they say of themselves."""
import re

import pytest

import viwtest
import writers
from viwtest import wait_for
from writers import add_command, add_command_event, add_event, add_hello, add_result, add_telemetry, start_writer, wait_drained

TABLES = {
    "results": ("agent_commands", "agent_command_results", "agent_command_late_results", "dead_letters"),
    "telemetry": ("os_gateways", "os_gateway_status", "os_gateway_metrics", "agent_sessions", "agent_events", "dead_letters"),
}


def rows_of(pg, kind):
    return {t: pg.query(f"SELECT t.* FROM {t} t ORDER BY 1, 2") for t in TABLES[kind]}


def fill(c):
    """Something of everything, some of it twice, some of it no row."""
    for i in range(30):
        agent = f"gw-{i % 10}"
        add_event(c, agent, "connected", conn=f"c{i}", epoch=i)
        add_hello(c, agent, conn=f"c{i}", epoch=i, site="north")
        add_telemetry(c, agent, conn=f"c{i}", epoch=i, seq=i, cpu_pct=i)
        add_event(c, agent, "disconnected", reason="gone", conn=f"c{i}", epoch=i)
        add_command(c, f"c-{i}", agent=agent, params={"token": "t"})
        add_command_event(c, f"c-{i}", "offered", agent=agent)
        add_result(c, f"c-{i}", agent=agent, rc=i)
    add_result(c, "c-1", rc=0)
    for stream in ("telemetry", "command_results"):
        c.xadd(f"viw.{stream}", {"agent_id": "gw-1", "frame": "{"})


@pytest.fixture
def no_xack(redis):
    """Redis refuses every XACK until it is called."""
    def allow():
        redis.client.execute_command("ACL", "SETUSER", "default", "+xack")
    redis.client.execute_command("ACL", "SETUSER", "default", "-xack")
    yield allow
    allow()


def test_what_is_stored_but_not_acknowledged_is_read_again_and_changes_nothing(redis, pg, start, no_xack):
    """Each entry is stored all the same, stays pending, and comes again: to the same process, then to the next."""
    c = redis.client
    fill(c)
    ws = {kind: start_writer(start, kind, redis, pg.uri) for kind in TABLES}
    sent = {s: c.xlen(f"viw.{s}") for s in ("telemetry", "command_results", "commands")}
    pg.wait_row("SELECT 1 FROM agent_command_late_results")
    pg.wait_row("SELECT 1 FROM os_gateway_status HAVING count(*) = 10")
    pg.wait_row("SELECT 1 FROM dead_letters HAVING count(*) = 2")

    def pending(stream, kind):
        return c.xpending(f"viw.{stream}", f"{kind}-writer")["pending"]
    wait_for(lambda: pending("telemetry", "telemetry") == sent["telemetry"])
    wait_for(lambda: pending("command_results", "results") == sent["command_results"])
    wait_for(lambda: pending("commands", "results") == sent["commands"])
    wait_for(lambda: pg.query("SELECT count(*) AS n FROM agent_commands WHERE completed_at IS NOT NULL") == [{"n": 30}])
    for w in ws.values():
        w.proc.kill()
    before = {kind: rows_of(pg, kind) for kind in TABLES}
    no_xack()
    for kind in TABLES:
        start_writer(start, kind, redis, pg.uri)
        wait_drained(c, kind)
    for kind, tables in before.items():
        now = rows_of(pg, kind)
        for table, rows in tables.items():
            assert now[table] == rows, table


def test_a_batch_is_one_transaction_and_grows_with_what_waits(redis, pg, start):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    add_command(c, "c-first")
    wait_drained(c, "results")
    w.proc.freeze()
    for i in range(3000):
        add_command(c, f"c-{i:04}")
    w.proc.thaw()
    wait_drained(c, "results", 30)
    batches = pg.query("SELECT count(DISTINCT xmin::text) AS n FROM agent_commands")[0]["n"]
    assert batches == w.metric("viw_batch_rows_count") and w.metric("viw_batch_rows_sum") == 3001
    # 64 and four times as many each time: far from one by one, and from all at once.
    assert 4 <= batches <= 10


def test_no_batch_reads_a_young_table_whole(redis, pg, start):
    """The planner still takes it for empty: nobody has analyzed it."""
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri, BATCH_MAX="50")

    def read():
        return pg.query("SELECT COALESCE(seq_tup_read, 0) AS n FROM pg_stat_user_tables WHERE relname = 'agent_commands'")[0]["n"]
    for i in range(2000):
        add_command(c, f"c-{i:04}")
        add_result(c, f"c-{i:04}", rc=0)
    wait_drained(c, "results")
    w.proc.stop()
    wait_for(lambda: pg.query("SELECT n_tup_ins AS n FROM pg_stat_user_tables WHERE relname = 'agent_command_results'")[0]["n"] == 2000)
    assert read() < 2000


def test_frames_of_one_agent_are_folded_into_one_row_a_batch(redis, pg, start):
    c = redis.client
    pipe = c.pipeline(transaction=False)
    now = viwtest.rfc3339()
    for i in range(2000):
        add_telemetry(pipe, f"gw-{i % 4}", ts=now, seq=i, cpu_pct=i % 100)
    pipe.execute()
    w = start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry", 30)
    assert pg.query("SELECT sum(samples) AS n, count(*) AS rows FROM os_gateway_metrics") == [{"n": 2000, "rows": 4}]
    for table in ("os_gateway_status", "os_gateway_metrics"):
        assert w.metric("viw_rows_written_total", table=table) <= 4 * w.metric("viw_batch_rows_count") < 200


def test_commands_and_dead_letters_past_their_retention_go(redis, pg, start):
    for days, name in ((20, "old"), (5, "new")):
        pg.query("INSERT INTO agent_commands (correlation_id, agent_id, status, completed_at) "
                 f"VALUES ('c-{name}', 'gw-1', 'done', now() - interval '{days} d')")
        pg.query(f"INSERT INTO agent_command_results (correlation_id, agent_id, status) VALUES ('c-{name}', 'gw-1', 'done')")
        pg.query("INSERT INTO agent_command_late_results (correlation_id, agent_id, status, entry_id) "
                 f"VALUES ('c-{name}', 'gw-1', 'failed', '{name}')")
        pg.query("INSERT INTO dead_letters (stream, entry_id, reason, payload, at) "
                 f"VALUES ('s', '{name}', 'x', '', now() - interval '{days} d')")
    pg.query("INSERT INTO agent_commands (correlation_id, agent_id, status, queued_at, expires_at) "
             "VALUES ('c-open', 'gw-1', 'queued', now() - interval '20 d', now() + interval '1 h')")
    start_writer(start, "results", redis, pg.uri, RETENTION_DAYS=10, DEAD_LETTERS_RETENTION_DAYS=10)
    wait_for(lambda: pg.query("SELECT entry_id FROM dead_letters") == [{"entry_id": "new"}])
    assert [r["correlation_id"] for r in pg.query("SELECT correlation_id FROM agent_commands ORDER BY 1")] == ["c-new", "c-open"]
    for table in ("agent_command_results", "agent_command_late_results"):
        assert pg.query(f"SELECT correlation_id FROM {table}") == [{"correlation_id": "c-new"}]


def test_what_backends_may_rely_on_is_in_metrics(redis, pg, start):
    for kind, stream in (("telemetry", "telemetry"), ("results", "commands")):
        w = start_writer(start, kind, redis, pg.uri)
        redis.client.xadd(f"viw.{stream}", {"agent_id": "gw-1"})  # a dead letter
        wait_drained(redis.client, kind)
        wait_for(lambda: w.metric("viw_stream_lag_entries", stream=f"viw.{stream}") == 0)
        text = w.get("/metrics")[1]
        for name in ("viw_stream_lag_entries", "viw_stream_lag_seconds", "viw_rows_written_total", "viw_batch_rows_bucket",
                     "viw_dead_letters_total", "viw_pg_up", "viw_redis_up"):
            assert re.search(rf"^{name}(\{{.+\}})? [0-9.e+]+$", text, re.M), name
