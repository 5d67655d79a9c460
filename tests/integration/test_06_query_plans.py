"""What an admin page asks is answered from indexes, page after page, at any size."""
import json

import pytest


@pytest.fixture
def filled(pg):
    pg.query("INSERT INTO os_gateways (agent_id, status, bridge_id) SELECT 'gw-' || i, "
             "CASE WHEN i % 10 = 0 THEN 'offline' ELSE 'online' END, 'b' || i % 3 "
             "FROM generate_series(1, 20000) i")
    pg.query("INSERT INTO os_gateway_status (agent_id, metrics, epoch, seq, ts) "
             "SELECT 'gw-' || i, '{}', 1, 1, now() FROM generate_series(1, 20000) i")
    pg.query("INSERT INTO agent_commands (correlation_id, agent_id, command, status, issued_by_admin_id, "
             "issued_at, queued_at, completed_at) SELECT 'c-' || i, 'gw-' || i % 500, 'ECHO', "
             "CASE WHEN i % 100 = 0 THEN 'queued' ELSE 'done' END, 'admin-' || i % 50, "
             "now() - make_interval(secs => i), now(), CASE WHEN i % 100 = 0 THEN NULL ELSE now() END "
             "FROM generate_series(1, 40000) i")
    pg.query("INSERT INTO agent_command_results (correlation_id, agent_id, status) "
             "SELECT 'c-' || i, 'gw-' || i % 500, 'done' FROM generate_series(1, 40000) i")
    pg.query("ANALYZE")
    return pg


QUESTIONS = {
    "gateways with status, next page": (
        "SELECT g.*, s.cpu_pct FROM (SELECT * FROM os_gateways WHERE agent_id > 'gw-5' ORDER BY agent_id "
        "LIMIT 50) g LEFT JOIN os_gateway_status s USING (agent_id) ORDER BY g.agent_id", {"os_gateways_pkey", "os_gateway_status_pkey"}),
    "gateways of one status, next page": (
        "SELECT * FROM os_gateways WHERE status = 'offline' AND agent_id > 'gw-5' ORDER BY agent_id LIMIT 50",
        {"os_gateways_by_status"}),
    "one gateway's last results": (
        "SELECT * FROM agent_command_results WHERE agent_id = 'gw-7' ORDER BY id DESC LIMIT 20",
        {"agent_command_results_by_agent"}),
    "the page of results before that": (
        "SELECT * FROM agent_command_results WHERE agent_id = 'gw-7' AND id < 20000 ORDER BY id DESC LIMIT 20",
        {"agent_command_results_by_agent"}),
    "a command by id, with its result": (
        "SELECT * FROM agent_commands c LEFT JOIN agent_command_results r USING (correlation_id) "
        "WHERE c.correlation_id = 'c-7'", {"agent_commands_pkey", "agent_command_results_correlation_id_key"}),
    "commands by issuer, next page": (
        "SELECT * FROM agent_commands WHERE issued_by_admin_id = 'admin-3' "
        "AND (issued_at, correlation_id) < (now() - interval '1 hour', 'c-0') "
        "ORDER BY issued_at DESC, correlation_id DESC LIMIT 50", {"agent_commands_by_issuer"}),
    "one gateway's commands": (
        "SELECT * FROM agent_commands WHERE agent_id = 'gw-7' ORDER BY issued_at DESC, correlation_id DESC "
        "LIMIT 50", {"agent_commands_by_agent"}),
    "open commands (requeue)": (
        "SELECT correlation_id FROM agent_commands WHERE status IN ('queued', 'offered', 'accepted') "
        "AND correlation_id > 'c-1' ORDER BY correlation_id LIMIT 200", {"agent_commands_open"}),
    "a day of one gateway's minutes": (
        "SELECT * FROM os_gateway_metrics WHERE agent_id = 'gw-7' AND bucket >= date_trunc('day', now()) "
        "ORDER BY bucket", None),
    "one gateway's sessions": (
        "SELECT * FROM agent_sessions WHERE agent_id = 'gw-7' ORDER BY epoch DESC LIMIT 20", None),
    "one gateway's events": (
        "SELECT * FROM agent_events WHERE agent_id = 'gw-7' ORDER BY at DESC, entry_id DESC LIMIT 20", None),
}


def nodes(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def test_admin_questions_use_indexes(filled):
    plans = {}
    for what, (sql, indexes) in QUESTIONS.items():
        filled.query("SET enable_seqscan = " + ("on" if indexes else "off"))  # tables without rows
        row = filled.query("EXPLAIN (FORMAT json, ANALYZE, BUFFERS) " + sql)[0]["QUERY PLAN"]
        top = (row if isinstance(row, list) else json.loads(row))[0]["Plan"]
        found = list(nodes(top))
        plans[what] = [(n["Node Type"], n.get("Index Name")) for n in found]
        assert not [n for n in found if n["Node Type"] == "Seq Scan"], (what, plans[what])
        used = {n["Index Name"] for n in found if n.get("Index Name")}
        assert not indexes or indexes <= used, (what, plans[what])
        # A page costs what it shows, not what the table holds.
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 1200, (what, top)
        assert not [n for n in found if n["Node Type"] == "Sort" and n["Actual Rows"] > 200], (what, plans[what])
    for what, plan in plans.items():
        print(f"{what}: {plan}")
