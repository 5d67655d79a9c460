"""viwctl dead-letters: list, show, retry, drop."""
import json
import subprocess

import pytest

import viwtest
import writers
from viwtest import wait_for
from writers import start_writer, wait_drained


@pytest.fixture
def ctl(redis, pg):
    def run(*args):
        done = subprocess.run([viwtest.BIN / "viwctl", "dead-letters", *map(str, args)], text=True,
                              env={"PATH": "/usr/bin:/bin", "VIWCTL_DATABASE_URL": pg.uri,
                                   "VIWCTL_REDIS_URL": redis.unix_url},
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done.returncode, done.stdout, done.stderr
    return run


def test_what_others_wrote_does_not_steer_the_terminal(redis, pg, start, ctl):
    start_writer(start, "results", redis, pg.uri)
    evil = "a\x1b[2Jb\x7fc\u009b31md\u0085\te\x00f é"
    redis.client.xadd("viw.dead_letters", {"stream": "commands", "entry_id": evil, "reason": evil, "payload": evil})
    wait_drained(redis.client, "results")
    number = pg.query("SELECT id FROM dead_letters")[0]["id"]
    for _, out, _ in (ctl("list"), ctl("show", number)):
        assert "a?[2Jb?c?31md?" in out, out
        assert not [ch for ch in out if (ord(ch) < 32 and ch not in "\n\t") or 0x7f <= ord(ch) < 0xa0], repr(out)


def test_list_show_retry_drop(redis, pg, start, ctl):
    c = redis.client
    w = start_writer(start, "telemetry", redis, pg.uri)
    r = start_writer(start, "results", redis, pg.uri)
    # A gateway whose frame no row could hold, because an operator's own rule was wrong.
    pg.query("ALTER TABLE os_gateway_status ADD CONSTRAINT wrong CHECK (cpu_pct < 50)")
    writers.add_telemetry(c, "gw-1", seq=1, cpu_pct=99, note="é\n")
    c.xadd("viw.commands", {"correlation_id": "not ok!", "agent_id": "gw-1", "command": "x",
                            "params": json.dumps({"password": "canary"})})
    c.xadd("viw.dead_letters", {"stream": "command_results", "entry_id": "c-1", "reason": "not_yours",
                                "payload": "raw"})
    wait_drained(c, "telemetry")
    wait_drained(c, "results")
    code, out, _ = ctl("list")
    assert code == 0 and "sqlstate_23514" in out and "not_yours" in out
    rows = {x["reason"]: x for x in json.loads(ctl("list", "--json")[1])}
    assert rows["sqlstate_23514"]["retry"] == "yes" and rows["not_yours"]["retry"] == "no"
    assert rows["not_yours"]["stream"] == "viw.command_results" and rows["not_yours"]["detail"] == "c-1"
    fit, masked, raw = (rows[k]["id"] for k in ("sqlstate_23514", "bad_correlation_id", "not_yours"))
    code, out, _ = ctl("show", fit)
    assert code == 0 and "gw-1" in out and "viw.telemetry" in out
    assert "canary" not in ctl("show", masked)[1]
    for i, why in ((masked, "masked"), (raw, "refused")):
        code, _, err = ctl("retry", i)
        assert code == 1 and why in err
    pg.query("ALTER TABLE os_gateway_status DROP CONSTRAINT wrong")
    assert ctl("retry", fit)[0] == 0
    status = pg.wait_row("SELECT * FROM os_gateway_status WHERE agent_id = 'gw-1'")
    assert status["cpu_pct"] == 99 and status["metrics"]["note"] == "é\n"
    assert ctl("drop", masked, raw)[0] == 0
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    assert ctl("drop", raw)[0] == 1 and ctl("show", "x")[0] == 64 and ctl("retry")[0] == 64
    assert w.proc.alive and r.proc.alive
    wait_for(lambda: w.metric("viw_dead_letters_total", reason="sqlstate_23514") == 1)
