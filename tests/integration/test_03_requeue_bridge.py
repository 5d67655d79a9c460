"""Redis loses everything while commands are open: bridge, results-writer and an agent bring each to its one end."""
import pytest

import viwtest
import writers
from bridges import Bridge, result
from viwtest import wait_for
from writers import start_writer


def send_result(agent, cid, **fields):
    agent.send(result(cid, agent.agent_id, **fields))
    agent.expect("RESULT_ACK", timeout=10)


@pytest.mark.timeout(120)
def test_open_commands_survive_a_wiped_redis(redis, pg, start, connect):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    expires = viwtest.rfc3339(3000)
    secret = dict(command="create_panel_user", params={"userpass": "canary-1"}, expires_at=expires)
    writers.add_command(c, "c-working", expires_at=expires)
    writers.add_command(c, "c-answered", params={"message": "x"}, expires_at=expires)
    writers.add_command(c, "c-secret", **secret)
    writers.add_command(c, "c-offline", agent="gw-2", expires_at=expires)
    for cid in ("c-working", "c-answered", "c-secret"):
        assert agent.expect("COMMAND", timeout=10)["correlation_id"] == cid
        agent.send({"type": "COMMAND_ACK", "agent_id": "gw-1", "correlation_id": cid})
    wait_for(lambda: pg.query("SELECT count(*) AS n FROM agent_commands WHERE status = 'accepted'") == [{"n": 3}])
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-offline' AND status = 'queued'")
    # Two are answered and acknowledged, but Redis loses the answers before the writer has read them.
    w.proc.stop()
    send_result(agent, "c-answered", rc=0, stdout="first time")
    send_result(agent, "c-secret", rc=0, stdout="first time")
    c.flushall()
    w = start_writer(start, "results", redis, pg.uri)
    # The plain one is offered again with its original expiry; of the other one only CANCEL can be said.
    got = {}
    while len(got) < 2:
        f = agent.recv(timeout=40)
        if f["type"] in ("COMMAND", "CANCEL"):
            got[f["correlation_id"]] = f
    assert got["c-answered"]["type"] == "COMMAND" and got["c-answered"]["args"] == {"message": "x"}
    assert got["c-answered"]["expires_at"] == expires
    assert got["c-secret"]["type"] == "CANCEL"
    for cid in ("c-answered", "c-secret", "c-working"):
        send_result(agent, cid, rc=0, stdout="what really happened")
        pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s AND status = 'done'", cid)
    # Who was offline meanwhile gets it when it comes.
    other = b.agent("gw-2", journal_id="j2")
    assert other.expect("COMMAND", timeout=40)["correlation_id"] == "c-offline"
    # Declared lost while it works on it: unknown, and what it says later is evidence.
    pg.query("SELECT viw_declare_lost('gw-2')")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-offline' AND status = 'unknown'", timeout=40)
    send_result(other, "c-offline", rc=0, stdout="late")
    # Without the parameters nobody can mask its output any more, so that is withheld.
    late = pg.wait_row("SELECT * FROM agent_command_late_results WHERE correlation_id = 'c-offline'")
    assert late["status"] == "done" and "late" not in (late["stdout_redacted"] or "")
    assert pg.query("SELECT status, count(*) AS n FROM agent_command_results GROUP BY 1 ORDER BY 1") == [
        {"status": "done", "n": 3}, {"status": "unknown", "n": 1}]
    assert w.metric("viw_commands_redis_lost_total") == 1
    assert w.metric("viw_commands_requeued_total") == 3
