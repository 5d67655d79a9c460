"""Each role can do its work and nothing else, tried against the server."""
import psycopg2
import pytest

import viwtest
import writers
from writers import start_writer, wait_drained

ROLES = {"telemetry": "viw_telemetry_writer", "results": "viw_results_writer", "reader": "viw_reader",
         "operator": "viw_operator"}


@pytest.fixture
def logins(pg):
    """Login roles that hold one role each, as an installation makes them."""
    for word, role in ROLES.items():
        pg.query(f"DO $$ BEGIN CREATE ROLE login_{word} LOGIN IN ROLE {role}; "
                 "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    return {word: f"login_{word}" for word in ROLES}


def refused(pg, user, sql):
    conn = pg.connect(user)
    try:
        with conn.cursor() as cur:
            cur.execute(sql)
        return False
    except psycopg2.errors.InsufficientPrivilege:
        return True
    finally:
        conn.close()


MUST_NOT = {
    "telemetry": [
        "SELECT * FROM agent_commands", "INSERT INTO agent_command_results (correlation_id, agent_id, status) "
        "VALUES ('a', 'b', 'done')", "UPDATE os_gateways SET display_name = 'x'", "DELETE FROM os_gateways",
        "UPDATE agent_events SET reason = 'x'", "DELETE FROM agent_events", "DROP TABLE agent_events",
        "TRUNCATE os_gateway_metrics", "ALTER TABLE os_gateway_metrics ADD COLUMN x int",
        "CREATE TABLE public.mine (a int)", "CREATE TABLE viw_partitions.mine (a int)",
        "SELECT viw_declare_lost('gw-1')", "SELECT * FROM pg_authid", "UPDATE dead_letters SET reason = 'x'",
        "SELECT viw_purge_commands(9, 1)", "INSERT INTO schema_migrations VALUES (9, 'x', 'x', now(), 1)"],
    "results": [
        "SELECT * FROM os_gateways", "SELECT * FROM os_gateway_status", "DELETE FROM agent_commands",
        "UPDATE agent_command_results SET rc = 1", "DELETE FROM agent_command_results",
        "UPDATE agent_command_late_results SET rc = 1", "TRUNCATE agent_commands",
        "SELECT viw_make_partitions('agent_events', '2026-01-01', '2026-01-02')", "SET ROLE viw_retention",
        "ALTER TABLE agent_commands DISABLE TRIGGER ALL", "CREATE TABLE public.mine (a int)",
        "INSERT INTO agent_lost_declarations VALUES ('gw-1', now(), 'me')", "SELECT viw_declare_lost('gw-1')"],
    "reader": [
        "INSERT INTO os_gateways (agent_id) VALUES ('x')", "UPDATE agent_commands SET status = 'done'",
        "DELETE FROM dead_letters", "SELECT viw_declare_lost('gw-1')", "SET ROLE viw_retention",
        "CREATE TABLE public.mine (a int)", "SELECT viw_purge_commands(9, 1)"],
    "operator": [
        "UPDATE os_gateways SET last_seen = now()", "UPDATE agent_commands SET status = 'done'",
        "DELETE FROM os_gateways", "DELETE FROM agent_command_results",
        "INSERT INTO agent_lost_declarations VALUES ('gw-1', now(), 'me')"],
}


@pytest.mark.parametrize("word", sorted(MUST_NOT))
def test_roles_must_not(pg, logins, word):
    allowed = [sql for sql in MUST_NOT[word] if not refused(pg, logins[word], sql)]
    assert allowed == []


def test_writers_work_with_nothing_but_their_role(redis, pg, logins, start):
    c = redis.client
    pg.query("CREATE TABLE viw_partitions.agent_events_20200101 (LIKE agent_events INCLUDING ALL)")
    pg.query("ALTER TABLE viw_partitions.agent_events_20200101 OWNER TO viw_retention")
    pg.query("ALTER TABLE agent_events ATTACH PARTITION viw_partitions.agent_events_20200101 "
             "FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')")
    t = start_writer(start, "telemetry", redis, pg.uri_as(logins["telemetry"]))
    r = start_writer(start, "results", redis, pg.uri_as(logins["results"]), RETENTION_DAYS=9)
    writers.add_event(c, "gw-1", "connected")
    writers.add_hello(c, "gw-1")
    writers.add_telemetry(c, "gw-1", seq=1, cpu_pct=1)
    writers.add_event(c, "gw-1", "disconnected", reason="bye")
    c.xadd("viw.telemetry", {"agent_id": "gw-1", "frame": "{"})
    writers.add_command(c, "c-1")
    writers.add_command_event(c, "c-1", "offered")
    writers.add_result(c, "c-1", rc=0)
    writers.add_result(c, "c-1", rc=1)
    c.xadd("viw.command_results", {"frame": "{"})
    wait_drained(c, "telemetry")
    wait_drained(c, "results")
    for table, n in {"os_gateways": 1, "os_gateway_status": 1, "os_gateway_metrics": 1, "agent_sessions": 1,
                     "agent_events": 2, "agent_commands": 1, "agent_command_results": 1,
                     "agent_command_late_results": 1, "dead_letters": 2}.items():
        assert pg.query(f"SELECT count(*) AS n FROM {table}") == [{"n": n}], table
    t.proc.wait_log("partition_dropped")
    for w in (t, r):
        assert not [x for x in w.proc.logs if "42501" in str(x)], w.proc.tail()


def test_reader_and_operator_can_do_their_work(pg, logins):
    for table in ("os_gateways", "os_gateway_status", "os_gateway_metrics", "agent_sessions", "agent_events",
                  "agent_commands", "agent_command_results", "agent_command_late_results", "dead_letters",
                  "schema_migrations"):
        assert not refused(pg, logins["reader"], f"SELECT * FROM {table}")
    op = logins["operator"]
    assert not refused(pg, op, "INSERT INTO os_gateways (agent_id, display_name) VALUES ('gw-9', 'Nine')")
    assert not refused(pg, op, "UPDATE os_gateways SET site = 'HQ', status = 'decommissioned'")
    assert not refused(pg, op, "SELECT viw_declare_lost('gw-9')")
    assert pg.query("SELECT declared_by FROM agent_lost_declarations") == [{"declared_by": op}]
    with pytest.raises(psycopg2.Error):
        conn = pg.connect(op)
        conn.cursor().execute("SELECT viw_declare_lost('not an id')")


def test_a_migrator_without_superuser_is_enough(pg):
    """An owner that may make roles can migrate a database of its own."""
    import subprocess
    name = pg.name + "_own"
    pg.query("DO $$ BEGIN CREATE ROLE login_owner LOGIN CREATEROLE; "
             "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    # Roles belong to the server: whoever made them for its first database must give them to this owner. Since
    # PostgreSQL 16 CREATEROLE alone does not allow to grant what another made.
    for role in ("viw_retention", "viw_reader"):
        pg.query(f"GRANT {role} TO login_owner WITH ADMIN OPTION")
    pg.server.sql("postgres", f"CREATE DATABASE {name} OWNER login_owner")
    db = viwtest.Database(pg.server, name)
    try:
        done = subprocess.run([viwtest.BIN / "viw-migrate", db.uri_as("login_owner")], text=True,
                              env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
    finally:
        db.close()
