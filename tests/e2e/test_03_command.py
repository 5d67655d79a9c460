"""One command, sent by redis-cli as a backend would, ends as one result row in PostgreSQL."""
import json
import subprocess
import uuid

import pytest
import viwtest


def redis_cli(chain, *words):
    return subprocess.run(["redis-cli", "-s", chain.redis.socket, *words], check=True, text=True,
                          stdout=subprocess.PIPE).stdout.strip()


def send(chain, agent_id, command, params, **fields):
    cid = str(uuid.uuid4())
    extra = [w for k, v in fields.items() for w in (k, str(v))]
    redis_cli(chain, "XADD", "viw.commands", "*", "correlation_id", cid, "agent_id", agent_id,
              "command", command, "params", json.dumps(params), *extra)
    return cid


def result_of(chain, cid, timeout=15):
    return chain.pg.wait_row("SELECT * FROM agent_command_results WHERE correlation_id = %s", cid, timeout=timeout)


def test_a_command_sent_by_redis_cli_is_answered_by_a_hand_made_agent(chain, connect):
    """The bridge's side alone: offered in order, RESULT stored, acknowledged, rows written."""
    ws = connect(chain.ws_url, headers=chain.headers("gw-hand"))
    ws.hello("gw-hand")
    cid = send(chain, "gw-hand", "ECHO", {"message": "hi"}, issued_by_admin_id="admin-1")
    command = ws.expect("COMMAND", correlation_id=cid)
    assert command["verb"] == "ECHO" and command["args"] == {"message": "hi"}
    assert 0 < command["ttl_remaining_ms"] <= 60000
    ws.send({"type": "COMMAND_ACK", "agent_id": "gw-hand", "correlation_id": cid})
    ws.send({"type": "RESULT", "agent_id": "gw-hand", "correlation_id": cid, "status": "success", "rc": 0,
             "stdout": "hi", "stderr": "", "command": "ECHO", "duration_ms": 1})
    ws.expect("RESULT_ACK", correlation_id=cid)

    row = result_of(chain, cid)
    assert (row["status"], row["rc"], row["stdout_redacted"], row["command"], row["issued_by_admin_id"]) == (
        "done", 0, "hi", "ECHO", "admin-1")
    ledger = chain.pg.wait_row("SELECT * FROM agent_commands WHERE correlation_id = %s AND status = 'done'", cid)
    assert ledger["params"] == {"message": "hi"}
    viwtest.wait_for(lambda: all(chain.pg.query(
        "SELECT queued_at, offered_at, accepted_at, completed_at FROM agent_commands WHERE correlation_id = %s",
        cid)[0].values()), what="every step has its time")


def test_the_same_command_twice_is_one_command(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-twice"))
    ws.hello("gw-twice")
    cid = str(uuid.uuid4())
    for _ in range(2):
        redis_cli(chain, "XADD", "viw.commands", "*", "correlation_id", cid, "agent_id", "gw-twice",
                  "command", "ECHO", "params", "{}")
    last = send(chain, "gw-twice", "ECHO", {})
    assert ws.expect("COMMAND")["correlation_id"] == cid
    assert ws.expect("COMMAND")["correlation_id"] == last


@pytest.mark.timeout(90)
def test_commands_run_on_this_host_through_agent_and_helper(chain, root_dir):
    """redis-cli → bridge → gateway-agent (nobody) → host-helper (root) → script → PostgreSQL."""
    marks = root_dir / "marks"
    script = viwtest.write_script(root_dir / "mark.sh", f'echo "$1" >>{marks}\necho "marked $1 as $(id -un)"\n')
    viwtest.write_verb(root_dir / "verbs.d", "leave_mark", script, ["{text}"],
                       {"text": {"type": "text", "max": 64}})
    chain.start_helper(root_dir).start_agent("gw-host")

    health = send(chain, "gw-host", "get_system_health", {})
    mark = send(chain, "gw-host", "leave_mark", {"text": "one; $(two) `three`"})
    echo = send(chain, "gw-host", "ECHO", {"message": "hello"})

    row = result_of(chain, health, 30)
    assert (row["status"], row["error_msg"]) == ("done", None)
    assert "mem" in row["stdout_redacted"]
    row = result_of(chain, mark)
    assert (row["status"], row["rc"], row["stdout_redacted"]) == ("done", 0, "marked one; $(two) `three` as root\n")
    assert row["started_at"] <= row["finished_at"]
    assert marks.read_text() == "one; $(two) `three`\n"
    assert result_of(chain, echo)["stdout_redacted"] == "hello"

    gateway = chain.pg.wait_row("SELECT * FROM os_gateways WHERE agent_id = 'gw-host' AND status = 'online'")
    assert gateway["site"] == "lab"
    first = chain.pg.wait_row("SELECT seq, mem_pct, metrics FROM os_gateway_status WHERE agent_id = 'gw-host'")
    assert 0 < first["mem_pct"] <= 100 and first["metrics"]["helper"] == "up"
    chain.pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-host' AND seq > %s", first["seq"])


def test_refusals_of_the_helper_end_as_failed_rows_that_say_why(chain, root_dir):
    chain.start_helper(root_dir).start_agent("gw-refuse")
    unknown = send(chain, "gw-refuse", "no_such_verb", {})
    row = result_of(chain, unknown, 30)
    assert (row["status"], row["error_code"]) == ("failed", "verb_not_allowed")


def test_a_command_nobody_can_read_is_rejected(chain):
    cid = send(chain, "gw-nobody", "ECHO", {}, expires_at=viwtest.rfc3339(3 * 86400))
    row = result_of(chain, cid)
    assert row["status"] == "rejected" and row["error_msg"]


def test_a_command_for_an_absent_agent_expires(chain):
    cid = send(chain, "gw-absent", "ECHO", {}, ttl_s=1)
    assert result_of(chain, cid, 20)["status"] == "expired"
