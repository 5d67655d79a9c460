"""Redis loses what it knew of commands: bridge, results-writer and an agent bring each to its one true end."""
import os
import signal
import time

import pytest

import viwtest
import writers
from bridges import Bridge, leftovers, metric, result, results, wait_result
from viwtest import wait_for
from writers import start_writer


def send_result(agent, cid, **fields):
    agent.send(result(cid, agent.agent_id, **fields))
    agent.expect("RESULT_ACK", timeout=10)


def next_of(agent, timeout=15):
    """What the agent is told next to do or not to do."""
    while True:
        f = agent.recv(timeout=timeout)
        if f["type"] in ("COMMAND", "CANCEL"):
            return f["type"], f["correlation_id"]


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


@pytest.mark.timeout(60)
def test_an_id_lost_before_it_had_a_row_is_never_called_cancelled_when_it_ran(redis, pg, start, connect):
    """It ran, Redis lost it before results-writer had seen it; then the backend cancels it and sends it again."""
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="60")
    assert agent.expect("COMMAND")["correlation_id"] == "c-ran"
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    redis.client.flushall()
    b.proc.wait_log("redis_lost_data")
    redis.xadd_command("gw-1", "ECHO", "c-ran", op="cancel")
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="60")
    redis.xadd_command("gw-1", "ECHO", "c-new", op="cancel")
    redis.xadd_command("gw-1", "ECHO", "c-new", ttl_s="60")
    start_writer(start, "results", redis, pg.uri)
    assert [agent.expect("CANCEL", timeout=12)["correlation_id"] for _ in range(2)] == ["c-ran", "c-new"]
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    send_result(agent, "c-new", status="cancelled")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-ran' AND status = 'done'")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-new' AND status = 'cancelled'")
    assert leftovers(redis) == []


@pytest.mark.timeout(60)
def test_a_row_that_was_offered_is_not_ended_by_a_bridge_that_knows_of_no_offer(redis, pg, start, connect):
    """Redis is wiped and no bridge is left that could notice: the row still says that it was offered."""
    w = start_writer(start, "results", redis, pg.uri)
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    cids = ["c-ran", "c-late"]
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="600")
    redis.xadd_command("gw-1", "ECHO", "c-late", ttl_s="600")
    assert [agent.expect("COMMAND")["correlation_id"] for _ in cids] == cids
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'offered' HAVING count(*) = 2")
    b.proc.kill()
    redis.client.flushall()
    b = Bridge(start, redis, connect, "b2")
    redis.xadd_command("gw-1", "ECHO", "c-ran", op="cancel")
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="600")
    redis.xadd_command("gw-1", "ECHO", "c-late", ttl_s="1")
    wait_for(lambda: {(r["correlation_id"], r["state"]) for r in results(redis)} == {
        ("c-ran", "cancelled"), ("c-late", "expired")}, 10)
    wait_for(lambda: len(w.proc.find_logs("command_forgotten")) == 2, 10)
    agent = b.agent("gw-1", journal_id="j1")
    assert {agent.expect("CANCEL", timeout=25)["correlation_id"] for _ in cids} == set(cids)
    for cid in cids:
        agent.send(result(cid, "gw-1", rc=0, stdout="it ran"))
    pg.wait_row("SELECT 1 FROM agent_command_results WHERE status = 'done' HAVING count(*) = 2")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'done' HAVING count(*) = 2")
    assert pg.query("SELECT * FROM agent_command_late_results") == [] and leftovers(redis) == []


def later_forget_what_comes(redis):
    """The function that is returned stops Redis and cuts its AOF back to what it is now."""
    wait_for(lambda: redis.client.info("persistence")["aof_buffer_length"] == 0)
    aof = sorted((redis.dir / "appendonlydir").glob("*.incr.aof"))[-1]
    size = aof.stat().st_size

    def forget():
        redis.kill()
        os.truncate(aof, size)
        redis.start("--aof-load-truncated", "yes")
    return forget


@pytest.mark.timeout(60)
def test_an_answer_that_redis_forgot_is_asked_for_again_on_the_same_connection(redis, start, connect):
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="600")
    agent.expect("COMMAND")
    forget = later_forget_what_comes(redis)
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    forget()
    assert results(redis) == [] and redis.client.hget("viw.cid.c-ran", "state") == "offered"
    assert agent.expect("COMMAND", timeout=12)["correlation_id"] == "c-ran"
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    assert len(results(redis, "c-ran")) == 1 and leftovers(redis) == []


@pytest.mark.timeout(60)
def test_after_redis_was_emptied_a_bridge_that_just_started_lets_the_others_speak_first(redis, start, connect):
    """The only one that could route has no memory; the one that made the offer is slow, but lives."""
    first = Bridge(start, redis, connect)
    other = Bridge(start, redis, connect, bridge_id="b2")
    agent = other.agent("gw-1", journal_id="j1")
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="60")
    agent.expect("COMMAND")
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    wait_for(lambda: redis.client.info("server")["uptime_in_seconds"] >= 3)
    first.proc.kill()
    other.proc.signal(signal.SIGSTOP)
    redis.client.flushall()
    redis.xadd_command("gw-1", "ECHO", "c-ran", op="cancel")
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="60")
    Bridge(start, redis, connect)
    time.sleep(0.3)
    other.proc.signal(signal.SIGCONT)
    assert agent.expect("CANCEL", timeout=12)["correlation_id"] == "c-ran"
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    assert wait_result(redis, "c-ran")["frame"]["status"] == "success" and leftovers(redis) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ending", ["expired", "cancelled"])
def test_an_offer_that_redis_forgot_still_counts(redis, start, connect, ending):
    """The AOF loses its tail: the command is back in its mailbox as if nobody had ever got it. Its agent is away
    until it is over, but only the agent knows."""
    b = Bridge(start, redis, connect)
    redis.xadd_command("gw-1", "ECHO", "c-ran", ttl_s="4" if ending == "expired" else "60")
    wait_for(lambda: redis.client.hget("viw.cid.c-ran", "state") == "queued")
    forget = later_forget_what_comes(redis)
    agent = b.agent("gw-1", journal_id="j1")
    agent.expect("COMMAND")
    send_result(agent, "c-ran", rc=0, stdout="it ran")
    agent.close()
    wait_for(lambda: not redis.client.hexists("viw.owner", "gw-1"))
    forget()
    assert redis.client.hget("viw.cid.c-ran", "state") == "queued" and results(redis) == []
    b.proc.wait_log("redis_lost_data")
    if ending == "cancelled":
        redis.xadd_command("gw-1", "ECHO", "c-ran", op="cancel")
        wait_for(lambda: redis.client.hget("viw.cid.c-ran", "cancel") == "1")
    else:
        wait_for(lambda: redis.client.zscore("viw.deadlines", "c-ran") > int(redis.client.hget("viw.cid.c-ran", "exp")),
                 15, "its deadline has passed and it is to be asked for")
    assert results(redis) == []
    again = b.agent("gw-1", journal_id="j1")
    cancel = again.expect("CANCEL", timeout=10)
    assert (cancel["correlation_id"], cancel["reason"]) == ("c-ran", ending)
    send_result(again, "c-ran", rc=0, stdout="it ran")
    assert wait_result(redis, "c-ran")["frame"]["status"] == "success" and leftovers(redis) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ending", ["cancelled", "expired", "rejected"])
def test_what_ended_before_an_offer_does_not_run_when_redis_forgot_and_it_is_sent_again(redis, pg, start, connect,
                                                                                       ending):
    """Only PostgreSQL knows of its end; nothing else had ever been offered that Redis could be missed for."""
    w = start_writer(start, "results", redis, pg.uri)
    b = Bridge(start, redis, connect)
    first = dict(ttl_s={"cancelled": "60", "expired": "1", "rejected": "0"}[ending])
    redis.xadd_command("gw-1", "ECHO", "c-over", **first)
    if ending == "cancelled":
        redis.xadd_command("gw-1", "ECHO", "c-over", op="cancel")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-over' AND status = %s", ending)
    redis.client.flushall()
    b.proc.wait_log("redis_lost_data")
    redis.xadd_command("gw-1", "ECHO", "c-over", ttl_s="60")
    redis.xadd_command("gw-1", "ECHO", "c-new", ttl_s="60")
    agent = b.agent("gw-1", journal_id="j1")
    assert next_of(agent) == ("COMMAND", "c-new")
    send_result(agent, "c-new", rc=0, stdout="ran")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-new' AND status = 'done'")
    assert w.proc.find_logs("command_over", correlation_id="c-over")
    assert pg.query("SELECT status FROM agent_commands WHERE correlation_id = 'c-over'") == [{"status": ending}]
    assert leftovers(redis) == [] and redis.client.hget("viw.cid.c-over", "state") == "lost"
    # It stays so.
    redis.xadd_command("gw-1", "ECHO", "c-over", ttl_s="60")
    b.proc.wait_log("routed", correlation_id="c-over", detail="duplicate")


@pytest.mark.timeout(60)
def test_a_cancel_that_redis_forgot_is_not_undone(redis, pg, start, connect):
    """The AOF loses its tail: the command waits in its mailbox again, and its cancel is gone, stream and all."""
    start_writer(start, "results", redis, pg.uri)
    b = Bridge(start, redis, connect)
    redis.xadd_command("gw-1", "ECHO", "c-over", ttl_s="60")
    redis.xadd_command("gw-1", "ECHO", "c-open", ttl_s="60")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'queued' HAVING count(*) = 2")
    wait_for(lambda: redis.client.xpending("viw.commands", "results-writer")["pending"] == 0)
    wait_for(lambda: redis.client.hget("viw.cid.c-open", "state") == "queued", what="both are routed")
    forget = later_forget_what_comes(redis)
    redis.xadd_command("gw-1", "ECHO", "c-over", op="cancel")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-over' AND status = 'cancelled'")
    forget()
    assert redis.client.hget("viw.cid.c-over", "state") == "queued" and results(redis) == []
    b.proc.wait_log("redis_up", count=2)
    agent = b.agent("gw-1", journal_id="j1")
    assert next_of(agent) == ("COMMAND", "c-open")
    send_result(agent, "c-open", rc=0, stdout="ran")
    assert wait_result(redis, "c-open")["frame"]["status"] == "success" and leftovers(redis) == []
    assert pg.query("SELECT status FROM agent_commands WHERE correlation_id = 'c-over'") == [{"status": "cancelled"}]


@pytest.mark.timeout(60)
def test_after_a_loss_commands_wait_for_results_writer_and_not_for_ever(redis, pg, start, connect):
    b = Bridge(start, redis, connect)
    agent = b.agent("gw-1", journal_id="j1")
    redis.xadd_command("gw-1", "ECHO", "c-0", ttl_s="60")
    agent.expect("COMMAND")
    send_result(agent, "c-0", rc=0)
    redis.client.flushall()
    b.proc.wait_log("redis_lost_data")
    redis.xadd_command("gw-1", "ECHO", "c-short", ttl_s="3")
    redis.xadd_command("gw-1", "ECHO", "c-long", ttl_s="60")
    b.proc.wait_log("ledger_waits")
    # What was never sent may still have run before the loss: its agent is asked, and says.
    assert next_of(agent) == ("CANCEL", "c-short")
    send_result(agent, "c-short", status="expired")
    wait_for(lambda: metric(b, "viw_commands_waiting_ledger") == 1)
    start_writer(start, "results", redis, pg.uri)
    assert next_of(agent) == ("COMMAND", "c-long")
    send_result(agent, "c-long", rc=0)
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-long' AND status = 'done'")
    assert leftovers(redis) == [] and metric(b, "viw_commands_waiting_ledger") == 0


@pytest.mark.timeout(60)
def test_waiting_for_results_writer_is_told_anew_after_its_agent_went(redis, start, connect):
    """Or the next command after a loss would be looked at a second late, and nobody told why."""
    b = Bridge(start, redis, connect)
    redis.client.set("viw.doubt", 300_000)
    for n in (1, 2):
        agent = b.agent(f"gw-{n}", journal_id="j1")
        redis.xadd_command(f"gw-{n}", "ECHO", f"c-{n}", ttl_s="60")
        b.proc.wait_log("ledger_waits", count=n)
        agent.close()
        time.sleep(2)  # within one: the look that finds nobody
