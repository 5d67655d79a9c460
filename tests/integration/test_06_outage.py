"""PostgreSQL is away for an hour. The hour passes on the clocks of Redis, bridge, writers and PostgreSQL in half a
minute, step by step, with the traffic of that hour: every retry, lease, claim, trim, expiry and deadline goes by."""
import datetime
import json
import re
import subprocess
from pathlib import Path

import pytest

import viwtest
import writers
from viwtest import wait_for

LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
STEPS, STEP_S = 240, 15
AGENTS = 100


class Clock:
    """The clocks of all programs that are started with its environment."""

    def __init__(self, dir):
        self.path, self.ahead_s = Path(dir) / "clock", 0
        self.path.write_text("+0")
        self.path.chmod(0o644)
        # libc before redis-server's jemalloc, which asks for the time before libfaketime can answer.
        self.env = {"LD_PRELOAD": f"{LIBFAKETIME} libc.so.6", "FAKETIME_TIMESTAMP_FILE": self.path, "FAKETIME_NO_CACHE": "1"}

    def forward(self, seconds):
        self.ahead_s += seconds
        other = self.path.with_suffix(".new")
        other.write_text(f"+{self.ahead_s}")
        other.chmod(0o644)
        other.rename(self.path)

    def now(self):
        return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=self.ahead_s)


@pytest.fixture
def world(tmp, monkeypatch):
    if not Path(LIBFAKETIME).exists():
        pytest.skip("libfaketime is not installed")
    if re.search(r"v=(?:[89]|\d\d)\.", subprocess.run(["redis-server", "--version"], stdout=subprocess.PIPE, text=True).stdout):
        pytest.skip("redis-server 8 takes memory from jemalloc and from libc in turns under libfaketime, and ends")
    bin = viwtest.plain_build()
    if bin is None:
        pytest.skip("no build without AddressSanitizer, which libfaketime waits for for ever: ./viw build release")
    monkeypatch.setattr(viwtest, "BIN", bin)
    clock = Clock(tmp)
    redis = viwtest.RedisServer(tmp, env=clock.env)
    pg = viwtest.PgServer(env=clock.env)
    starter = viwtest.Starter(tmp)
    try:
        pg.init().start().make_template()
        yield clock, redis.start(), pg, starter
        faults = starter.close()
        assert not faults, faults
    finally:
        starter.close()
        redis.close()
        pg.close()


@pytest.mark.timeout(180)
def test_an_hour_without_postgres_loses_nothing(world):
    clock, redis, server, start = world
    c, db = redis.client, server.new_database()
    t = writers.start_writer(start, "telemetry", redis, db.uri, env=clock.env, LOG_LEVEL="info")
    r = writers.start_writer(start, "results", redis, db.uri, env=clock.env, LOG_LEVEL="info", LOST_AFTER_S=600)
    bridge = start("agent-bridge", env={
        "AGENT_BRIDGE_BIND": f"127.0.0.1:{viwtest.free_port()}", "AGENT_BRIDGE_ID": "b1",
        "AGENT_BRIDGE_REDIS_URL": redis.unix_url, "AGENT_BRIDGE_SHARED_SECRET": "x" * 32, **clock.env})
    bridge.wait_log("router_leads")
    sent = {"frames": 0, "commands": 0}

    def traffic():
        """Each agent one frame in 30 s, two commands in 15 s to hosts that are off: they expire after 5 minutes."""
        now = clock.now()
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        pipe = c.pipeline(transaction=False)
        for _ in range(AGENTS // 2):
            agent = f"gw-{sent['frames'] % AGENTS:03}"
            writers.add_telemetry(pipe, agent, seq=sent["frames"], ts=stamp, received_at=stamp, cpu_pct=50)
            sent["frames"] += 1
        for _ in range(2):
            writers.add_command(pipe, f"c-{sent['commands']}", agent="gw-off", ttl_s=300)
            sent["commands"] += 1
        pipe.execute()

    traffic()
    db.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'c-1'")
    db.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-001'")
    db._conn.close()
    server.stop()
    began = clock.now()
    for _ in range(STEPS):
        clock.forward(STEP_S)
        traffic()
        viwtest.time.sleep(0.06)
    wait_for(lambda: t.metric("viw_stream_lag_seconds", stream="viw.telemetry") > 3500 and
             r.metric("viw_stream_lag_seconds", stream="viw.commands") > 3500, 10, "the lag of an hour is told")
    for w in (t, r):
        assert w.get("/_readyz")[0] == 503 and w.metric("viw_pg_up") == 0 and w.metric("viw_redis_up") == 1
    # Bridges trimmed what is stored and nothing else; expired commands were told meanwhile.
    lag = sent["frames"] - AGENTS // 2
    wait_for(lambda: t.metric("viw_stream_lag_entries", stream="viw.telemetry") == lag, 10, "all that waits is counted")
    assert c.xlen("viw.commands") >= sent["commands"] - 2
    wait_for(lambda: c.xlen("viw.command_results") >= sent["commands"] - 2 * 300 // STEP_S - 2, 10)
    assert (clock.now() - began).total_seconds() >= 3600

    server.start()
    came_back = viwtest.time.monotonic()
    writers.wait_drained(c, "telemetry", 30)
    writers.wait_drained(c, "results", 30)
    took = viwtest.time.monotonic() - came_back
    print(f"caught up with {lag} frames and {sent['commands']} commands in {took:.1f} s")
    # What is still open expires as it would have.
    for _ in range(330 // STEP_S):
        clock.forward(STEP_S)
        viwtest.time.sleep(0.06)
    done = db.wait_row("SELECT count(*) AS n FROM agent_commands WHERE status = 'expired' HAVING count(*) = %s",
                       sent["commands"], timeout=30)
    writers.wait_drained(c, "results", 30)
    assert done["n"] == sent["commands"]
    assert db.query("SELECT count(*) AS n, count(DISTINCT correlation_id) AS ids FROM agent_command_results "
                    "WHERE status = 'expired'") == [{"n": sent["commands"], "ids": sent["commands"]}]
    assert db.query("SELECT sum(samples) AS n FROM os_gateway_metrics") == [{"n": sent["frames"]}]
    assert db.query("SELECT count(*) AS n FROM os_gateway_status WHERE seq >= %s",
                    sent["frames"] - AGENTS) == [{"n": AGENTS}]
    for table in ("dead_letters", "agent_command_late_results"):
        assert db.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 0}], table
    for w, stream in ((t, "viw.telemetry"), (r, "viw.commands"), (r, "viw.command_results")):
        assert not w.metric("viw_entries_lost_total", stream=stream)
        wait_for(lambda: w.metric("viw_stream_lag_entries", stream=stream) == 0, 10)
    assert not r.metric("viw_commands_requeued_total") and not r.metric("viw_commands_declared_lost_total")
    # An hour of trying is told in a few lines.
    for w in (t, r):
        lines = [json.loads(line) for line in w.proc.text.splitlines()]
        assert len(lines) < 40 and sum(x["event"] == "postgres_up" for x in lines) >= 2
        # Whoever looks at any part of the hour sees it, and for how long it has lasted.
        away = [x.get("duration_ms", 0) for x in lines if x["event"] == "postgres_failed"]
        assert 5 < len(away) < 20 and max(away) > 3000_000, away
