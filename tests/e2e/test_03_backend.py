"""The examples of docs/backend.md, as they stand."""
import re

import viwtest

PAGE = (viwtest.ROOT / "docs" / "backend.md").read_text()


def test_the_python_example_sends_waits_and_cancels(chain, connect):
    chain.pg.query("DO $$ BEGIN CREATE ROLE backend_example LOGIN IN ROLE viw_reader; "
                   "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    example = {"REDIS_URL": chain.redis.url, "DATABASE_URL": chain.pg.uri_as("backend_example")}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], example)
    ws = connect(chain.ws_url, headers=chain.headers("gw-1"))
    ws.hello("gw-1")
    cid = example["send"]("gw-1", "ECHO", {"message": "hi"}, "admin-7")
    assert example["wait"](cid, 0.2) is None
    assert ws.expect("COMMAND")["issued_by"] == "admin-7"
    ws.send({"type": "RESULT", "agent_id": "gw-1", "correlation_id": cid, "status": "success", "rc": 0, "stdout": "hi"})
    assert example["wait"](cid, 10) == ("done", 0, "hi", None, None, None)

    late = example["send"]("gw-absent", "ECHO", {}, "admin-7")
    example["cancel"]("gw-absent", late)
    assert example["wait"](late, 10)[0] == "cancelled"
    example["rows"].close()


def test_the_sql_examples_run_and_find_rows(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-1"))
    ws.hello("gw-1")
    ws.send({"type": "TELEMETRY", "agent_id": "gw-1", "ts": viwtest.rfc3339(), "metrics": {"cpu_pct": 5}})
    chain.pg.wait_row("SELECT 1 FROM os_gateway_metrics WHERE agent_id = 'gw-1'")
    chain.redis.xadd_command("gw-1", "ECHO")
    chain.pg.wait_row("SELECT 1 FROM agent_commands WHERE agent_id = 'gw-1'")
    chain.pg.query("DO $$ BEGIN CREATE ROLE backend_example LOGIN IN ROLE viw_reader; "
                   "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    conn = chain.pg.connect("backend_example")
    statements = [s for s in re.search(r"```sql\n(.*?)```", PAGE, re.S)[1].split(";") if s.strip()]
    assert len(statements) == 5
    for statement in statements:
        with conn.cursor() as cur:
            cur.execute(statement)
            assert cur.fetchall(), statement
    conn.close()
