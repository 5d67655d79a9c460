"""results-writer: every command one row, one terminal state, whichever entry comes first."""
import json
import signal

import viwtest
import writers
from viwtest import wait_for
from writers import add_command, add_command_event, add_result, start_writer, wait_drained


def command(pg, cid):
    return pg.query("SELECT * FROM agent_commands WHERE correlation_id = %s", cid)[0]


def result(pg, cid):
    rows = pg.query("SELECT * FROM agent_command_results WHERE correlation_id = %s", cid)
    assert len(rows) == 1
    return rows[0]


def test_a_command_walks_through_its_states(redis, pg, start):
    start_writer(start, "results", redis, pg.uri)
    c = redis.client
    add_command(c, "c-1", params={"message": "hi"}, issued_by_admin_id="admin-1", ttl_s=90)
    row = pg.wait_row("SELECT * FROM agent_commands WHERE status = 'queued'")
    assert row["params"] == {"message": "hi"} and row["issued_by_admin_id"] == "admin-1"
    assert (row["expires_at"] - row["issued_at"]).total_seconds() == 90
    add_command_event(c, "c-1", "offered")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'offered' AND offered_at IS NOT NULL")
    add_command_event(c, "c-1", "accepted")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'accepted' AND accepted_at IS NOT NULL")
    add_result(c, "c-1", rc=0, stdout="hi\n", stderr="", duration_ms=12, started_at=viwtest.rfc3339(),
               finished_at=viwtest.rfc3339(), truncated={"stdout": False, "stderr": True})
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'done' AND completed_at IS NOT NULL")
    r = result(pg, "c-1")
    assert (r["status"], r["rc"], r["stdout_redacted"], r["stderr_redacted"]) == ("done", 0, "hi\n", "")
    assert r["truncated"] == {"stdout": False, "stderr": True} and r["duration_ms"] == 12
    assert r["command"] == "ECHO" and r["issued_by_admin_id"] == "admin-1"


def test_any_order_gives_the_same_rows(redis, pg, start):
    """Result first, then events, then the command itself: nothing is lowered, all is filled in."""
    start_writer(start, "results", redis, pg.uri)
    c = redis.client
    steps = {"command": lambda i: add_command(c, i, params={"a": 1}, issued_by_admin_id="admin-1"),
             "offered": lambda i: add_command_event(c, i, "offered"),
             "accepted": lambda i: add_command_event(c, i, "accepted"),
             "result": lambda i: add_result(c, i, rc=3)}
    orders = [["result", "accepted", "offered", "command"], ["accepted", "result", "command", "offered"],
              ["offered", "command", "result", "accepted"]]
    for n, order in enumerate(orders):
        for step in order:
            steps[step](f"c-{n}")
            wait_drained(c, "results")
    for n in range(len(orders)):
        row = command(pg, f"c-{n}")
        assert row["status"] == "failed" and row["params"] == {"a": 1} and row["command"] == "ECHO"
        assert row["offered_at"] and row["accepted_at"] and row["queued_at"] and row["completed_at"]
        assert result(pg, f"c-{n}")["rc"] == 3
    # The same in one batch, entries of all commands mixed.
    for step in ["result", "accepted", "command", "offered"]:
        for n in range(100, 150):
            steps[step](f"c-{n}")
    wait_drained(c, "results")
    assert pg.query("SELECT count(*) AS n FROM agent_commands WHERE status = 'failed' AND params IS NOT NULL "
                    "AND accepted_at IS NOT NULL AND offered_at IS NOT NULL")[0]["n"] == 53


def test_terminal_states_of_the_contract(redis, pg, start):
    start_writer(start, "results", redis, pg.uri)
    c = redis.client
    cases = {
        "s-0": ("done", dict(rc=0)), "s-none": ("done", {}), "s-2": ("failed", dict(rc=2)),
        "e": ("failed", dict(status="error", error={"code": "bad_args", "msg": "no"})),
        "e-u": ("unknown", dict(status="error", error={"code": "outcome_unknown", "msg": "?"})),
        "x": ("expired", dict(status="expired")), "c": ("cancelled", dict(status="cancelled")),
        "u": ("unknown", dict(status="unknown")), "big-rc": ("failed", dict(rc=1 << 40)),
        "b-rej": ("rejected", dict(source="bridge", state="rejected", status="error",
                                   error={"code": "rejected", "msg": "malformed"})),
        "b-exp": ("expired", dict(source="bridge", state="expired", status="expired")),
        "b-can": ("cancelled", dict(source="bridge", state="cancelled", status="cancelled")),
        "b-unk": ("unknown", dict(source="bridge", state="unknown", status="unknown")),
        # An agent cannot call itself rejected.
        "a-rej": ("done", dict(source="agent", state="rejected", rc=0)),
    }
    for cid, (_, extra) in cases.items():
        add_result(c, cid, **extra)
    wait_drained(c, "results")
    got = {r["correlation_id"]: r["status"] for r in pg.query("SELECT * FROM agent_commands")}
    assert got == {cid: state for cid, (state, _) in cases.items()}
    assert {r["correlation_id"]: r["status"] for r in pg.query("SELECT * FROM agent_command_results")} == got
    assert result(pg, "big-rc")["rc"] is None
    assert result(pg, "e")["error_code"] == "bad_args"


def test_a_second_result_is_late_evidence_and_replays_are_nothing(redis, pg, start):
    w = start_writer(start, "results", redis, pg.uri)
    c = redis.client
    add_command(c, "c-1")
    add_result(c, "c-1", source="bridge", state="unknown", status="unknown")
    wait_drained(c, "results")
    add_result(c, "c-1", rc=0, stdout="it ran after all")
    wait_drained(c, "results")
    for _ in range(2):
        w.proc.stop()
        for stream in ("commands", "command_results"):
            c.xgroup_setid(f"viw.{stream}", "results-writer", "0")
        w = start_writer(start, "results", redis, pg.uri)
        wait_drained(c, "results")
    assert command(pg, "c-1")["status"] == "unknown" and result(pg, "c-1")["status"] == "unknown"
    late = pg.query("SELECT * FROM agent_command_late_results")
    assert [(r["correlation_id"], r["status"], r["stdout_redacted"]) for r in late] == [
        ("c-1", "done", "it ran after all")]
    # Both in one batch: the first of the stream wins.
    add_result(c, "c-2", rc=0)
    add_result(c, "c-2", rc=9)
    wait_drained(c, "results")
    assert command(pg, "c-2")["status"] == "done" and result(pg, "c-2")["rc"] == 0


def test_an_answer_beside_a_bridges_word_that_it_was_never_offered_is_not_lost(redis, pg, start):
    """Read together, as another worker's pending entries are."""
    c = redis.client
    for n in range(2):
        add_command(c, f"c-{n}")
        add_command_event(c, f"c-{n}", "offered")
    never = {"source": "bridge", "state": "expired", "agent_id": "gw-1"}
    c.xadd("viw.command_results", {"correlation_id": "c-0", **never})
    add_result(c, "c-0", rc=0, stdout="ran")
    add_result(c, "c-1", rc=0, stdout="ran")
    c.xadd("viw.command_results", {"correlation_id": "c-1", **never})
    start_writer(start, "results", redis, pg.uri)
    wait_drained(c, "results")
    for n in range(2):
        assert command(pg, f"c-{n}")["status"] == "done" and result(pg, f"c-{n}")["stdout_redacted"] == "ran"
    late = pg.query("SELECT correlation_id, status FROM agent_command_late_results ORDER BY 1")
    assert late == [{"correlation_id": f"c-{n}", "status": "expired"} for n in range(2)]


def test_terminal_rows_cannot_be_changed_by_anybody(redis, pg, start):
    start_writer(start, "results", redis, pg.uri)
    add_command(redis.client, "c-1")
    add_result(redis.client, "c-1", rc=0)
    wait_drained(redis.client, "results")
    import psycopg2
    for sql in ("UPDATE agent_commands SET status = 'failed'",
                "UPDATE agent_commands SET status = 'queued', completed_at = NULL",
                "UPDATE agent_commands SET completed_at = now()",
                "UPDATE agent_command_results SET rc = 1"):
        try:
            pg.query(sql)
            raise AssertionError(f"changed a terminal row: {sql}")
        except psycopg2.Error as e:
            assert e.pgcode == "VW001", e


def test_an_id_that_ended_without_an_agent_stays_as_it_ended(redis, pg, start):
    """Its backend mends the entry and sends the id again, which is no new command and nobody's fault."""
    start_writer(start, "results", redis, pg.uri)
    c = redis.client
    c.xadd("viw.command_results", {"correlation_id": "c-1", "source": "bridge", "state": "rejected"})
    wait_drained(c, "results")
    before = command(pg, "c-1")
    assert before["status"] == "rejected" and before["agent_id"] == ""
    add_command(c, "c-1", params={"a": 1})
    wait_drained(c, "results")
    after = command(pg, "c-1")
    assert {k: after[k] for k in ("status", "agent_id", "completed_at", "result_entry")} == \
        {k: before[k] for k in ("status", "agent_id", "completed_at", "result_entry")}
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_secrets_are_masked_before_storage(redis, pg, start, tmp):
    verbs = tmp / "verbs.d"
    verbs.mkdir()
    (verbs / "v.json").write_text(json.dumps({
        "verb": "odd_verb", "exec": "/bin/true", "argv": ["{who}"],
        "params": {"who": {"type": "username"}, "pin": {"type": "secret", "via": "stdin"}}}))
    start_writer(start, "results", redis, pg.uri, VERBS_DIR=verbs)
    c = redis.client
    by_name = {"username": "bob", "userpass": "hunter2-canary", "api_token": "tok-canary",
               "public_key": "pub-stays", "nested": {"psk": "psk-canary"}}
    add_command(c, "c-1", command="create", params=by_name)
    add_command(c, "c-2", command="odd_verb", params={"who": "eve", "pin": "pin-canary"})
    add_result(c, "c-1", rc=0, stdout="made bob with hunter2-canary and tok-canary; password=pw-canary",
               stderr="Authorization: Bearer abc-canary\nPrivateKey = kkkkkkkk-canary\n")
    add_result(c, "c-2", rc=1, stdout="pin was pin-canary", status="success",
               error={"code": "internal", "msg": "pin-canary was wrong"})
    # Refused entries are kept without what is secret in them.
    c.xadd("viw.commands", {"correlation_id": "bad id!", "agent_id": "gw-1", "command": "create",
                            "params": json.dumps({"userpass": "dead-canary"})})
    c.xadd("viw.dead_letters", {"stream": "viw.commands", "entry_id": "5-5", "reason": "malformed",
                                "payload": "password=payload-canary"})
    wait_drained(c, "results")
    assert command(pg, "c-1")["params"] == {
        "username": "bob", "userpass": "***", "api_token": "***", "public_key": "pub-stays",
        "nested": {"psk": "***"}}
    assert command(pg, "c-2")["params"] == {"who": "eve", "pin": "***"}
    everything = json.dumps([pg.query(f"SELECT * FROM {t}") for t in (
        "agent_commands", "agent_command_results")], default=str)
    dead = [bytes(r["payload"]) for r in pg.query("SELECT * FROM dead_letters")]
    assert len(dead) == 2 and "canary" not in everything and not [d for d in dead if b"canary" in d]
    assert result(pg, "c-1")["stdout_redacted"].startswith("made bob with *** and ***; password=")


def test_refused_by_a_bridge_and_unreadable_entries_become_dead_letters(redis, pg, start):
    start_writer(start, "results", redis, pg.uri)
    c = redis.client
    c.xadd("viw.dead_letters", {"stream": "viw.commands", "entry_id": "7-1", "reason": "not_yours",
                                "payload": b"\x00\xff raw"})
    bad = c.xadd("viw.command_results", {"correlation_id": "c-1", "agent_id": "gw-1", "frame": "{}",
                                         "source": "agent"})
    add_command(c, "c-ok")
    wait_drained(c, "results")
    rows = pg.query("SELECT stream, entry_id, reason, payload, format FROM dead_letters ORDER BY reason")
    assert [(r["stream"], r["entry_id"], r["reason"], r["format"]) for r in rows] == [
        ("viw.command_results", bad, "bad_frame", "fields"), ("viw.commands", "7-1", "not_yours", "raw")]
    assert bytes(rows[1]["payload"]) == b"\x00\xff raw"
    assert b"$8\r\nagent_id\r\n$4\r\ngw-1\r\n" in bytes(rows[0]["payload"])
    assert command(pg, "c-ok")["status"] == "queued"


def test_endpoints_and_readiness(redis, pg, start):
    w = start_writer(start, "results", redis, pg.uri)
    wait_for(lambda: w.get("/_readyz")[0] == 200)
    assert w.get("/_healthz")[0] == 200 and json.loads(w.get("/_healthz")[1])["status"] == "ok"
    assert w.get("/nothing")[0] == 404
    redis.stop()
    wait_for(lambda: w.get("/_readyz")[0] == 503)
    assert "redis_away" in json.loads(w.get("/_readyz")[1])["reasons"] and w.get("/_healthz")[0] == 200
    redis.start()
    wait_for(lambda: w.get("/_readyz")[0] == 200)
    add_command(redis.client, "c-1")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'")


def test_manifests_are_read_again_on_sighup_and_broken_ones_change_nothing(redis, pg, start, tmp):
    verbs = tmp / "verbs.d"
    verbs.mkdir()
    w = start_writer(start, "results", redis, pg.uri, VERBS_DIR=verbs)
    c = redis.client

    def stored(cid, verb):
        add_command(c, cid, command=verb, params={"pin": "pin-canary"})
        add_result(c, cid, command=verb, rc=0, stdout="it was pin-canary")
        wait_drained(c, "results")
        return command(pg, cid)["params"]["pin"], result(pg, cid)["stdout_redacted"]

    def hup(event, n=1):
        w.proc.signal(signal.SIGHUP)
        wait_for(lambda: len(w.proc.find_logs(event)) == n, 10, f"{n} × {event}")
    assert stored("c-1", "odd_verb") == ("pin-canary", "it was pin-canary")  # nothing says that it is secret
    viwtest.write_verb(verbs, "odd_verb", "/bin/true", params={"pin": {"type": "secret", "via": "stdin"}})
    hup("reloaded")
    assert stored("c-2", "odd_verb") == ("***", "it was ***")
    (verbs / "another.json").write_text("{")
    hup("bad_manifest")
    assert stored("c-3", "odd_verb") == ("***", "it was ***")
    (verbs / "another.json").unlink()
    hup("reloaded", 2)
    assert w.proc.alive and stored("c-4", "odd_verb") == ("***", "it was ***")
