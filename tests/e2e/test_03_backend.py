"""The examples of docs/backend.md, as they stand."""
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
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


def node_modules():
    """Where redis and pg of Node are: Debian's node-redis and node-pg, or .cache/node of this tree
    (npm install --prefix .cache/node redis@4 pg@8)."""
    for place in (viwtest.ROOT / ".cache" / "node" / "node_modules", Path("/usr/share/nodejs")):
        if (place / "redis").exists() and (place / "pg").exists():
            return place


@pytest.mark.skipif(not shutil.which("node") or not node_modules(), reason="needs node with redis and pg")
def test_the_node_example_sends_and_waits(chain, connect):
    chain.pg.query("DO $$ BEGIN CREATE ROLE backend_example LOGIN IN ROLE viw_reader; "
                   "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    ws = connect(chain.ws_url, headers=chain.headers("gw-1"))
    ws.hello("gw-1")
    script = re.search(r"```js\n(.*?)```", PAGE, re.S)[1] + """
(async () => {
  const to = await open(process.env.REDIS_URL, process.env.DATABASE_URL);
  const id = await send(to, 'gw-1', 'ECHO', { message: 'hi' }, 'admin-7');
  console.log(id);
  console.log(JSON.stringify([await wait(to, id, 10000), await wait(to, 'no-such-id', 200)]));
  await Promise.all([to.queue.quit(), to.rows.end()]);
})();
"""
    env = {"PATH": os.environ["PATH"], "NODE_PATH": str(node_modules()), "REDIS_URL": chain.redis.url,
           "DATABASE_URL": chain.pg.server.tcp_uri(chain.pg.name, "backend_example")}
    node = subprocess.Popen(["node", "-e", script], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        command = ws.expect("COMMAND")
        assert command["issued_by"] == "admin-7" and command["args"] == {"message": "hi"}
        ws.send({"type": "RESULT", "agent_id": "gw-1", "correlation_id": command["correlation_id"], "status": "success",
                 "rc": 0, "stdout": "hi"})
        out, _ = node.communicate(timeout=20)
    finally:
        node.kill()
        node.wait()
    lines = out.splitlines()
    assert node.returncode == 0 and lines[0] == command["correlation_id"], out
    row, none = json.loads(lines[1])
    assert (row["status"], row["rc"], row["stdout_redacted"], none) == ("done", 0, "hi", None)


GOFMT = shutil.which("gofmt") or next(map(str, Path("/usr/lib").glob("go-*/bin/gofmt")), None)


@pytest.mark.skipif(not GOFMT, reason="needs gofmt")
def test_the_go_example_parses_and_is_formatted():
    source = re.search(r"```go\n(.*?)```", PAGE, re.S)[1]
    done = subprocess.run([GOFMT, "-d"], input=source, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and not done.stdout, done.stdout
