"""03 command: real agent, bridge and helper together, where their promises meet."""
import json
import signal
import time

import peers
import pytest
from bridges import SECRET, Bridge, elsewhen, leftovers, results, wait_result
from helperlib import END, KEY, MARK, Helper
from viwtest import wait_for


class Chain:
    def __init__(self, start, redis, connect, tmp, root):
        self.start, self.redis, self.tmp = start, redis, tmp
        self.bridge = Bridge(start, redis, connect)
        self.helper = Helper(start, root)
        self.helper.verb("make", MARK + 'echo "made $1"\n', ["{name}"], {"name": {"type": "username"}})
        self.helper.verb("slow", MARK + 'while [ ! -e "$1" ]; do sleep 0.05; done\n' + END + "echo slept\n", ["{go}"],
                         {"go": {"type": "text", "max": 100}}, timeout_s=60, concurrency=8)
        self.agent = None

    def go(self, **env):
        self.agent = self.start("gateway-agent", env=peers.agent_env(
            self.tmp, self.bridge.url, VIW_AGENT_SHARED_SECRET=SECRET, VIW_AGENT_HELPER_SOCKET=self.helper.socket,
            VIW_AGENT_HELPER_SECRET=KEY, **{"VIW_AGENT_FEATURE_EXEC_ENABLE": "true", **env}))
        self.agent.wait_log("connected")
        return self.agent

    def xadd(self, verb, **kw):
        return self.redis.xadd_command("gw-1", verb, **kw)

    def events(self, cid):
        return [f["event"] for _, f in self.redis.client.xrange("viw.command_events") if f["correlation_id"] == cid]


@pytest.fixture
def chain(start, redis, connect, tmp, root_dir):
    return Chain(start, redis, connect, tmp, root_dir)


def test_a_command_waits_for_the_helper_then_runs_once(chain):
    """Offered before the agent knew its journal; nothing is lost or ended when it learns it."""
    chain.go()
    cid = chain.xadd("make", params={"name": "bob"}, ttl_s=60)
    wait_for(lambda: "offered" in chain.events(cid), 10)
    chain.helper.start()
    row = wait_result(chain.redis, cid, timeout=20)
    assert row["frame"]["status"] == "success" and row["frame"]["stdout"] == "made bob\n", row
    assert chain.helper.starts(cid) == 1
    wait_for(lambda: not leftovers(chain.redis), 10)


def test_what_hello_said_and_a_reload_changed_is_said_again(chain, tmp):
    """On the same connection: site, labels, and the verbs that may run now."""
    conf = tmp / "agent.toml"
    chain.helper.start()
    conf.write_text('site = "north"\nfeature_exec_enable = false\n')
    agent = chain.go(AGENT_CONFIG=conf, VIW_AGENT_FEATURE_EXEC_ENABLE=None)

    def hellos():
        return [(f["conn_id"], json.loads(f["frame"])) for _, f in chain.redis.client.xrange("viw.agent_hello")]
    (conn, first), = wait_for(hellos, 10)
    assert first["site"] == "north" and "make" not in first["supported_verbs"]
    conf.write_text('site = "south"\nlabels = ["rack=7"]\nfeature_exec_enable = true\n')
    agent.signal(signal.SIGHUP)
    wait_for(lambda: len(hellos()) == 2, 10)
    again, second = hellos()[1]
    assert again == conn and second["site"] == "south" and second["labels"] == {"rack": "7"}
    assert "make" in second["supported_verbs"]
    cid = chain.xadd("make", params={"name": "bob"})
    assert wait_result(chain.redis, cid)["frame"]["stdout"] == "made bob\n"
    conf.write_text('site = "south"\nlabels = ["rack=7"]\nfeature_exec_enable = true\nmax_concurrency = 2\n')
    agent.signal(signal.SIGHUP)
    agent.wait_log("reloaded", count=2)
    assert wait_result(chain.redis, chain.xadd("ECHO", params={"message": "x"})) and len(hellos()) == 2, "nothing new to say"


@pytest.mark.parametrize("ahead", ["+120s", "-120s"])
def test_a_bridge_whose_clock_is_wrong_ends_no_command_early(start, redis, connect, tmp, ahead):
    """Less than the handshake forgives (300 s), and more than a command lives."""
    b = Bridge(elsewhen(start, ahead), redis, connect)
    start("gateway-agent", env=peers.agent_env(tmp, b.url, VIW_AGENT_SHARED_SECRET=SECRET)).wait_log("connected")
    frame = wait_result(redis, redis.xadd_command("gw-1", "ECHO", params={"message": "x"}, ttl_s=60))["frame"]
    assert frame["status"] == "success" and frame["stdout"] == "x", frame


def test_agent_killed_while_it_runs(chain):
    chain.helper.start()
    chain.go()
    go = chain.helper.root / "go"
    cid = chain.xadd("slow", params={"go": str(go)}, ttl_s=60)
    wait_for(lambda: chain.helper.starts(cid) == 1, 10)
    chain.agent.kill()
    go.write_text("")
    wait_for(lambda: f"end {cid}" in chain.helper.ledger_lines(), 10)
    chain.go()
    row = wait_result(chain.redis, cid, timeout=20)
    assert row["frame"]["status"] == "success" and row["frame"]["stdout"] == "slept\n"
    assert chain.helper.starts(cid) == 1 and len(results(chain.redis, cid)) == 1


def test_helper_and_agent_killed_command_expires_truthfully(chain):
    """It ran before everything died; its time is over when they are back: the truth, not `expired`."""
    chain.helper.start()
    chain.go()
    go = chain.helper.root / "go"
    ran = chain.xadd("slow", params={"go": str(go)}, ttl_s=3)
    wait_for(lambda: chain.helper.starts(ran) == 1, 10)
    chain.agent.kill()
    chain.helper.kill()
    never = chain.xadd("make", params={"name": "eve"}, ttl_s=3)
    go.write_text("")
    wait_for(lambda: f"end {ran}" in chain.helper.ledger_lines(), 10)
    began = time.monotonic()
    row = wait_result(chain.redis, never, timeout=15)
    assert row["state"] == "expired" and time.monotonic() - began < 10
    chain.helper.start()
    chain.go()
    row = wait_result(chain.redis, ran, timeout=20)
    assert row["frame"]["status"] == "success" and row["frame"]["stdout"] == "slept\n", row
    assert chain.helper.starts(ran) == 1 and chain.helper.starts(never) == 0


def test_cancel_reaches_the_helper(chain):
    chain.helper.start()
    chain.go(VIW_AGENT_MAX_CONCURRENCY="1")
    go = chain.helper.root / "go"
    running = chain.xadd("slow", params={"go": str(go)}, ttl_s=60)
    waiting = chain.xadd("make", params={"name": "bob"}, ttl_s=60)
    wait_for(lambda: chain.helper.starts(running) == 1 and "offered" in chain.events(waiting), 10)
    for cid in (waiting, running):
        chain.redis.client.xadd("viw.commands", {"correlation_id": cid, "agent_id": "gw-1", "op": "cancel", "command": "x"})
    assert wait_result(chain.redis, waiting)["frame"]["status"] == "cancelled"
    go.write_text("")
    assert wait_result(chain.redis, running)["frame"]["status"] == "success"
    assert chain.helper.starts(waiting) == 0
