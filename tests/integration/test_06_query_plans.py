"""What operators, admin pages and the writers' own chores ask at 100,000 gateways is answered from indexes, page
after page: the plans are those PostgreSQL itself used (auto_explain), of the statements the programs really sent."""
import json
import re
import subprocess

import pytest

import viwtest
import writers
from viwtest import ROOT, wait_for
from writers import start_writer, wait_drained

N = 100_000
LARGE = {"os_gateways", "os_gateway_status", "agent_sessions", "agent_commands", "agent_command_results",
         "agent_command_late_results", "dead_letters"}
FILL = [
    f"INSERT INTO os_gateways (agent_id, status, bridge_id, site, labels, epoch, last_seen) SELECT 'gw-' || i, "
    f"CASE WHEN i % 10 = 0 THEN 'offline' ELSE 'online' END, 'b' || i % 3, 'site-' || i % 50, '{{\"a\": \"b\"}}', 1, now() "
    f"FROM generate_series(1, {N}) i",
    f"INSERT INTO os_gateway_status (agent_id, cpu_pct, metrics, epoch, seq, ts) "
    f"SELECT 'gw-' || i, i % 100, jsonb_build_object('as_real_ones', repeat('x', 400)), 1, 1, now() FROM generate_series(1, {N}) i",
    f"INSERT INTO agent_sessions (conn_id, agent_id, bridge_id, epoch, connected_at, disconnected_at) "
    f"SELECT 'c' || i, 'gw-' || i, 'b' || i % 3, 1, now(), CASE WHEN i % 10 = 0 THEN now() - make_interval(mins => i) END FROM generate_series(1, {N}) i",
    f"INSERT INTO agent_commands (correlation_id, agent_id, command, params, status, issued_by_admin_id, issued_at, "
    f"queued_at, expires_at, completed_at, params_masked, signed) SELECT 'c-' || i, 'gw-' || i % 500, 'ECHO', '{{}}', "
    f"CASE WHEN i % 1000 = 0 THEN 'queued' ELSE 'done' END, 'admin-' || i % 50, now() - make_interval(secs => i), now(), "
    f"now() + interval '1 hour', CASE WHEN i % 1000 = 0 THEN NULL ELSE now() - make_interval(secs => i * 12) END, "
    f"false, false FROM generate_series(1, {N}) i",
    f"INSERT INTO agent_command_results (correlation_id, agent_id, status, recorded_at) "
    f"SELECT 'c-' || i, 'gw-' || i % 500, 'done', now() - make_interval(secs => i * 12) FROM generate_series(1, {N}) i",
    f"INSERT INTO agent_command_late_results (correlation_id, agent_id, status, entry_id) "
    f"SELECT 'c-' || i, 'gw-' || i % 500, 'done', i || '-0' FROM generate_series(1, {N // 10}) i",
    f"INSERT INTO dead_letters (stream, entry_id, reason, payload, at) SELECT 'viw.telemetry', i || '-0', 'bad_frame', "
    f"'x', now() - make_interval(mins => i) FROM generate_series(1, {N // 2}) i",
    "VACUUM ANALYZE",
]


@pytest.fixture(scope="module")
def filled(pg_cluster):
    db = pg_cluster.new_database()
    for sql in FILL:
        db.query(sql)
    yield db
    db.close()


class Explained:
    """What a database's server says of the plans it used, between the beginning and the end of a with."""

    def __init__(self, db):
        self.db, self.log = db, db.server.proc.log_path

    def __enter__(self):
        for setting in ("session_preload_libraries = auto_explain", "auto_explain.log_min_duration = 0",
                        "auto_explain.log_analyze = on", "auto_explain.log_timing = off",
                        "auto_explain.log_nested_statements = on", "auto_explain.log_format = json"):
            self.db.query(f"ALTER DATABASE {self.db.name} SET {setting}")
        self.begin = self.log.stat().st_size
        return self

    def __exit__(self, *why):
        self.db.query(f"ALTER DATABASE {self.db.name} RESET ALL")
        text = self.log.read_bytes()[self.begin:].decode()
        self.plans = [json.loads(x) for x in re.findall(r"plan:\n((?:\t.*\n)+)", text)]

    def __iter__(self):
        return ((p["Query Text"], list(nodes(p["Plan"]))) for p in self.plans)


def nodes(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def assert_paged(explained, excused=()):
    """No statement reads a large table from end to end, or sorts, hashes or fetches much more than a page."""
    bad = []
    for query, found in explained:
        if any(word in query for word in excused):
            continue
        for n in found:
            rows = n["Actual Rows"] * n.get("Actual Loops", 1)
            if n["Node Type"] == "Seq Scan" and n["Relation Name"] in LARGE or \
                    n["Node Type"] in ("Sort", "Hash", "Materialize", "Bitmap Heap Scan", "Index Scan") and rows > 5000:
                bad.append(f"{n['Node Type']} {n.get('Relation Name', '')} {int(rows)}: {' '.join(query.split())[:160]}")
    assert not bad, "\n".join(sorted(set(bad)))


QUESTIONS = {
    "gateways with status, next page": (
        "SELECT g.*, s.cpu_pct FROM (SELECT * FROM os_gateways WHERE agent_id > 'gw-5' ORDER BY agent_id LIMIT 50) g "
        "LEFT JOIN os_gateway_status s USING (agent_id) ORDER BY g.agent_id",
        {"os_gateways_pkey", "os_gateway_status_pkey"}),
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
        "SELECT * FROM agent_sessions WHERE agent_id = 'gw-7' ORDER BY epoch DESC LIMIT 20", {"agent_sessions_by_agent"}),
    "one gateway's events": (
        "SELECT * FROM agent_events WHERE agent_id = 'gw-7' ORDER BY at DESC, entry_id DESC LIMIT 20", None),
}


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
    filled.query("RESET enable_seqscan")
    for what, plan in plans.items():
        print(f"{what}: {plan}")


def test_operators_words(filled, redis):
    def viwctl(*args, code=0):
        done = subprocess.run([viwtest.BIN / "viwctl", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={"PATH": "/usr/bin:/bin", "VIWCTL_DATABASE_URL": filled.uri,
                                   "VIWCTL_REDIS_URL": redis.unix_url})
        assert done.returncode == code, (args, done.stderr)
        return done.stdout
    with Explained(filled) as plans:
        assert "gw-1" in viwctl("gateways")
        assert "gw-50000" not in viwctl("gateways", "--limit", "50", "--after", "gw-50000")
        viwctl("gateways", "--limit", "50", "--status", "offline")
        viwctl("gateways", "--limit", "50", "--site", "site-7", "--after", "gw-4")
        viwctl("gateways", "--limit", "50", "--label", "a=b")
        viwctl("gateways", "gw-77")
        viwctl("command", "c-77")
        viwctl("dead-letters", "list", "50")
        viwctl("dead-letters", "show", "7")
        viwctl("top", "--once")
        viwctl("doctor")
    asked = [q for q, _ in plans]
    assert len(asked) > 15 and any("order by s.cpu_pct" in q for q in asked)
    # The busiest of all can only be found by looking at all: one pass, one heap of 20 rows. doctor asks once in a while.
    assert_paged(plans, excused=["order by s.cpu_pct", "from dead_letters", "cert_days_left", "ts > updated_at",
                                  "metrics ->> 'helper'"])


def statements_of(page):
    return [s.strip() for s in re.search(r"```sql\n(.*?)```", page.read_text(), re.S)[1].split(";") if s.strip()]


def test_pages_of_the_backend_guide(filled):
    with Explained(filled) as plans:
        conn = filled.connect("viw")
        for sql in statements_of(ROOT / "docs" / "backend.md"):
            conn.cursor().execute(sql)
        conn.close()
    assert len(plans.plans) >= 4
    assert_paged(plans)


def test_looks_of_the_runbooks(filled):
    """An on-call must not make it worse."""
    asked = set()
    for page in (ROOT / "runbooks").glob("*.md"):
        for block in re.findall(r"```sh run\n(.*?)```", page.read_text(), re.S):
            asked |= set(re.findall(r'psql "\$DATABASE_URL" [^"\n]*"([^"\n]+)"', block))
    with Explained(filled) as plans:
        conn = filled.connect("viw")
        for sql in asked:
            conn.cursor().execute(sql)
        conn.close()
    assert len(asked) >= 8
    # These look at the last word of every gateway.
    assert_paged(plans, excused=["metrics ->> 'helper'", "SELECT version, count(*)", "ORDER BY last_seen"])


def test_what_the_writers_ask(filled, redis, start):
    c = redis.client
    for b in ("b0", "b1", "b2"):
        c.set(f"viw.bridge.{b}", "1|x")
    c.hset("viw.cid.none", "state", "done")
    filled.query("UPDATE agent_commands SET queued_at = now() - interval '1 hour' WHERE status = 'queued'")
    filled.query("SELECT viw_declare_lost('gw-1')")
    with Explained(filled) as plans:
        t = start_writer(start, "telemetry", redis, filled.uri, SESSIONS_RETENTION_DAYS=30)
        r = start_writer(start, "results", redis, filled.uri, RETENTION_DAYS=9, DEAD_LETTERS_RETENTION_DAYS=30)
        for i in range(8):
            for k in range(20):
                agent = f"gw-{i * 20 + k}"
                writers.add_event(c, agent, "connected", conn=f"n{i}-{k}", epoch=2)
                writers.add_hello(c, agent, conn=f"n{i}-{k}", epoch=2)
                writers.add_telemetry(c, agent, conn=f"n{i}-{k}", epoch=2, cpu_pct=1)
                writers.add_command(c, f"new-{i}-{k}", agent=agent)
                writers.add_result(c, f"new-{i}-{k}", agent=agent, rc=0)
            wait_drained(c, "telemetry")
            wait_drained(c, "results")
        for w in (t, r):
            wait_for(lambda: w.get("/_readyz")[0] == 200)
        wait_for(lambda: c.xlen("viw.commands") > 160, 20, "what Redis lost is queued again")
        filled.query("UPDATE os_gateways SET bridge_id = 'gone' WHERE agent_id LIKE 'gw-99%'")
        filled.wait_row("SELECT 1 FROM os_gateways WHERE bridge_id = 'gone' AND status = 'offline'", timeout=25)
    asked = " ".join(q for q, _ in plans)
    assert "FROM os_gateways g LEFT JOIN s" in asked
    for word in ("WITH RECURSIVE", "viw_purge_commands", "DELETE FROM dead_letters", "declared_at", "requeued_at",
                 "agent_sessions SET disconnected_at", "DELETE FROM agent_sessions"):
        assert word in asked, word
    # A dead bridge's gateways are all of its rows; the fleet's figures are of the whole fleet, in a hundredth of the time.
    assert_paged(plans, excused=["FOR UPDATE), off AS", "UPDATE os_gateways SET bridge_id = 'gone'", "LEFT JOIN s ON",
                                 "'$.cert_days_left", "unnest(array['expected'"])
