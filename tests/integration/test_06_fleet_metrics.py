"""What alarms need to know of gateways, from the writers: agents behind NAT cannot be scraped."""
import json

import writers
from viwtest import wait_for


def add_gateway(pg, agent_id, status, since="2 days", sessions=(), **metrics):
    """sessions: (from, to) as hours ago; to None: still connected."""
    pg.query("INSERT INTO os_gateways (agent_id, status, first_seen) VALUES (%s, %s, now() - %s::interval)", agent_id, status, since)
    pg.query("INSERT INTO os_gateway_status (agent_id, epoch, seq, ts, updated_at, metrics) VALUES (%s, 1, 1, now(), now(), %s)",
             agent_id, json.dumps(metrics))
    for i, (start, end) in enumerate(sessions):
        pg.query("INSERT INTO agent_sessions (conn_id, agent_id, epoch, connected_at, disconnected_at) VALUES (%s, %s, %s, "
                 "now() - %s * interval '1 hour', now() - %s * interval '1 hour')", f"{agent_id}-{i}", agent_id, i, start, end)


def test_gauges_of_the_fleet(start, redis, pg):
    add_gateway(pg, "gw-1", "offline", sessions=[(48, 12), (11, 5)], helper="down", cert_days_left={"client": 200})  # 12 + 6 h
    add_gateway(pg, "gw-2", "offline", sessions=[(30, 1)], helper="up", cert_days_left={"client": 200, "trust_bundle": 3})  # 23 h
    add_gateway(pg, "gw-3", "expected", since="1 hour", cert_days_left={"client": 300, "backend": 29})
    add_gateway(pg, "gw-4", "decommissioned", helper="down", cert_days_left={"client": -4})
    # Online without a bridge: no lease will close it, since it has no open session.
    add_gateway(pg, "gw-5", "online", since="1 hour", helper="down", cert_days_left={})
    w = writers.start_writer(start, "telemetry", redis, pg.uri)
    wait_for(lambda: w.metric("viw_gateways", status="offline") == 2, 15, "the first look")
    assert w.metric("viw_gateways", status="online") == w.metric("viw_gateways", status="expected") == 1
    assert w.metric("viw_gateways", status="decommissioned") == 1
    assert w.metric("viw_gateways_helper_down") == 1
    assert w.metric("viw_gateways_certificate_ends") == 2
    worst, mean = (w.metric("viw_gateways_uptime_ratio", of=of) for of in ("worst", "mean"))
    assert abs(worst - 18 / 24) < 0.01 and abs(mean - (18 + 23) / 48) < 0.01


def test_odd_words_of_one_gateway_blind_nobody(start, redis, pg):
    """An agent may say anything of itself; the others' alarms must not hang on it."""
    for i, days in enumerate(("soon", [1, "x"], {"client": "soon"}, {"client": {"a": 1}}, {"client": "NaN"}, None, True)):
        add_gateway(pg, f"gw-odd-{i}", "offline", since="1 hour", helper=["down"], cert_days_left=days)
    add_gateway(pg, "gw-1", "offline", since="1 hour", cert_days_left={"client": "soon", "backend": 3})
    add_gateway(pg, "gw-2", "online", since="1 hour", helper="down")
    w = writers.start_writer(start, "telemetry", redis, pg.uri)
    wait_for(lambda: w.metric("viw_gateways_certificate_ends") == 1 and w.metric("viw_gateways_helper_down") == 1, 15)
    assert not w.proc.find_logs("postgres_failed")


def test_ended_commands_are_counted_once_by_status(start, redis, pg):
    w = writers.start_writer(start, "results", redis, pg.uri)
    for cid, status in (("c-1", "success"), ("c-2", "error"), ("c-3", "error"), ("c-4", "expired")):
        writers.add_command(redis.client, cid)
        writers.add_result(redis.client, cid, status=status)
    writers.add_result(redis.client, "c-1", status="error")  # late evidence, not a second end
    writers.wait_drained(redis.client, "results")
    counts = {s: w.metric("viw_command_results_total", status=s) for s in ("done", "failed", "expired", "unknown")}
    assert counts == {"done": 1, "failed": 2, "expired": 1, "unknown": 0}
