"""telemetry-writer: streams to rows, in order, idempotent, none lost."""
import datetime

import viwtest
import writers
from bridges import Bridge
from viwtest import wait_for
from writers import add_event, add_hello, add_telemetry, start_writer, wait_drained


def ts(base, offset_s):
    return (base + datetime.timedelta(seconds=offset_s)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def minute_ago():
    """A minute's start that is over."""
    return datetime.datetime.now(datetime.timezone.utc).replace(second=0, microsecond=0) - \
        datetime.timedelta(minutes=2)


def test_hello_event_and_telemetry_become_rows(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    add_event(redis.client, "gw-1", "connected")
    add_hello(redis.client, "gw-1", hostname="h1", site="north", labels={"a": "b"},
              supported_verbs=["ECHO"])
    add_telemetry(redis.client, "gw-1", seq=1, cpu_pct=12.5, mem_pct=50, disk_pct=70, load1=0.5, load5=0.4,
                  load15=0.3, containers_running=3, services={"nginx": "running"}, extra={"kept": [1, "é"]})
    row = pg.wait_row("SELECT * FROM os_gateways WHERE status = 'online' AND version IS NOT NULL")
    assert row["hostname"] == "h1" and row["site"] == "north" and row["labels"] == {"a": "b"}
    assert row["version"] == "1.0" and row["capabilities"] == ["exec"] and row["conn_id"] == "c1"
    status = pg.wait_row("SELECT * FROM os_gateway_status")
    assert (status["cpu_pct"], status["containers_running"], status["seq"]) == (12.5, 3, 1)
    assert status["services"] == {"nginx": "running"} and status["metrics"]["extra"] == {"kept": [1, "é"]}
    minute = pg.wait_row("SELECT * FROM os_gateway_metrics")
    assert (minute["samples"], minute["cpu_avg"], minute["cpu_max"], minute["mem_avg"]) == (1, 12.5, 12.5, 50)
    session = pg.wait_row("SELECT * FROM agent_sessions WHERE disconnected_at IS NULL")
    assert session["agent_id"] == "gw-1" and session["connected_at"]
    wait_drained(redis.client, "telemetry")


def test_older_frames_never_overwrite(redis, pg, start):
    """Order is epoch, seq, ts; whatever order the entries come in, and in separate batches too."""
    start_writer(start, "telemetry", redis, pg.uri)
    t = minute_ago()
    for epoch, seq, at, cpu in [(2, 5, 3, 25.0), (1, 99, 9, 1.0), (2, 4, 8, 2.0), (2, 5, 2, 3.0)]:
        add_telemetry(redis.client, "gw-1", epoch=epoch, seq=seq, ts=ts(t, at), cpu_pct=cpu)
        wait_drained(redis.client, "telemetry")
    assert pg.query("SELECT cpu_pct, epoch, seq FROM os_gateway_status") == [
        {"cpu_pct": 25.0, "epoch": 2, "seq": 5}]
    add_telemetry(redis.client, "gw-1", epoch=3, seq=0, ts=ts(t, 1), cpu_pct=30.0)
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE cpu_pct = 30")


def test_minutes_are_exact_when_batches_are_replayed(redis, pg, start):
    """Averages and maxima stay right when the same entries, alone or mixed with new ones, come again."""
    w = start_writer(start, "telemetry", redis, pg.uri)
    t = minute_ago()
    values = [10.0, 20.0, 60.0, 30.0, 5.0]
    for i, v in enumerate(values[:3]):
        add_telemetry(redis.client, "gw-1", seq=i, ts=ts(t, i), cpu_pct=v)
    wait_drained(redis.client, "telemetry")
    w.proc.stop()
    # All that was acknowledged is read again by a group that starts anew, with two frames more.
    redis.client.xgroup_setid("viw.telemetry", "telemetry-writer", "0")
    for i, v in list(enumerate(values))[3:]:
        add_telemetry(redis.client, "gw-1", seq=i, ts=ts(t, i), cpu_pct=v)
    add_telemetry(redis.client, "gw-1", seq=4, ts=ts(t, 4), cpu_pct=values[4])  # the bridge sent one twice
    start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(redis.client, "telemetry")
    assert pg.query("SELECT samples, cpu_avg, cpu_max FROM os_gateway_metrics") == [
        {"samples": 5, "cpu_avg": sum(values) / 5, "cpu_max": 60.0}]


def test_fields_a_person_set_stay(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    pg.query("INSERT INTO os_gateways (agent_id, display_name, site) VALUES ('gw-1', 'Front desk', 'HQ')")
    add_hello(redis.client, "gw-1", site="north", labels={"rack": "1"}, hostname="h1")
    row = pg.wait_row("SELECT * FROM os_gateways WHERE status = 'online'")
    assert (row["display_name"], row["site"], row["labels"], row["hostname"]) == (
        "Front desk", "HQ", {"rack": "1"}, "h1")
    pg.query("UPDATE os_gateways SET labels = '{\"by\": \"hand\"}'")
    add_hello(redis.client, "gw-1", conn="c2", epoch=2, site="south", labels={"rack": "2"}, hostname="h2")
    row = pg.wait_row("SELECT * FROM os_gateways WHERE hostname = 'h2'")
    assert (row["site"], row["labels"], row["reported_site"]) == ("HQ", {"by": "hand"}, "south")


def test_site_follows_the_agent_until_somebody_writes_it(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    add_hello(redis.client, "gw-1", site="north")
    pg.wait_row("SELECT 1 FROM os_gateways WHERE site = 'north'")
    add_hello(redis.client, "gw-1", epoch=2, site="south")
    pg.wait_row("SELECT 1 FROM os_gateways WHERE site = 'south'")


def test_disconnect_ends_the_session_and_the_newest_connection_counts(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    add_event(redis.client, "gw-1", "connected", conn="c1", epoch=10)
    add_event(redis.client, "gw-1", "connected", conn="c2", epoch=11)
    add_event(redis.client, "gw-1", "disconnected", reason="superseded 4000", conn="c1", epoch=10)
    wait_drained(redis.client, "telemetry")
    assert pg.query("SELECT status, conn_id FROM os_gateways") == [{"status": "online", "conn_id": "c2"}]
    ended = pg.query("SELECT close_reason FROM agent_sessions WHERE conn_id = 'c1' "
                     "AND disconnected_at IS NOT NULL")
    assert ended == [{"close_reason": "superseded 4000"}]
    add_event(redis.client, "gw-1", "disconnected", reason="gone", conn="c2", epoch=11)
    pg.wait_row("SELECT 1 FROM os_gateways WHERE status = 'offline'")
    # A frame of that connection that was still in the stream does not bring it back.
    add_telemetry(redis.client, "gw-1", conn="c2", epoch=11, cpu_pct=1)
    wait_drained(redis.client, "telemetry")
    assert pg.query("SELECT status FROM os_gateways") == [{"status": "offline"}]
    assert pg.query("SELECT count(*) AS n FROM agent_events") == [{"n": 4}]


def test_decommissioned_stays(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    pg.query("INSERT INTO os_gateways (agent_id, status) VALUES ('gw-1', 'decommissioned')")
    add_event(redis.client, "gw-1", "connected")
    add_hello(redis.client, "gw-1")
    wait_drained(redis.client, "telemetry")
    assert pg.query("SELECT status FROM os_gateways") == [{"status": "decommissioned"}]


def test_audit_records_are_kept_once(redis, pg, start):
    w = start_writer(start, "telemetry", redis, pg.uri)
    add_event(redis.client, "gw-1", "audit", record={"seq": 7})
    row = pg.wait_row("SELECT * FROM agent_events WHERE event = 'audit'")
    assert row["frame"]["record"] == {"seq": 7}
    w.proc.stop()
    redis.client.xgroup_setid("viw.agent_events", "telemetry-writer", "0")
    start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(redis.client, "telemetry")
    assert pg.query("SELECT count(*) AS n FROM agent_events") == [{"n": 1}]


def test_bridge_that_died_silently_turns_its_gateways_offline(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    redis.client.set("viw.bridge.dead", "1|x")
    redis.client.set("viw.bridge.well", "1|x")
    add_event(redis.client, "gw-1", "connected", conn="c1", epoch=10, bridge="dead")
    add_event(redis.client, "gw-2", "connected", conn="c2", epoch=10, bridge="well")
    wait_drained(redis.client, "telemetry")
    redis.client.delete("viw.bridge.dead")
    row = pg.wait_row("SELECT * FROM os_gateways WHERE status = 'offline'", timeout=25)
    assert row["agent_id"] == "gw-1"
    pg.wait_row("SELECT 1 FROM agent_sessions WHERE conn_id = 'c1' AND close_reason = 'bridge_lost' "
                "AND disconnected_at IS NOT NULL")
    # The bridge was only frozen: a frame of that connection tells that it lives.
    redis.client.set("viw.bridge.dead", "1|x")
    add_telemetry(redis.client, "gw-1", conn="c1", epoch=10, bridge="dead", cpu_pct=1)
    pg.wait_row("SELECT 1 FROM os_gateways WHERE agent_id = 'gw-1' AND status = 'online'")
    pg.wait_row("SELECT 1 FROM agent_sessions WHERE conn_id = 'c1' AND disconnected_at IS NULL")
    assert pg.query("SELECT status FROM os_gateways WHERE agent_id = 'gw-2'") == [{"status": "online"}]


def test_connections_of_a_bridges_former_life_end(redis, pg, start):
    start_writer(start, "telemetry", redis, pg.uri)
    redis.client.set("viw.bridge.b1", "100|x")
    add_event(redis.client, "gw-1", "connected", conn="c1", epoch=150)
    pg.wait_row("SELECT 1 FROM os_gateways WHERE status = 'online'")
    redis.client.set("viw.bridge.b1", "200|y")  # killed and started again within its lease
    pg.wait_row("SELECT 1 FROM os_gateways WHERE status = 'offline'", timeout=15)
    pg.wait_row("SELECT 1 FROM agent_sessions WHERE close_reason = 'bridge_restarted'")


def test_a_frame_as_large_as_the_bridge_takes_becomes_a_row(redis, pg, start, connect):
    start_writer(start, "telemetry", redis, pg.uri)
    agent = Bridge(start, redis, connect, MAX_FRAME_BYTES=16 << 20).agent("gw-1")
    agent.send(writers.frame("gw-1", seq=1, cpu_pct=12.5, containers=[{"id": "x" * (12 << 20)}]))
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE cpu_pct = 12.5 AND length(metrics::text) > 12 << 20", timeout=20)
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_one_bad_entry_never_blocks_its_neighbours(redis, pg, start):
    """Entries that no row can hold go to dead_letters with their bytes; the others are stored."""
    c = redis.client
    for i in range(40):
        add_telemetry(c, f"gw-{i:02}", seq=i, cpu_pct=i)
    fields = writers.origin("gw-bad")
    bad_json = c.xadd("viw.telemetry", {**fields, "frame": "{\"type\":\"TELEMETRY\""})
    other = c.xadd("viw.telemetry", {**fields, "frame": writers.json.dumps(writers.frame("gw-other", cpu_pct=1))})
    c.xadd("viw.telemetry", {**fields, "agent_id": "../etc", "frame": "{}"})
    # Only PostgreSQL refuses it, so the batch is halved to find the row.
    pg.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' "
             "USING ERRCODE = '22021'; END $$")
    pg.query("CREATE TRIGGER refuse BEFORE INSERT ON os_gateway_status FOR EACH ROW "
             "WHEN (NEW.agent_id = 'gw-bad') EXECUTE FUNCTION refuse()")
    latin1 = c.xadd("viw.telemetry", {**fields, "of_nobody": b"\xff",
                                      "frame": writers.json.dumps(writers.frame("gw-bad", cpu_pct=1))})
    for i in range(40, 80):
        add_telemetry(c, f"gw-{i:02}", seq=i, cpu_pct=i)
    w = start_writer(start, "telemetry", redis, pg.uri)
    wait_drained(c, "telemetry")
    assert pg.query("SELECT count(*) AS n FROM os_gateway_status") == [{"n": 80}]
    dead = {r["entry_id"]: r for r in pg.query("SELECT * FROM dead_letters ORDER BY id")}
    assert dead[bad_json]["reason"] == "bad_frame" and dead[other]["reason"] == "agent_mismatch"
    assert dead[latin1]["reason"] == "sqlstate_22021" and len(dead) == 4
    assert b"\xff" in bytes(dead[latin1]["payload"])
    # Counted and told once each, however often the batch was halved, with who and which.
    told = {x["msg"].split()[1]: x for x in w.proc.find_logs("dead_letter")}
    assert set(told) == set(dead) and len(w.proc.find_logs("dead_letter")) == 4
    assert told[bad_json]["agent_id"] == "gw-bad" and "22021" in told[latin1]["detail"]
    for reason in ("bad_frame", "agent_mismatch", "bad_agent_id", "sqlstate_22021"):
        assert w.metric("viw_dead_letters_total", reason=reason) == 1, reason
    wait_for(lambda: w.metric("viw_rows_written_total", table="dead_letters") == 4)
