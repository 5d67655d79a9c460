"""What a SQLSTATE makes the writers do, with the server itself raising each: again, reconnect, pause, or one row's fault.
Nothing is lost in any case, and only a row's own fault makes a dead letter."""
import pytest

import writers
from viwtest import wait_for
from writers import add_command, start_writer, wait_drained

WAITED_FOR = {
    "retry": ["40001", "40P01", "55P03", "57014"],
    "reconnect": ["08006", "0A000", "25006", "26000", "53300", "57P01", "57P03"],
    # 53100 disk full, 58030 I/O, 42501 no right, 42P01 no table, 28000 login, 3D000 no database; XX000 and one of
    # nobody's: unknown ones wait for somebody to look, too.
    "pause": ["53100", "53200", "58030", "42501", "42P01", "28000", "3D000", "XX000", "QQ123"],
}
ROWS_FAULT = ["21000", "22021", "22003", "23514", "54000", "P0001"]


@pytest.fixture
def fault(pg):
    """fault(state): every batch with the command `bad` fails with it; fault(None): no more."""
    pg.query("CREATE TABLE fault (state text)")

    def set_fault(state):
        pg.query("TRUNCATE fault")
        if state:
            pg.query("INSERT INTO fault VALUES (%s)", state)
    pg.query("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE s text; BEGIN "
             "SELECT state INTO s FROM fault; IF s IS NOT NULL AND NEW.command = 'bad' THEN "
             "RAISE EXCEPTION 'as ordered' USING ERRCODE = s; END IF; RETURN NEW; END $$")
    pg.query("CREATE TRIGGER fail BEFORE INSERT ON agent_commands FOR EACH ROW EXECUTE FUNCTION fail()")
    return set_fault


def add_three(c, name):
    pipe = c.pipeline(transaction=True)
    for cid, command in ((f"{name}-1", "ECHO"), (name, "bad"), (f"{name}-2", "ECHO")):
        add_command(pipe, cid, command=command)
    pipe.execute()


@pytest.mark.timeout(120)
def test_what_is_waited_for(redis, pg, start, fault):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    sent = 0
    for verdict, states in WAITED_FOR.items():
        for state in states:
            before = w.metric("viw_pg_retries_total", verdict=verdict) or 0
            fault(state)
            add_three(c, f"c-{state}")
            sent += 3
            times = 1 if state == "57014" else 2  # the third of those halves the batch
            wait_for(lambda: (w.metric("viw_pg_retries_total", verdict=verdict) or 0) >= before + times, 10,
                     f"{state} makes it {verdict}")
            assert pg.query("SELECT count(*) AS n FROM agent_commands WHERE correlation_id LIKE %s",
                            f"c-{state}%") == [{"n": 0}]
            if verdict != "retry":
                assert w.get("/_readyz")[0] == 503
            fault(None)
            pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s", f"c-{state}", timeout=10)
            wait_for(lambda: w.get("/_readyz")[0] == 200)
    wait_drained(c, "results")
    assert pg.query("SELECT count(*) AS n FROM agent_commands") == [{"n": sent}]
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_what_is_one_rows_fault(redis, pg, start, fault):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    for state in ROWS_FAULT:
        fault(state)
        add_three(c, f"c-{state}")
        wait_drained(c, "results")
        assert [r["correlation_id"] for r in pg.query(
            "SELECT correlation_id FROM agent_commands WHERE correlation_id LIKE %s ORDER BY 1", f"c-{state}%")] == [
                f"c-{state}-1", f"c-{state}-2"]
        assert pg.query("SELECT count(*) AS n FROM dead_letters WHERE reason = %s", f"sqlstate_{state}") == [{"n": 1}]
    assert not any(w.metric("viw_pg_retries_total", verdict=v) for v in WAITED_FOR)


def test_sessions_have_timeouts(redis, pg, start):
    """Statement, lock and idle timeouts, as the server knows them in the writers' own sessions, whatever others get."""
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
        pg.query(f"ALTER DATABASE {pg.name} SET {name} = '1h'")
    pg.query("CREATE TABLE seen (name text, setting text)")
    pg.query("CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen SELECT name, setting "
             "FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'application_name', "
             "'idle_in_transaction_session_timeout', 'idle_session_timeout'); RETURN NULL; END $$")
    for table in ("agent_commands", "os_gateways"):
        pg.query(f"CREATE TRIGGER note AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION note()")
    start_writer(start, "results", redis, pg.uri)
    start_writer(start, "telemetry", redis, pg.uri)
    add_command(redis.client, "c-1")
    writers.add_hello(redis.client, "gw-1")
    wait_drained(redis.client, "results")
    wait_drained(redis.client, "telemetry")
    seen = {(r["name"], r["setting"]) for r in pg.query("SELECT DISTINCT * FROM seen")}
    assert seen == {("statement_timeout", "30000"), ("lock_timeout", "5000"),
                    ("idle_in_transaction_session_timeout", "60000"), ("idle_session_timeout", "0"),
                    ("application_name", "results-writer"), ("application_name", "telemetry-writer")}
