"""Start, stop, reload, and Redis slow, away or unwilling (issue of the bridge: lifecycle, backpressure)."""
import http.client
import json
import os
import re
import signal
import socket
import threading
import time

import bridgetest
import pytest
import viwtest
from bridgetest import SECRET, result, telemetry


def test_disabled_exits_0(start):
    p = start("agent-bridge", env={"AGENT_BRIDGE_ENABLED": "false"})
    assert p.wait_exit() == 0 and p.find_logs("disabled")


def test_bind_failure_exits_71_and_says_where(start, redis):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        at = f"127.0.0.1:{s.getsockname()[1]}"
        p = start("agent-bridge", env={"AGENT_BRIDGE_BIND": at, "AGENT_BRIDGE_REDIS_URL": redis.url})
        assert p.wait_exit() == 71
        assert at in p.find_logs("bind_failed")[0]["msg"] and "in use" in p.text


def test_a_start_without_descriptors_exits_71_and_says_so(start, redis):
    for n in range(8, 40):
        p = start("/usr/bin/prlimit", args=[f"--nofile={n}", viwtest.BIN / "agent-bridge"], env={
            "AGENT_BRIDGE_BIND": f"127.0.0.1:{viwtest.free_port()}", "AGENT_BRIDGE_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}",
            "AGENT_BRIDGE_REDIS_URL": redis.url, "ASAN_OPTIONS": "detect_leaks=0"})
        viwtest.wait_for(lambda: not p.alive or p.find_logs("listening"), 10)
        if p.alive:
            break
        assert p.wait_exit() == 71
        why = p.find_logs("start_failed") + p.find_logs("bind_failed")
        assert why and why[0]["error"] == "Too many open files", (n, p.text)
    assert 15 < n < 35
    p.stop()


@pytest.mark.parametrize("env, name", [
    ({"AGENT_BRIDGE_MAX_CONN": "0"}, "AGENT_BRIDGE_MAX_CONN"),
    ({"AGENT_BRIDGE_BIND": "nonsense"}, "AGENT_BRIDGE_BIND"),
    ({"AGENT_BRIDGE_TRUSTED_PROXIES": "10.0.0.1/8"}, "AGENT_BRIDGE_TRUSTED_PROXIES"),
    ({"AGENT_BRIDGE_ALLOWED_AGENT_IDS": "a,,b"}, "AGENT_BRIDGE_ALLOWED_AGENT_IDS"),
    ({"AGENT_BRIDGE_ID": "a|b"}, "AGENT_BRIDGE_ID"),
    ({"AGENT_BRIDGE_REDIS_URL": "http://x"}, "AGENT_BRIDGE_REDIS_URL"),
    ({"AGENT_BRIDGE_TLS_CERT": "/x"}, "AGENT_BRIDGE_TLS_KEY"),
    ({"AGENT_BRIDGE_TLS_CLIENT_CA": "/x"}, "AGENT_BRIDGE_TLS_CLIENT_CA"),
    ({"AGENT_BRIDGE_NO_SUCH": "1"}, "AGENT_BRIDGE_NO_SUCH"),
    ({"AGENT_BRIDGE_TLS_CERT": "/none.crt", "AGENT_BRIDGE_TLS_KEY": "/none.key"}, "AGENT_BRIDGE_TLS_CERT /none.crt: no usable certificate"),
])
def test_check_config_names_each_fault(start, env, name):
    p = start("agent-bridge", env={"AGENT_BRIDGE_SHARED_SECRET": "s3cret-x", **env}, args=["--check-config"])
    assert p.wait_exit() == 78
    assert name in p.text and "s3cret-x" not in p.text + p.stdout


def test_sigterm_drains(bridge):
    b = bridge(drain_s=2)
    agents = [b.connect(f"gw-{i}") for i in range(8)]
    began = time.monotonic()
    b.proc.signal(signal.SIGTERM)
    b.proc.wait_log("draining")
    status, code, headers = b.refused(b.headers("gw-9"))
    assert (status, code) == (503, "draining") and int(headers["Retry-After"]) >= 1
    status, _, text = b.http("GET", "/internal/agent/_readyz")
    assert status == 503 and json.loads(text)["reasons"] == ["draining"]
    assert b.metric("viw_draining") == 1
    assert {ws.wait_closed() for ws in agents} == {1001}
    took = time.monotonic() - began
    assert 1.0 < took < 6, took  # spread, and within DRAIN_S and the time to tell it
    assert b.proc.wait_exit() == 0
    gone = b.entries("agent_events", event="disconnected", count=8)
    assert {g["reason"] for g in gone} == {"draining"}


def test_second_sigterm_hastens(bridge):
    b = bridge(drain_s=600, rate_per_agent=1000)
    agents = [b.connect(f"gw-{i}") for i in range(40)]
    b.proc.signal(signal.SIGTERM)
    b.proc.wait_log("draining")
    b.proc.signal(signal.SIGTERM)
    assert {ws.wait_closed() for ws in agents} == {1001}
    assert b.proc.wait_exit(5) == 0


def large_page(b, frames=40):
    """Asks for 10 MB and has read nothing of them but the status; the agent's socket."""
    ws = b.connect("gw-1")
    for seq in range(frames):
        ws.send(telemetry("gw-1", seq, pad="x" * 250000))
    ws.send({"type": "PING"})
    ws.expect("PONG", timeout=20)
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    s.settimeout(10)
    s.connect(("127.0.0.1", b.internal_port))
    s.sendall(b"GET /internal/agent/agents/gw-1/telemetry HTTP/1.1\r\nHost: x\r\n\r\n")
    assert s.recv(15, socket.MSG_PEEK) == b"HTTP/1.1 200 OK"
    return ws, s


@pytest.mark.parametrize("own_listener", [False, True])
def test_a_stop_lets_an_answer_under_way_end(bridge, own_listener):
    b = bridge(drain_s=30, internal_bind=f"127.0.0.1:{viwtest.free_port()}" if own_listener else None)
    ws, page = large_page(b)
    with page:
        b.proc.signal(signal.SIGTERM)
        assert ws.wait_closed() == 1001
        b.proc.wait_log("disconnected")
        time.sleep(1)  # the reader rests; without it all would be over now
        answer = http.client.HTTPResponse(page)
        answer.begin()
        assert len(json.loads(answer.read())["frames"]) == 40
        assert b.proc.wait_exit(5) == 0


def test_an_answer_that_nobody_reads_holds_a_stop_up_no_longer_than_the_drain(bridge):
    b = bridge(drain_s=2)
    ws, page = large_page(b)
    with page:
        began = time.monotonic()
        b.proc.signal(signal.SIGTERM)
        assert b.proc.wait_exit() == 0
        assert 1.9 < time.monotonic() - began < 12  # an answer that is not taken is given up after 30
    b = bridge(drain_s=600, id="bridge-2")
    ws, page = large_page(b)
    with page:
        b.proc.signal(signal.SIGTERM)
        assert ws.wait_closed() == 1001
        b.proc.signal(signal.SIGTERM)  # hastens
        assert b.proc.wait_exit(5) == 0


def test_a_result_on_its_way_is_stored_before_the_end(bridge):
    b = bridge(drain_s=1)
    ws = b.connect()
    cids = [b.redis.xadd_command("gw-1", "ECHO") for _ in range(3)]
    for _ in cids:
        ws.expect("COMMAND")
    b.redis.freeze()
    for cid in cids:
        ws.send(result("gw-1", cid))
    b.proc.signal(signal.SIGTERM)
    b.proc.wait_log("draining")
    b.redis.thaw()
    assert b.proc.wait_exit() == 0
    assert {e["correlation_id"] for e in b.entries("command_results", count=3)} == set(cids)


def test_sighup_reloads_what_can_change(start, redis, connect, tmp):
    import bridgetest
    conf = tmp / "bridge.toml"
    conf.write_text('rate_per_agent = 1\nshared_secret = "one"\nring_frames = 5\n')
    conf.chmod(0o600)
    b = bridgetest.Bridge(start, redis, connect, secret=None, config=str(conf))
    b.secret = "one"
    first = b.connect("gw-1")
    assert b.refused(b.headers("gw-1"))[:2] == (429, "rate_limited_agent")
    conf.write_text('rate_per_agent = 50\nallowed_agent_ids = ["gw-1", "gw-2", "gw-3"]\nshared_secret = "two"\nadmin_token = "tok"\nring_frames = 6\n')
    b.proc.signal(signal.SIGHUP)
    b.proc.wait_log("reloaded")
    assert b.proc.find_logs("reload_ignored")[0]["setting"].endswith("RING_FRAMES")
    assert b.refused(b.headers("gw-2"))[:2] == (401, "bad_auth")
    b.secret = "two"
    assert b.connect("gw-2").welcome
    assert b.refused(b.headers("gw-4"))[:2] == (403, "not_allowed")
    b.redis.xadd_command("gw-4", "ECHO", correlation_id="c-4")
    assert b.entries("command_results", correlation_id="c-4")[0]["state"] == "rejected"
    assert b.http("GET", "/internal/agent/agents")[0] == 401
    assert b.http("GET", "/internal/agent/agents", headers={"Authorization": "Bearer tok"})[0] == 200
    first.send({"type": "PING"})
    first.expect("PONG")
    conf.write_text("max_conn = nonsense\n")
    b.proc.signal(signal.SIGHUP)
    b.proc.wait_log("reload_failed")
    assert b.connect("gw-3").welcome  # the old settings stay


def test_a_reload_takes_no_guard_away(start, redis, connect, tmp):
    """As when SIGHUP comes while the file is written."""
    import bridgetest
    conf = tmp / "bridge.toml"
    guards = {"shared_secret": '"one"', "admin_token": '"tok"', "allowed_agent_ids": '["gw-1", "gw-2"]',
              "trusted_proxies": '"10.9.9.0/24"', "client_dn_policy": '"CN=gw-*"', "min_agent_version": '"0.0.1"'}
    conf.write_text("".join(f"{k} = {v}\n" for k, v in guards.items()))
    conf.chmod(0o600)
    b = bridgetest.Bridge(start, redis, connect, secret=None, config=str(conf))
    for gone in ([*guards], *([k] for k in guards)):
        lines = len(b.proc.find_logs("reload_failed"))
        conf.write_text("".join(f"{k} = {v}\n" for k, v in guards.items() if k not in gone))
        b.proc.signal(signal.SIGHUP)
        b.proc.wait_log("reload_failed", count=lines + len(gone))
        assert [line["setting"] for line in b.proc.find_logs("reload_failed")[lines:]] == [f"AGENT_BRIDGE_{k.upper()}" for k in gone]
    assert b.refused(b.headers("gw-1"))[:2] == (401, "missing_auth")
    b.secret = "one"
    assert b.refused(b.headers("gw-3"))[:2] == (403, "not_allowed")
    assert b.http("GET", "/metrics")[0] == 401
    assert b.connect("gw-1").welcome


def test_sd_notify(bridge, tmp):
    path = str(tmp / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        s.settimeout(5)
        b = None

        def env_bridge():
            os.environ["_"] = ""
            return bridge()
        import bridgetest
        original = bridgetest.viwtest.Proc.__init__

        def with_notify(self, argv, *, env=None, **kwargs):
            env = dict(env or {}, NOTIFY_SOCKET=path, WATCHDOG_USEC="400000")
            original(self, argv, env=env, **kwargs)
        bridgetest.viwtest.Proc.__init__ = with_notify
        try:
            b = env_bridge()
        finally:
            bridgetest.viwtest.Proc.__init__ = original

        def until(word):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                text = s.recv(4096).decode()
                if word in text:
                    return text
            raise AssertionError(word)
        until("READY=1")
        assert "STATUS=" in until("WATCHDOG=1")
        until("WATCHDOG=1")
        b.proc.signal(signal.SIGHUP)
        until("RELOADING=1")
        until("READY=1")
        b.proc.signal(signal.SIGTERM)
        until("STOPPING=1")


def test_redis_away_keeps_the_sockets_and_recovers(bridge):
    b = bridge()
    ws = b.connect()
    cid = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND", correlation_id=cid)
    b.redis.kill(remembers=True)
    b.wait_ready(False)
    ws.send({"type": "PING"})
    ws.expect("PONG")
    ws.send(result("gw-1", cid, rc=0))
    with pytest.raises(AssertionError):  # not acknowledged until it is stored
        ws.recv(0.5)
    b.redis.start()
    b.wait_ready()
    ws.expect("RESULT_ACK", correlation_id=cid, timeout=15)
    assert len(b.entries("command_results", correlation_id=cid)) == 1
    ws.send(telemetry("gw-1", seq=99))
    got = b.entries("telemetry")
    assert json.loads(got[-1]["frame"])["seq"] == 99


def test_frozen_redis_does_not_grow_memory_and_loses_no_result(bridge):
    """Telemetry at full speed while Redis hangs: bounded memory, other frames served, all results stored."""
    b = bridge()
    ws = b.connect("gw-1")
    cids = [b.redis.xadd_command("gw-1", "ECHO") for _ in range(4)]
    for _ in cids:
        ws.expect("COMMAND")
    loud = [b.connect(f"loud-{i}") for i in range(4)]
    text = json.dumps(telemetry("loud-0", pad="x" * 20000))

    def rss():
        with open(f"/proc/{b.proc.pid}/statm") as f:
            return int(f.read().split()[1]) * 4096
    before = rss()
    b.redis.freeze()
    stop = threading.Event()

    def pump(i, client):
        frame = text.replace("loud-0", f"loud-{i}")
        while not stop.is_set():
            try:
                client.send(frame)
            except Exception:  # paused: the send blocks until its own timeout
                return
    threads = [threading.Thread(target=pump, args=(i, c), daemon=True) for i, c in enumerate(loud)]
    for t in threads:
        t.start()
    for cid in cids:
        ws.send(result("gw-1", cid))
    time.sleep(3)
    grown = rss() - before
    stop.set()
    assert grown < 400e6, grown  # the store's caps, with the sanitizer's own overhead
    b.redis.thaw()
    assert {e["correlation_id"] for e in b.entries("command_results", count=4, timeout=30)} == set(cids)
    b.wait_ready()


def test_pausing_over_tls_does_not_spin(bridge, pki):
    """libwebsockets 4.1.6 spins for ever when a TLS socket is paused in its receive callback."""
    from test_06_bridge_http import cpu_s
    b = bridge(tls_cert=pki.server[0], tls_key=pki.server[1], internal_bind=f"127.0.0.1:{viwtest.free_port()}")
    clients = [b.connect(f"gw-{i}", ssl=pki.client_context()) for i in range(4)]
    b.redis.freeze()
    stop = threading.Event()

    def pump(i, client):
        frame = json.dumps(telemetry(f"gw-{i}", pad="x" * 20000))
        while not stop.is_set():
            try:
                client.send(frame)
            except Exception:  # paused: the send blocks until its own timeout
                return
    threads = [threading.Thread(target=pump, args=(i, c), daemon=True) for i, c in enumerate(clients)]
    for t in threads:
        t.start()
    b.proc.wait_log("reading_paused", timeout=20)
    viwtest.wait_for(lambda: b.metric("viw_paused_sockets") >= 4)
    time.sleep(0.5)
    before = cpu_s(b.proc.pid)
    time.sleep(1)
    assert cpu_s(b.proc.pid) - before < 0.4
    stop.set()
    b.redis.thaw()
    b.proc.wait_log("reading_resumed", timeout=20)
    viwtest.wait_for(lambda: b.metric("viw_paused_sockets") == 0)
    for t in threads:
        t.join(20)
        assert not t.is_alive()
    for client in clients:  # each of them goes on
        client.send({"type": "PING"})
        client.expect("PONG", timeout=10)
    late = b.connect("gw-late", ssl=pki.client_context())
    late.send(telemetry("gw-late", seq=77))
    b.entries("telemetry", agent_id="gw-late", timeout=10)


@pytest.mark.parametrize("fault", ["oom", "readonly", "nogroup", "misconf"])
def test_unwilling_redis_is_waited_out(bridge, fault):
    b = bridge()
    ws = b.connect()
    cid = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND", correlation_id=cid)
    r = b.redis.client
    if fault == "oom":
        r.config_set("maxmemory", "1mb")
    elif fault == "readonly":
        r.replicaof("127.0.0.1", "1")
    elif fault == "misconf":  # it cannot save, and then refuses writes
        (b.redis.dir / "dump.rdb").mkdir()
        r.config_set("save", "1 1")
        r.set("change", 1)
        viwtest.wait_for(lambda: r.info("persistence")["rdb_last_bgsave_status"] == "err", 15)
    else:
        r.xgroup_destroy("viw.commands", "agent-bridge")
    if fault != "nogroup":
        ws.send(result("gw-1", cid))
        with pytest.raises(AssertionError):
            ws.recv(1.0)
        if fault == "oom":
            r.config_set("maxmemory", "0")
        elif fault == "misconf":
            r.config_set("save", "")
            r.config_set("stop-writes-on-bgsave-error", "no")
        else:
            r.replicaof("NO", "ONE")
        ws.expect("RESULT_ACK", correlation_id=cid, timeout=15)
        assert len(b.entries("command_results", correlation_id=cid)) == 1
    # Only where something may be forgotten is the ledger asked before what waited is offered.
    if fault == "readonly":
        viwtest.wait_for(lambda: r.exists("viw.verify"), 5)
    again = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND", correlation_id=again, timeout=15)
    b.wait_ready()
    assert bool(r.exists("viw.verify")) == (fault == "readonly")


def test_redis_that_loads_its_data_is_waited_out(bridge):
    """Restarted with much to load, Redis answers LOADING for seconds: said in readiness, nothing lost."""
    b = bridge()
    ws = b.connect()
    cid = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND", correlation_id=cid)
    pipe = b.redis.client.pipeline()
    for i in range(8000):
        pipe.set(f"pad.{i}", "x")
    pipe.execute()
    b.redis.stop()  # it writes and syncs its AOF
    b.wait_ready(False)
    # 0.4 ms a key: it looks at its sockets after each 1024
    loading = threading.Thread(target=b.redis.start, args=("--key-load-delay", "400"), kwargs={"timeout": 30})
    loading.start()

    def why():
        status, _, text = b.http("GET", "/internal/agent/_readyz")
        return status == 503 and "LOADING" in text
    viwtest.wait_for(why, 10, "readiness says LOADING")
    ws.send(result("gw-1", cid, rc=0))
    ws.send(telemetry("gw-1", seq=7))
    with pytest.raises(AssertionError):  # not acknowledged until it is stored
        ws.recv(0.5)
    status, code, head = b.refused(b.headers("gw-2"))
    assert (status, code) == (503, "redis_away") and int(head["Retry-After"]) >= 1
    loading.join(30)
    ws.expect("RESULT_ACK", correlation_id=cid, timeout=15)
    assert len(b.entries("command_results", correlation_id=cid)) == 1
    assert [json.loads(e["frame"])["seq"] for e in b.entries("telemetry", agent_id="gw-1")] == [7]
    b.wait_ready()


def test_restart_brings_agents_back(bridge):
    b = bridge()
    ws = b.connect()
    cid = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND")
    b.proc.kill()
    b2 = bridge(id="bridge-2")
    ws2 = b2.connect()
    assert ws2.hello_ack["epoch"] > ws.hello_ack["epoch"]
    assert ws2.expect("COMMAND", timeout=10)["correlation_id"] == cid


def test_no_secret_in_logs(bridge):
    b = bridge(admin_token="tok-abcdef", log_level="debug")
    ws = b.connect()
    b.post("gw-1", headers={"Authorization": "Bearer tok-abcdef"}, params={"password": "hunter2-xyz"})
    ws.expect("COMMAND")
    b.refused(b.headers("gw-1", secret="wrong-one"))
    for secret in (SECRET, "tok-abcdef", "hunter2-xyz"):
        assert secret not in b.proc.text


def test_reading_goes_on_once_redis_has_caught_up_with_posts(bridge):
    """The last that Redis owed were answers to HTTP, not to what agents sent: they too let the sockets be read again."""
    b = bridge(max_conn=400, command_rate=100000)
    ws = b.connect()
    frozen = time.monotonic()
    b.redis.freeze()

    def post(n, of):
        out = []
        for i in range(n):
            body = json.dumps({"correlation_id": f"{of}-{i}", "command": "ECHO", "params": {"m": "x" * 65000}}).encode()
            s = socket.create_connection(("127.0.0.1", b.port), timeout=10)
            s.sendall(b"POST /agent/commands/%s-%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (of.encode(), i, len(body)) + body)
            out.append(s)
        return out

    posts = post(200, "early")  # 12 MiB under way is where reading stops
    viwtest.wait_for(lambda: ws.send(telemetry("gw-1", 1, pad="x" * 10000)) or b.proc.find_logs("reading_paused"), every=0.1)
    posts += post(120, "late")
    time.sleep(0.7)  # until they are under way too
    if time.monotonic() - frozen > 4.5:
        raise viwtest.TooLate("after five seconds it is not slow any more, but away")
    b.redis.thaw()
    for s in posts:
        assert s.recv(100).startswith(b"HTTP/1.1 202")
        s.close()
    ws.send({"type": "PING"})
    ws.expect("PONG", timeout=8)


def test_a_log_that_nobody_reads_stops_no_agent(start, redis, connect, tmp):
    """journald that stands still, a container's full pipe: lines are left out and counted, agents go on."""
    os.mkfifo(tmp / "log")
    log = os.open(tmp / "log", os.O_RDWR | os.O_NONBLOCK)
    piped = lambda name, env: start("/bin/bash", env=env, args=["-c", 'exec "$0" 2>"$1"', str(viwtest.BIN / name), str(tmp / "log")])
    b = bridgetest.Bridge(piped, redis, connect, wait=False, rate_per_ip=1000000)
    viwtest.wait_for(lambda: viwtest.http_status(f"http://127.0.0.1:{b.port}/internal/agent/_readyz") == 200, 15, "ready")
    ws = b.connect()
    for _ in range(600):  # 64 KiB of refusals and more
        assert b.http("GET", "/agent/ws", headers={"Connection": "Upgrade", "Upgrade": "websocket"})[0] == 400
    ws.send({"type": "PING"})
    ws.expect("PONG")
    text = b""

    def told():
        nonlocal text
        try:
            text += os.read(log, 65536)
        except BlockingIOError:
            b.http("GET", "/agent/ws", headers={"Connection": "Upgrade", "Upgrade": "websocket"})  # one more line
        return re.search(rb'"event":"log_left_out","count":(\d+)', text)

    count = int(viwtest.wait_for(told, 5)[1])
    assert 0 < count < 600 and text.count(b"handshake_refused") + count >= 600
    os.close(log)
