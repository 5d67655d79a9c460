"""Contract 1 and 1.1 with python websockets, wscat's way of connecting, and raw sockets."""
import json
import re
import signal
import socket
import subprocess
import time
import uuid

import pytest
import viwtest
from bridgetest import SECRET


def raw(port, text, wait=3.0):
    """Bytes out, all bytes until the peer closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as s:
        s.sendall(text.encode() if isinstance(text, str) else text)
        out = b""
        try:
            while chunk := s.recv(65536):
                out += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return out.decode("utf-8", "replace")


def upgrade(headers, path="/agent/ws", drop=(), extra=""):
    lines = {"Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **headers}
    return f"GET {path} HTTP/1.1\r\n" + "".join(
        f"{k}: {v}\r\n" for k, v in lines.items() if k not in drop) + extra + "\r\n"


def body_of(answer):
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 "), answer
    return int(head.split()[1]), json.loads(body)["error"], head


def test_accepts_both_paths_and_no_subprotocol(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    assert ws.ws.subprotocol == "viworks-agent-v1"
    ack, welcome = ws.hello_ack, ws.welcome
    assert ack["agent_id"] == "gw-1" and welcome["session_id"] == ack["conn_id"]
    assert ack["heartbeat_s"] == 20 and ack["max_frame_bytes"] == 262144 and ack["epoch"] > 0
    assert {"HELLO", "TELEMETRY", "RESULT"} <= set(ack["supported"])
    assert set(ack) == {"type", "agent_id", "conn_id", "epoch", "server_time", "supported", "heartbeat_s", "max_frame_bytes"}
    assert welcome["max_in_flight"] == 4 and welcome["server_nonce"]
    assert welcome["heartbeat_s"] == 20 and welcome["cmd_timeout_s"] > 0 and welcome["now"].endswith("Z")
    assert set(welcome) == {"type", "session_id", "heartbeat_s", "cmd_timeout_s", "max_in_flight", "now", "server_nonce"}
    alias = b.connect("gw-2", path="/ws/agent")
    assert alias.welcome
    bare = b.connect("gw-3", subprotocols=())
    assert bare.ws.subprotocol is None
    several = b.connect("gw-4", subprotocols=("chat", "viworks-agent-v1"))
    assert several.ws.subprotocol == "viworks-agent-v1"


def test_the_answer_to_the_upgrade_and_hello_ack_come_in_one_segment(bridge):
    b = bridge()
    whole = 0
    for i in range(5):  # a machine that stands still for 200 ms in between may split one
        with socket.create_connection(("127.0.0.1", b.port), timeout=5) as s:
            s.sendall(upgrade(b.headers(f"gw-{i}")).encode())
            first = s.recv(65536)
        assert first.startswith(b"HTTP/1.1 101 ")
        whole += b'"HELLO_ACK"' in first
    assert whole >= 3


def test_the_answer_to_the_upgrade_does_not_wait_for_a_redis_that_hangs(bridge):
    b = bridge()
    redis = b.redis.proc
    with socket.create_connection(("127.0.0.1", b.port), timeout=3) as s:
        redis.signal(signal.SIGSTOP)
        try:
            s.sendall(upgrade(b.headers("gw-1")).encode())
            first = s.recv(65536)
        finally:
            redis.signal(signal.SIGCONT)
        assert first.startswith(b"HTTP/1.1 101 ") and first.endswith(b"\r\n\r\n")
        assert b'"HELLO_ACK"' in s.recv(65536)


def test_plain_get_is_426(bridge):
    b = bridge()
    for path in ("/agent/ws", "/ws/agent"):
        status, headers, text = b.http("GET", path)
        assert status == 426 and json.loads(text)["error"]["code"] == "upgrade_required"
        assert headers["Upgrade"] == "websocket"


@pytest.mark.parametrize("change, status, code", [
    ({"X-Agent-Id": ".bad"}, 400, "bad_agent_id"),
    ({"X-Agent-Id": "x" * 65}, 400, "bad_agent_id"),
    ({"X-Agent-Id": None}, 400, "bad_agent_id"),
    ({"X-Timestamp": "yesterday"}, 400, "bad_timestamp"),
    ({"X-Timestamp": None}, 400, "bad_timestamp"),
    ({"X-Nonce": "1234"}, 400, "bad_nonce"),
    ({"X-Nonce": "11111111-1111-1111-8111-111111111111"}, 400, "bad_nonce"),
    ({"X-Nonce": None}, 400, "bad_nonce"),
    ({"X-Agent-Auth": None}, 401, "missing_auth"),
    ({"X-Agent-Auth": "0" * 64}, 401, "bad_auth"),
    ({"X-Agent-Auth": "nonsense"}, 401, "bad_auth"),
    ({"X-SSL-Client-Verify": "SUCCESS"}, 400, "untrusted_identity"),
    ({"X-SSL-Client-Cert": "x"}, 400, "untrusted_identity"),
    ({"X-SSL-Client-Fingerprint": "x"}, 400, "untrusted_identity"),
    ({"X-SSL-Client-DN": "CN=gw-1"}, 400, "untrusted_identity"),
    ({"X-SSL-Client-SAN": "DNS:gw-1"}, 400, "untrusted_identity"),
])
def test_refusals(shared_bridge, change, status, code):
    b = shared_bridge
    before = b.metric("viw_handshake_refused_total", code=code)
    headers = {k: v for k, v in {**b.headers("gw-1"), **change}.items() if v is not None}
    got, error, head = body_of(raw(b.port, upgrade(headers)))
    assert (got, error["code"]) == (status, code) and error["msg"]
    assert "application/json" in head
    line = b.proc.wait_log("handshake_refused", error=code)
    assert line["ip"] == "127.0.0.1"
    if "X-Agent-Id" not in change:
        assert line["agent_id"] == "gw-1"
    assert b.metric("viw_handshake_refused_total", code=code) == before + 1
    assert SECRET not in b.proc.text


@pytest.fixture(scope="module")
def shared_bridge(request):
    """One bridge for the table of refusals: nothing in it changes state."""
    import bridgetest
    tmp = viwtest.make_tmp()
    starter = viwtest.Starter(tmp)
    redis = viwtest.RedisServer(tmp).start()
    loop = viwtest.WsLoop()
    yield bridgetest.Bridge(starter, redis, lambda *a, **k: viwtest.WsClient(loop, *a, **k))
    faults = starter.close()
    redis.close()
    loop.close()
    assert not faults, faults


def test_wrong_subprotocol_is_400(bridge):
    b = bridge()
    status, code, _ = b.refused(b.headers("gw-1"), subprotocols=("chat", "viworks-agent-v2"))
    assert (status, code) == (400, "wrong_subprotocol")


def test_skew_both_ways(bridge):
    b = bridge(max_skew_s=60)
    for off, ok in ((-55, True), (55, True), (-65, False), (65, False)):
        headers = b.headers("gw-1", timestamp=viwtest.rfc3339(off))
        if ok:
            b.connect("gw-1", headers=headers)
        else:
            assert b.refused(headers)[:2] == (401, "skew")


def test_hmac_covers_path_and_either_hex_case(bridge):
    b = bridge()
    assert b.refused(b.headers("gw-1", path="/ws/agent"))[:2] == (401, "bad_auth")
    headers = b.headers("gw-1")
    headers["X-Agent-Auth"] = headers["X-Agent-Auth"].upper()
    assert b.connect("gw-1", headers=headers).welcome


@pytest.mark.parametrize("path", [
    "/agent/%77s", "/agent%2fws", "/%61gent/ws", "//agent/ws", "/agent//ws", "/agent/./ws", "/agent/../agent/ws", "/x/../agent/ws",
    "/agent/%2e%2e/agent/ws", "/agent/ws/", "/agent/ws/.", "/agent/ws%3fa", "/agent/ws;a", "/AGENT/ws", "/ws/../ws/agent", "/w%73/agent"])
def test_the_path_has_to_be_written_as_it_is(shared_bridge, path):
    """With an HMAC over what was sent, over what it amounts to, and plain: a path like any that nothing serves."""
    b = shared_bridge
    for signed in (path, "/agent/ws", "/ws/agent"):
        status, error, _ = body_of(raw(b.port, upgrade(b.headers("gw-literal", path=signed), path=path)))
        assert (status, error["code"]) == (404, "not_found"), signed
    out = subprocess.run(["curl", "-s", "--path-as-is", "-w", "%{http_code}", f"http://127.0.0.1:{b.port}{path}"],
                         capture_output=True, text=True, timeout=10, check=True)
    assert json.loads(out.stdout[:-3])["error"]["code"] == "not_found" and out.stdout.endswith("404")
    assert not b.proc.find_logs("connected", agent_id="gw-literal")


def test_a_query_is_no_part_of_the_path(bridge):
    b = bridge()
    for path in ("/agent/ws", "/ws/agent"):
        answer = raw(b.port, upgrade(b.headers("gw-1", path=path), path=path + "?site=%77&x=/.."), 0.5)
        assert answer.startswith("HTTP/1.1 101 "), answer


def test_nonce_is_used_once(bridge):
    b = bridge()
    headers = b.headers("gw-1")
    b.connect("gw-1", headers=headers)
    assert b.refused(headers)[:2] == (401, "replayed_nonce")
    # another agent may use the same one
    nonce = headers["X-Nonce"]
    assert b.connect("gw-2", headers=b.headers("gw-2", nonce=nonce)).welcome


def test_nonce_seen_by_another_bridge_closes_4001(bridge):
    b1, b2 = bridge(id="b1"), bridge(id="b2")
    headers = b1.headers("gw-1")
    b1.connect("gw-1", headers=headers)
    ws = b2.connect("gw-1", headers=headers, hello=False)
    assert ws.wait_closed() == 4001


def test_a_full_nonce_store_is_503_until_a_nonce_is_out_of_its_window(bridge):
    """It refuses, it forgets nothing early: what it has seen is refused while it is full, and after."""
    b = bridge(nonces_max=16, max_skew_s=60, rate_per_agent=10000, rate_per_ip=10000)
    kept = b.headers("gw-0")
    b.connect("gw-0", headers=kept, hello=False)
    for i in range(1, 15):
        b.connect(f"gw-{i}", hello=False)
    ends = time.time() + 5
    b.connect("gw-15", headers=b.headers("gw-15", timestamp=viwtest.rfc3339(5 - 60)), hello=False)
    status, error, head = body_of(raw(b.port, upgrade(b.headers("gw-16"))))
    assert (status, error["code"]) == (503, "nonce_store_full") and error["msg"]
    assert "application/json" in head and 1 <= int(re.search(r"Retry-After: (\d+)", head)[1]) <= 10
    line = b.proc.wait_log("handshake_refused", error="nonce_store_full")
    assert line["agent_id"] == "gw-16" and line["ip"] == "127.0.0.1" and line["level"] == "warn"
    assert b.metric("viw_handshake_refused_total", code="nonce_store_full") == 1
    assert b.metric("viw_nonces_remembered") == b.metric("viw_active_sessions") == 16
    assert b.refused(kept)[:2] == (401, "replayed_nonce")
    viwtest.wait_for(lambda: raw(b.port, upgrade(b.headers("gw-16")), 0.3).startswith("HTTP/1.1 101 "), 20, every=0.2)
    assert time.time() >= ends - 0.1
    assert b.refused(b.headers("gw-17"))[:2] == (503, "nonce_store_full")
    assert b.refused(kept)[:2] == (401, "replayed_nonce")


def test_secret_unset_refuses_auth_header(bridge):
    b = bridge(secret=None)
    assert b.refused(b.headers("gw-1", secret="some"))[:2] == (401, "unexpected_auth")
    assert b.connect("gw-1").welcome


def test_without_secret_or_certificates_only_loopback_is_bound(start):
    p = start("agent-bridge", env={"AGENT_BRIDGE_BIND": "0.0.0.0:1"})
    assert p.wait_exit() == 78
    assert "AGENT_BRIDGE_BIND" in p.text and "SHARED_SECRET" in p.text


def test_allowlist_and_decommissioned_are_403(bridge):
    b = bridge(allowed_agent_ids="gw-1,gw-2")
    assert b.refused(b.headers("gw-9"))[:2] == (403, "not_allowed")
    ws = b.connect("gw-2")
    b.redis.client.sadd("viw.decommissioned", "gw-2")
    assert ws.wait_closed(10) == 4003
    viwtest.wait_for(lambda: b.refused(b.headers("gw-2"))[:2] == (403, "decommissioned"), 7)


def test_what_changes_in_a_long_denylist_takes_effect(bridge, redis):
    """Read in pieces, of which none may be lost; one taken off and one put on leave its length as it was."""
    fill = [f"away-{i}" for i in range(20000)]
    redis.client.sadd("viw.decommissioned", "gw-2", *fill)
    b = bridge()
    ws = b.connect("gw-1")
    for name in ("gw-2", fill[0], fill[9999], fill[-1]):
        viwtest.wait_for(lambda: raw(b.port, upgrade(b.headers(name)), 0.3).startswith("HTTP/1.1 403 "), 8, every=0.5)
    redis.client.pipeline().srem("viw.decommissioned", "gw-2").sadd("viw.decommissioned", "gw-1").execute()
    assert ws.wait_closed(10) == 4003
    for name, answer in (("gw-1", "HTTP/1.1 403 "), ("gw-2", "HTTP/1.1 101 ")):
        viwtest.wait_for(lambda: raw(b.port, upgrade(b.headers(name)), 0.3).startswith(answer), 8, every=0.5)
    calls = redis.client.info("commandstats")
    assert calls["cmdstat_sscan"]["calls"] > 40 and "cmdstat_smembers" not in calls


def test_a_denylist_that_cannot_be_read_is_told_once_and_stays_in_force(bridge, redis):
    keys = {"viw.decommissioned", "viw.revoked"}
    redis.client.sadd("viw.decommissioned", "gw-2")
    b = bridge()
    assert b.connect("gw-1").welcome  # the list was asked for before
    for key in keys:
        redis.client.set(key, "no set")
    b.proc.wait_log("denylist_refused", count=2)
    lines = b.proc.find_logs("denylist_refused")
    assert {line["detail"] for line in lines} == keys
    assert all(line["error"].startswith("WRONGTYPE") and line["level"] == "error" for line in lines)
    assert b.refused(b.headers("gw-2"))[:2] == (403, "decommissioned")
    redis.client.delete(*keys)
    assert b.connect("gw-3").welcome


def test_a_right_to_the_denylists_that_is_taken_away_is_told_once_and_opens_nothing(bridge, redis):
    keys = {"viw.decommissioned", "viw.revoked"}
    redis.client.sadd("viw.decommissioned", "gw-2")
    b = bridge()
    ws = b.connect("gw-1")  # the list was asked for before
    rights = lambda *words: redis.client.execute_command("ACL", "SETUSER", "default", *words)
    rights("-smembers", "-sscan")
    b.proc.wait_log("denylist_refused", count=2)
    redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    b.proc.wait_log("redis_up", count=2)  # they are asked for again at once
    redis.client.sadd("viw.decommissioned", "gw-1", "gw-3")
    assert b.refused(b.headers("gw-2"))[:2] == (403, "decommissioned")  # what was read stays in force
    assert b.connect("gw-3", hello=False).wait_closed() == 4003  # and Redis is asked about each
    rights("-sismember")
    assert b.connect("gw-4", hello=False).wait_closed() == 4013  # it cannot be: nobody comes in
    assert b.proc.find_logs("redis_refused", detail="claim")
    rights("+smembers", "+sscan", "+sismember")
    assert ws.wait_closed(10) == 4003
    viwtest.wait_for(lambda: raw(b.port, upgrade(b.headers("gw-3")), 0.3).startswith("HTTP/1.1 403 "), 8, every=0.5)
    lines = b.proc.find_logs("denylist_refused")
    assert sorted(line["detail"] for line in lines) == sorted(keys)
    assert all(line["error"].startswith("NOPERM") and line["level"] == "error" for line in lines)


def test_rate_per_address_and_agent(bridge):
    b = bridge(rate_per_ip=6, rate_per_agent=3)
    for _ in range(3):
        b.connect("gw-1", hello=False)
    status, code, headers = b.refused(b.headers("gw-1"))
    assert (status, code) == (429, "rate_limited_agent") and 1 <= int(headers["Retry-After"]) <= 20
    for _ in range(2):
        b.connect("gw-2", hello=False)
    status, code, headers = b.refused(b.headers("gw-3"))
    assert (status, code) == (429, "rate_limited_ip") and 1 <= int(headers["Retry-After"]) <= 10


def test_max_conn_is_503_but_an_agent_may_take_its_own_place(bridge):
    b = bridge(max_conn=2)
    first = b.connect("gw-1")
    b.connect("gw-2")
    status, code, headers = b.refused(b.headers("gw-3"))
    assert (status, code) == (503, "max_conn") and int(headers["Retry-After"]) >= 1
    again = b.connect("gw-1")
    assert first.wait_closed() == 4000
    assert again.hello_ack["epoch"] > first.hello_ack["epoch"]


def test_superseded_across_bridges_closes_4000(bridge):
    b1, b2 = bridge(id="b1"), bridge(id="b2")
    old = b1.connect("gw-1")
    new = b2.connect("gw-1")
    assert old.wait_closed() == 4000
    assert new.hello_ack["epoch"] > old.hello_ack["epoch"]
    events = b2.entries("agent_events", agent_id="gw-1", event="disconnected", reason="superseded")
    assert events[0]["conn_id"] == old.hello_ack["conn_id"]


def test_redis_away_is_503(bridge):
    b = bridge()
    b.redis.kill()
    b.wait_ready(False)
    status, code, headers = b.refused(b.headers("gw-1"))
    assert (status, code) == (503, "redis_away") and int(headers["Retry-After"]) >= 1
    b.redis.start()
    b.wait_ready()
    assert b.connect("gw-1").welcome


@pytest.mark.parametrize("drop, extra", [
    ((), "Sec-WebSocket-Version: 12\r\n"),
    (("Sec-WebSocket-Version",), ""),
    (("Sec-WebSocket-Key",), ""),
    (("Host",), ""),
    (("Upgrade",), "Upgrade: foo\r\n"),
    (("Upgrade",), "Upgrade: h2c\r\n"),
    (("Upgrade",), "Upgrade: websocket, foo\r\n"),
    (("Upgrade",), "Upgrade: " + "w" * 200 + "\r\n"),
])
def test_malformed_upgrades_are_400(shared_bridge, drop, extra):
    b = shared_bridge
    before, lines = b.metric("viw_handshake_refused_total", code="bad_upgrade"), len(b.proc.find_logs("handshake_refused"))
    status, error, head = body_of(raw(b.port, upgrade(b.headers("gw-1"), drop=drop, extra=extra)))
    assert (status, error["code"]) == (400, "bad_upgrade") and error["msg"] and "application/json" in head
    line = viwtest.wait_for(lambda: b.proc.find_logs("handshake_refused")[lines:], what="a log line")
    assert len(line) == 1 and (line[0]["error"], line[0]["ip"], line[0]["agent_id"]) == ("bad_upgrade", "127.0.0.1", "gw-1")
    assert b.metric("viw_handshake_refused_total", code="bad_upgrade") == before + 1


def test_what_libwebsockets_refuses_by_itself_is_answered_as_the_rest(shared_bridge):
    for path, to in (("/metrics", "foo"), ("/metrics", "websocket"), ("/nope", "h2c")):
        status, error, _ = body_of(raw(shared_bridge.port, upgrade({"Upgrade": to}, path=path)))
        assert (status, error["code"]) == (404, "not_found"), (path, to)
    for line in ("GET foo HTTP/1.1", "BREW / HTTP/1.1"):
        status, error, _ = body_of(raw(shared_bridge.port, f"{line}\r\nHost: x\r\n\r\n"))
        assert 400 <= status < 500 and error["code"] and error["msg"], line


BAD_HEADS = {  # libwebsockets would hang up on most of these without a word
    "a NUL in the path": b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a NUL in the query": b"GET /metrics?a=%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bare NUL": b"GET /a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
    "half an escape": b"GET /a%0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no escape": b"GET /a%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /metrics\r\nHost: x\r\n\r\n",
    "another version": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two requests in one": b"GET / HTTP/1.1\r\nPOST /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a request as header": b"GET / HTTP/1.1\r\nGET : x\r\n\r\n",
    "many parts": b"GET /metrics?" + b"a=1&" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many headers": b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"Accept: a\r\n" * 200 + b"\r\n",
    "a header without a name": b"GET /metrics HTTP/1.1\r\n: x\r\n\r\n",
    "a folded header": b"GET /metrics HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
    "a NUL in a header": b"GET /metrics HTTP/1.1\r\nHost: x\0y\r\n\r\n",
    "TLS where there is none": bytes.fromhex("16030100c8010000c40303") + b"\n\n",
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_head_that_cannot_be_read_is_400(shared_bridge, name):
    b = shared_bridge
    before, lines = b.metric("viw_handshake_refused_total", code="bad_request"), len(b.proc.find_logs("handshake_refused"))
    status, error, head = body_of(raw(b.port, BAD_HEADS[name]))
    assert (status, error["code"]) == (400, "bad_request") and error["msg"] and "application/json" in head
    line = viwtest.wait_for(lambda: [x for x in b.proc.find_logs("handshake_refused")[lines:] if x["msg"] == error["msg"]],
                            what="a log line")
    assert [(x["error"], x["ip"]) for x in line] == [("bad_request", "127.0.0.1")]
    assert b.metric("viw_handshake_refused_total", code="bad_request") == before + 1


def test_a_head_that_cannot_be_read_is_told_at_its_first_byte_that_is_wrong(shared_bridge):
    """And a client that goes on sending gets to read the answer."""
    with socket.create_connection(("127.0.0.1", shared_bridge.port), timeout=5) as s:
        s.sendall(b"GET /a%00")
        assert s.recv(4096).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", shared_bridge.port), timeout=5) as s:
        s.sendall(b"GET / HTTP/1.1\r\n bad\r\n" + b"x" * 300000)
        s.shutdown(socket.SHUT_WR)
        assert s.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert s.recv(4096) == b""


def test_heads_that_cannot_be_read_on_the_internal_listener(bridge):
    b = bridge(internal_bind=f"127.0.0.1:{viwtest.free_port()}")
    for head in BAD_HEADS.values():
        status, error, _ = body_of(raw(b.internal_port, head))
        assert (status, error["code"]) == (400, "bad_request")


def test_heads_at_the_limits_are_served(shared_bridge):
    """64 header lines, 16 parts of a query, 8192 bytes."""
    b = shared_bridge
    most = "GET /agent/_health?" + "&".join("abcdefghijklmnop") + " HTTP/1.1\r\nHost: x\r\n" + "Accept: a\r\n" * 63 + "\r\n"
    for text in (most, upgrade(b.headers("gw-1"), path="/agent/_health", drop=("Upgrade", "Connection"), extra="X-Junk: ")[:-2]):
        if not text.endswith("\r\n\r\n"):
            text += "j" * (8192 - len(text) - 4) + "\r\n\r\n"
            assert len(text) == 8192
        assert raw(b.port, text).startswith("HTTP/1.1 200 ")
    short = "".join(f"X-{i}: {i}\r\n" for i in range(63))
    assert raw(b.port, f"GET /agent/_health HTTP/1.1\r\nHost: x\r\n{short}\r\n").startswith("HTTP/1.1 200 ")


def test_a_connection_serves_one_request(bridge):
    """So that each head was looked at; for some later ones libwebsockets 4.1.6 uses freed memory or waits for ever."""
    b = bridge(internal_bind=f"127.0.0.1:{viwtest.free_port()}")
    first = b"GET /agent/_health HTTP/1.1\r\nHost: x\r\n\r\n"
    more = [first[:-2] + f"Upgrade: {to}\r\nConnection: Upgrade\r\n\r\n".encode() for to in ("foo", "h2c", "websocket", "")]
    for port in (b.internal_port, b.port):
        for head in (first, *more, *BAD_HEADS.values()):
            for at_once in (True, False):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
                    s.sendall(first + head if at_once else first)
                    answer = s.makefile("rb").read()  # to the end
                assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1 ") == 1, (head, answer)
                assert b"\r\nConnection: close\r\n" in answer and answer.endswith(b"}")
    url = f"http://127.0.0.1:{b.internal_port}/agent/_health"  # clients cope
    assert subprocess.run(["curl", "-sSf", url, url], stdout=subprocess.PIPE, timeout=20, check=True).stdout.count(b"enabled") == 2


def test_duplicate_auth_header_is_400(shared_bridge):
    b = shared_bridge
    for name in ("X-Agent-Id", "X-Agent-Auth", "X-Nonce", "x-timestamp"):
        got, error, _ = body_of(raw(b.port, upgrade(b.headers("gw-1"), extra=f"{name}: gw-1\r\n")))
        assert (got, error["code"]) == (400, "duplicate_header")


def test_header_in_pieces(shared_bridge):
    """A request head that comes byte by byte is judged like any other."""
    b = shared_bridge
    head = upgrade(b.headers("gw-77")).encode()
    with socket.create_connection(("127.0.0.1", b.port), timeout=5) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(head), 7):
            s.sendall(head[i:i + 7])
            time.sleep(0.002)
        assert s.recv(4096).startswith(b"HTTP/1.1 101 ")


def test_huge_head_is_refused_and_others_go_on(shared_bridge):
    b = shared_bridge
    for junk in (9000, 20000, 300000):
        status, error, _ = body_of(raw(b.port, upgrade(b.headers("gw-1"), extra="X-Junk: " + "j" * junk + "\r\n"), 2))
        assert (status, error["code"]) == (431, "head_too_large"), junk
    assert b.connect(f"gw-{uuid.uuid4().hex[:8]}").welcome
