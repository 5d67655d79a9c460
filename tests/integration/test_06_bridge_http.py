"""Contract section 4 with http.client, curl and promtool."""
import concurrent.futures
import http.client
import json
import shutil
import socket
import subprocess
import time
import uuid

import pytest
import viwtest
from bridgetest import result, telemetry

A = "/internal/agent/agents"


def error(answer):
    status, _, text = answer
    body = json.loads(text)
    assert set(body) == {"error"} and body["error"]["msg"]
    return status, body["error"]["code"]


def test_health_and_readiness(bridge):
    b = bridge()
    b.connect("gw-1")
    health = b.get("/internal/agent/_healthz")
    assert health["status"] == "ok" and health["connections"] == 1 and health["bridge_id"] == "bridge-t"
    assert health["uptime_s"] >= 0 and health["version"]
    assert b.get("/agent/_health") == {"status": "enabled"}
    assert b.get("/internal/agent/_readyz")["reasons"] == []
    b.redis.kill()
    b.wait_ready(False)
    status, _, text = b.http("GET", "/internal/agent/_readyz")
    assert status == 503 and "redis" in json.loads(text)["reasons"][0]
    assert b.get("/internal/agent/_healthz")["status"] == "ok"
    b.redis.start()
    b.wait_ready()


def test_agents_and_telemetry(bridge):
    b = bridge(ring_frames=5)
    ws = b.connect("gw-1", hello=False)
    ack = ws.expect("HELLO_ACK")
    ws.send({"type": "HELLO", "agent_id": "gw-1", "version": "1.2.3", "capabilities": [], "site": "s"})
    ws.expect("WELCOME")
    row = b.get(f"{A}/gw-1")
    assert row == {**row, "agent_id": "gw-1", "conn_id": ack["conn_id"], "epoch": ack["epoch"],
                   "ip": "127.0.0.1", "version": "1.2.3", "site": "s", "in_flight": 0, "waiting": 0}
    assert row["connected_at"] <= row["last_seen"]
    assert b.get(A)["agents"][0]["agent_id"] == "gw-1" and "next" not in b.get(A)
    assert error(b.http("GET", "/agent/telemetry/gw-1/latest"))[0] == 404
    for seq in range(8):
        ws.send(telemetry("gw-1", seq=seq))
    b.entries("telemetry", count=8)
    frames = b.get(f"{A}/gw-1/telemetry")
    assert frames["agent_id"] == "gw-1" and [f["seq"] for f in frames["frames"]] == [3, 4, 5, 6, 7]
    assert [f["seq"] for f in b.get(f"{A}/gw-1/telemetry?limit=2")["frames"]] == [6, 7]
    assert b.get("/agent/telemetry/gw-1/latest")["seq"] == 7
    for path in (f"{A}/gw-9", f"{A}/gw-9/telemetry", f"{A}/gw-9/last-result", "/agent/telemetry/gw-9/latest"):
        assert error(b.http("GET", path))[0] == 404
    for query in ("limit=0", "limit=x", "limit=1001", "limit=-1", "limit=9999999999999999999999",
                  f"limit={'9' * 40}"):
        assert error(b.http("GET", f"{A}?{query}"))[0] == 400


def test_ring_bytes_is_one_budget_for_all(bridge):
    b = bridge(ring_bytes=20000)
    agents = [b.connect(f"gw-{i}") for i in range(5)]
    for seq in range(10):
        for i, ws in enumerate(agents):
            ws.send(telemetry(f"gw-{i}", seq=seq, pad="p" * 1000))
    b.entries("telemetry", count=50)
    kept = [len(b.get(f"{A}/gw-{i}/telemetry")["frames"]) for i in range(5)]
    assert 5 <= sum(kept) <= 18, kept
    assert b.get("/agent/telemetry/gw-4/latest")["seq"] == 9
    assert b.metric("viw_ring_bytes") <= 20000
    assert b.metric("viw_frames_dropped_total", reason="ring_budget") == 50 - sum(kept)


def test_paging_is_stable_while_agents_come_and_go(bridge):
    b = bridge(rate_per_agent=1000)
    stay = {f"gw-{i:02d}" for i in range(30)}
    for name in sorted(stay, reverse=True):
        b.connect(name)
    seen, after, pages = [], "", 0
    while True:
        page = b.get(f"{A}?limit=7&after={after}")
        seen += [a["agent_id"] for a in page["agents"]]
        pages += 1
        b.connect(f"gw-{pages:02d}x", hello=False)
        guest = b.connect(f"aa-{pages}", hello=False)
        guest.close()
        if "next" not in page:
            break
        after = page["next"]
        assert after == page["agents"][-1]["agent_id"]
    assert [s for s in seen if s in stay] == sorted(stay)
    assert b.get(f"{A}?after={'gw-' + 'x' * 100}")["agents"] == []
    assert len(seen) == len(set(seen))


def test_post_command_runs_and_last_result(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    assert error(b.http("GET", f"{A}/gw-1/last-result"))[0] == 404
    status, body, _ = b.post("gw-1", correlation_id="c-1", command="ECHO", ttl_s=30,
                             payload={"message": "hi", "api_token": "s3cret-value"})
    assert (status, body) == (202, {"queued": True, "correlation_id": "c-1"})
    c = ws.expect("COMMAND")
    assert c["args"] == {"message": "hi", "api_token": "s3cret-value"} and c["ttl_remaining_ms"] <= 30000
    row = b.get(f"{A}/gw-1")
    assert row["in_flight"] == 1
    ws.send(result("gw-1", "c-1", rc=0, stdout="it is s3cret-value indeed", stderr="password=abcdef"))
    ws.expect("RESULT_ACK")
    last = b.get(f"{A}/gw-1/last-result")
    assert last["correlation_id"] == "c-1" and last["stdout"] == "it is *** indeed"
    assert "abcdef" not in last["stderr"]
    assert "s3cret-value" not in json.dumps(b.entries("command_results", correlation_id="c-1"))
    assert b.get(f"{A}/gw-1")["in_flight"] == 0


def test_post_same_id(bridge):
    b = bridge()
    b.connect("gw-1")
    assert b.post("gw-1", correlation_id="c-1", params={"a": 1})[0] == 202
    assert b.post("gw-1", correlation_id="c-1", params={"a": 1})[0] == 202
    status, body, _ = b.post("gw-1", correlation_id="c-1", params={"a": 2})
    assert (status, body["error"]["code"]) == (409, "conflict")
    assert b.post("gw-1", correlation_id="c-1", command="tail_logs")[0] == 409
    b.entries("commands", correlation_id="c-1")
    assert len(b.entries("commands", correlation_id="c-1")) == 1


def test_post_offline(bridge):
    b = bridge()
    status, body, _ = b.post("gw-off")
    assert (status, body["error"]["code"]) == (404, "not_connected")
    status, body, _ = b.post("gw-off", path="/agent/commands/{}", correlation_id="c-7")
    assert (status, body) == (202, {"queued": True, "correlation_id": "c-7"})
    ws = b.connect("gw-off")
    assert ws.expect("COMMAND")["correlation_id"] == "c-7"


@pytest.mark.parametrize("body", [
    {"command": "ECHO"}, {"correlation_id": "c", "command": ""}, {"correlation_id": "c"},
    {"correlation_id": "-c", "command": "ECHO"}, {"correlation_id": "c" * 129, "command": "ECHO"},
    {"correlation_id": "c", "command": "a b"}, {"correlation_id": "c", "command": 7},
    {"correlation_id": "c", "command": "ECHO", "type": "other"},
    {"correlation_id": "c", "command": "ECHO", "params": [1]},
    {"correlation_id": "c", "command": "ECHO", "params": {}, "payload": {}},
    {"correlation_id": "c", "command": "ECHO", "params": json.loads('{"a":' * 15 + "1" + "}" * 15)},
    {"correlation_id": "c", "command": "ECHO", "issued_by_admin_id": "a\nb"},
    {"correlation_id": "c", "command": "ECHO", "ttl_s": 0}, {"correlation_id": "c", "command": "ECHO", "ttl_s": 86401},
    {"correlation_id": "c", "command": "ECHO", "ttl_s": "60"}, {"correlation_id": "c", "command": "ECHO", "ttl_s": 1.5},
])
def test_post_schema_is_400(http_bridge, body):
    assert error(http_bridge.http("POST", "/agent/commands/gw-1", body)) == (400, "bad_command")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a":1,"a":2}', '{"a":"\\u0000"}', "{}{}", "nul"])
def test_post_bad_json_is_400(http_bridge, text):
    assert error(http_bridge.http("POST", "/agent/commands/gw-1", text)) == (400, "bad_json")


def test_http_faults(http_bridge):
    b = http_bridge
    for path in ("/", "/nope", "/internal/agent/agents/", "/internal/agent/agents/a/b/c", "/metrics/x"):
        assert error(b.http("GET", path)) == (404, "not_found")
    for method, path, allow in (("PUT", A, "GET"), ("DELETE", "/metrics", "GET"), ("POST", A, "GET"),
                                ("GET", "/agent/commands/gw-1", "POST"), ("PATCH", f"{A}/x/commands", "POST"),
                                ("GET", f"{A}/x/commands/c", "DELETE"), ("OPTIONS", "/metrics", "GET")):
        answer = b.http(method, path, headers={"Content-Length": "0"})
        assert error(answer) == (405, "method_not_allowed") and answer[1]["Allow"] == allow
    status, headers, text = b.http("HEAD", "/metrics")
    assert status == 405 and text == ""
    assert error(b.http("POST", "/agent/commands/a", b"x" * 65537)) == (413, "too_large")
    assert error(b.http("GET", "/agent/" + "x" * 600))[0] == 414


def test_curl_large_and_chunked_bodies(http_bridge, tmp):
    b = http_bridge
    (tmp / "big").write_bytes(b"a" * 3_000_000)
    url = f"http://127.0.0.1:{b.port}/agent/commands/gw-1"

    def curl(*args):
        out = subprocess.run(["curl", "-sS", "-m", "10", "-o", str(tmp / "out"), "-w", "%{http_code}", *args, url],
                             stdout=subprocess.PIPE, text=True).stdout
        return out
    assert curl("--data-binary", f"@{tmp}/big") == "413"
    assert curl("-H", "Transfer-Encoding: chunked", "-d", "{}") == "411"
    assert json.loads((tmp / "out").read_text())["error"]["code"] == "length_required"
    assert curl("-H", "Content-Length: nonsense", "-X", "POST") in ("400", "411")
    assert curl("-d", json.dumps({"correlation_id": str(uuid.uuid4()), "command": "ECHO"})) == "202"


def test_curl_waits_for_100_continue(http_bridge, tmp):
    """A body that is announced so is asked for, or refused before it was sent (RFC 9110, 10.1.1)."""
    b = http_bridge

    def curl(size, *args):
        body = json.dumps({"correlation_id": str(uuid.uuid4()), "command": "ECHO", "params": {"message": "x" * size}})
        out = subprocess.run(["curl", "-sSi", "-m", "20", "--expect100-timeout", "15", "-H", "Expect: 100-continue",
                              "-w", "\n%{size_upload}", "-d", body, *args, f"http://127.0.0.1:{b.port}/agent/commands/gw-1"],
                             stdout=subprocess.PIPE, text=True, check=True).stdout
        return [line.split()[1] for line in out.splitlines() if line.startswith("HTTP/")], int(out.splitlines()[-1]), len(body)
    status, sent, size = curl(3000)
    assert status == ["100", "202"] and sent == size
    assert curl(70000)[:2] == (["413"], 0)


def test_a_large_answer_reaches_a_slow_reader(bridge):
    """One that rests for six seconds amid 12 MB."""
    b = bridge()
    ws = b.connect()
    for seq in range(50):
        ws.send(telemetry("gw-1", seq, pad="x" * 250000))
    ws.send({"type": "PING"})
    ws.expect("PONG", timeout=20)
    with socket.create_connection(("127.0.0.1", b.port), timeout=10) as s:
        s.sendall(f"GET {A}/gw-1/telemetry HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(6)
        answer = http.client.HTTPResponse(s)
        answer.begin()
        assert len(json.loads(answer.read())["frames"]) == 50


def test_body_in_pieces_and_a_client_that_leaves(http_bridge):
    b = http_bridge
    body = json.dumps({"correlation_id": str(uuid.uuid4()), "command": "ECHO"})
    with socket.create_connection(("127.0.0.1", b.port), timeout=5) as s:
        s.sendall(f"POST /agent/commands/gw-1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        for c in body:
            s.sendall(c.encode())
            time.sleep(0.001)
        assert s.recv(4096).startswith(b"HTTP/1.1 202 ")
    for n in range(30):  # gone at every moment, some with the answer under way
        s = socket.create_connection(("127.0.0.1", b.port), timeout=5)
        text = f"POST /agent/commands/gw-1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        s.sendall(text[:len(text) * (n + 1) // 30])
        s.close()
    assert b.get("/internal/agent/_healthz")["status"] == "ok"


@pytest.fixture(scope="module")
def http_bridge():
    import bridgetest
    tmp = viwtest.make_tmp()
    redis = viwtest.RedisServer(tmp).start()
    starter = viwtest.Starter(tmp)
    yield bridgetest.Bridge(starter, redis, None, command_rate=100000, queue_max=10000)
    faults = starter.close()
    redis.close()
    assert not faults, faults


def test_queue_max_is_429(bridge):
    b = bridge(queue_max=3)
    assert [b.post("gw-off", path="/agent/commands/{}")[0] for _ in range(3)] == [202] * 3
    viwtest.wait_for(lambda: b.redis.client.xlen("viw.mbox.gw-off") == 3, what="all three routed")
    status, body, head = b.post("gw-off", path="/agent/commands/{}")
    assert status == 429
    assert body["error"]["code"] == "queue_full" and int(head["Retry-After"]) >= 1


def test_queue_max_counts_what_is_not_routed_yet(bridge):
    """The router is slower than who posts: nothing slips past it."""
    b = bridge(queue_max=3)
    b.redis.client.set("viw.lease.router", "elsewhere|1", px=600000)  # nobody routes here
    viwtest.wait_for(lambda: b.metric("viw_router_leads") == 0, what="the lease is lost")
    codes = [b.post("gw-off", path="/agent/commands/{}", correlation_id=f"c-{i}")[0] for i in range(5)]
    assert codes == [202] * 3 + [429] * 2
    assert b.redis.client.xlen("viw.mbox.gw-off") == 0
    assert b.post("gw-off", path="/agent/commands/{}", correlation_id="c-1")[0] == 202  # it is in already
    assert b.post("gw-2", path="/agent/commands/{}")[0] == 202
    b.redis.client.delete("viw.lease.router")
    viwtest.wait_for(lambda: b.redis.client.xlen("viw.mbox.gw-off") == 3, what="all three routed")
    assert not b.redis.client.exists("viw.posted.gw-off")
    assert b.post("gw-off", path="/agent/commands/{}")[0] == 429


def test_queue_max_bounds_cancels(bridge):
    """Whoever cancels in a loop fills neither the stream nor Redis with what is known of ids."""
    b = bridge(queue_max=3)
    b.redis.client.set("viw.lease.router", "elsewhere|1", px=600000)  # nobody routes here
    viwtest.wait_for(lambda: b.metric("viw_router_leads") == 0, what="the lease is lost")
    cancel = lambda cid, agent="gw-1": b.http("DELETE", f"{A}/{agent}/commands/{cid}")
    assert [cancel(f"c-{i}")[0] for i in range(6)] == [202] * 3 + [429] * 3
    status, head, text = cancel("c-9")
    assert (status, json.loads(text)["error"]["code"]) == (429, "queue_full") and head["Retry-After"] == "60"
    assert [cancel("c-1")[0] for _ in range(5)] == [202] * 5  # asked already: nothing is added
    assert cancel("c-9", agent="gw-2")[0] == 202
    assert b.redis.client.xlen("viw.commands") == 4 and b.metric("viw_http_commands_total", code="429") == 4
    b.redis.client.delete("viw.lease.router")
    viwtest.wait_for(lambda: len(list(b.redis.client.scan_iter("viw.cid.*"))) == 4, what="all four routed")


def test_command_rate_is_429(bridge):
    b = bridge(command_rate=4, queue_max=1000)
    codes = [b.post("gw-1", path="/agent/commands/{}")[0] for _ in range(6)]
    assert codes == [202] * 4 + [429] * 2
    _, body, head = b.post("gw-1", path="/agent/commands/{}")
    assert body["error"]["code"] == "rate_limited" and 1 <= int(head["Retry-After"]) <= 15
    assert b.post("gw-2", path="/agent/commands/{}")[0] == 202


def test_delete_cancels(bridge):
    b = bridge()
    b.post("gw-1", path="/agent/commands/{}", correlation_id="c-1")
    status, _, text = b.http("DELETE", f"{A}/gw-1/commands/c-1")
    assert status == 202 and json.loads(text)["correlation_id"] == "c-1"
    done = b.entries("command_results", correlation_id="c-1")
    assert done[0]["source"] == "bridge" and done[0]["state"] == "cancelled"
    assert error(b.http("DELETE", f"{A}/gw-1/commands/-x"))[0] == 400
    ws = b.connect("gw-1")
    b.post("gw-1", correlation_id="c-2")
    ws.expect("COMMAND", correlation_id="c-2")
    assert b.http("DELETE", f"{A}/gw-1/commands/c-2")[0] == 202
    assert ws.expect("CANCEL")["correlation_id"] == "c-2"


def test_admin_token(bridge):
    b = bridge(admin_token="tok-1")
    good, bad = {"Authorization": "Bearer tok-1"}, {"Authorization": "Bearer tok-2"}
    for path in ("/internal/agent/_healthz", "/internal/agent/_readyz", "/agent/_health"):
        assert b.http("GET", path)[0] == 200
    for method, path in (("GET", A), ("GET", f"{A}/x"), ("GET", f"{A}/x/telemetry"), ("GET", "/metrics"),
                         ("GET", f"{A}/x/last-result"), ("GET", "/agent/telemetry/x/latest"),
                         ("POST", f"{A}/x/commands"), ("POST", "/agent/commands/x"), ("DELETE", f"{A}/x/commands/c")):
        for headers in ({}, bad, {"Authorization": "Basic tok-1"}, {"Authorization": "Bearer tok-1x"},
                        {"Authorization": "Bearer "}):
            answer = b.http(method, path, body=b"{}" if method == "POST" else None, headers=headers)
            assert error(answer) == (401, "unauthorized")
            assert answer[1]["WWW-Authenticate"] == "Bearer"
        assert b.http(method, path, body=b"{}" if method == "POST" else None, headers=good)[0] not in (401, 403)
    assert "tok-1" not in b.proc.text


def test_the_longest_admin_token(bridge):
    b = bridge(admin_token="t" * 1024)
    assert b.http("GET", "/metrics", headers={"Authorization": f"Bearer {'t' * 1024}"})[0] == 200
    for n in (1023, 1025):
        assert b.http("GET", "/metrics", headers={"Authorization": f"Bearer {'t' * n}"})[0] == 401


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return s.getsockname()[0]
        except OSError:
            return None


def test_without_token_only_loopback_peers(bridge):
    b = bridge()
    assert b.http("GET", A)[0] == 200
    for header in ("X-Forwarded-For", "X-Real-IP", "Via", "Forwarded"):
        assert error(b.http("GET", A, headers={header: "127.0.0.1"})) == (403, "forbidden")
    proxied = bridge(trusted_proxies="127.0.0.1", wait=False)
    proxied.proc.wait_log("listening")
    assert error(proxied.http("GET", A)) == (403, "forbidden")
    assert proxied.http("GET", "/internal/agent/_healthz")[0] == 200
    ip = own_address()
    if not ip or ip.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    port = viwtest.free_port()
    wide = bridge(bind=f"0.0.0.0:{port}", wait=False)
    wide.proc.wait_log("listening")
    out = subprocess.run(["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}",
                          f"http://{ip}:{port}{A}"], stdout=subprocess.PIPE, text=True).stdout
    assert out == "403"


def test_internal_bind_moves_the_endpoints(bridge):
    port = viwtest.free_port()
    b = bridge(internal_bind=f"127.0.0.1:{port}")
    b.connect("gw-1")
    assert b.get(A)["agents"][0]["agent_id"] == "gw-1"
    for path in (A, "/metrics", "/internal/agent/_healthz", "/agent/commands/x"):
        assert error(b.http("GET", path, port=b.port))[0] == 404
    assert b.http("GET", "/agent/_health", port=b.port)[0] == 200
    assert error(b.http("GET", "/agent/ws"))[0] == 404


def test_metrics_pass_promtool(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    ws.send(telemetry("gw-1"))
    b.entries("telemetry")
    status, headers, text = b.http("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for name in ("viw_active_sessions", "viw_connections_total", "viw_handshake_refused_total",
                 "viw_frames_total", "viw_frames_refused_total", "viw_heartbeats_missed_total",
                 "viw_frames_dropped_total", "viw_commands_in_flight", "viw_commands_waiting",
                 "viw_command_dispatch_seconds", "viw_redis_up", "viw_redis_reply_seconds"):
        assert f"# TYPE {name} " in text, name
    assert b.metric("viw_active_sessions") == 1 and b.metric("viw_redis_up") == 1
    assert b.metric("viw_frames_total", type="TELEMETRY", direction="in") == 1
    assert b.metric("viw_frames_total", type="WELCOME", direction="out") == 1
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian package prometheus)")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


def test_many_requests_at_once(bridge):
    b = bridge()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: b.http("GET", "/internal/agent/_healthz")[0], range(400)))
    assert set(answers) == {200}


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_client_that_leaves_a_waiting_answer_costs_nothing(bridge):
    """Redis hangs, so the answer waits; one client is gone meanwhile, one is patient."""
    b = bridge()
    body = json.dumps({"correlation_id": "c-1", "command": "ECHO"})
    text = f"POST /agent/commands/gw-1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    b.redis.freeze()
    gone = socket.create_connection(("127.0.0.1", b.port), timeout=5)
    gone.sendall(text)
    gone.close()
    more = socket.create_connection(("127.0.0.1", b.port), timeout=10)
    more.sendall(text)
    before = cpu_s(b.proc.pid)
    time.sleep(1.5)
    assert cpu_s(b.proc.pid) - before < 0.5
    b.redis.thaw()
    assert more.recv(4096).startswith((b"HTTP/1.1 202 ", b"HTTP/1.1 503 "))
    more.close()
