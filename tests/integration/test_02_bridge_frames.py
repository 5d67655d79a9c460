"""Contract 1.2 and the streams of section 2, with python websockets as the agent and redis-py."""
import json
import socket
import struct
import threading
import time
import uuid

import pytest
import viwtest
import wslib
from bridgetest import result, telemetry


def test_hello_and_telemetry_arrive_in_redis(bridge):
    b = bridge()
    ws = b.connect("gw-1", hello=False)
    ack = ws.expect("HELLO_ACK")
    early = telemetry("gw-1", seq=1)
    ws.send(early)  # before HELLO: accepted
    hello = {"type": "HELLO", "agent_id": "gw-1", "version": "1.2.3", "capabilities": ["a"],
             "site": "s 1", "hostname": "h", "labels": {"k": "v"}}
    ws.send(hello)
    ws.expect("WELCOME")
    ws.send({**telemetry("gw-1", seq=2), "unknown": {"kept": [1, None]}})
    got = b.entries("telemetry", agent_id="gw-1", count=2)
    assert json.loads(got[0]["frame"]) == early
    assert json.loads(got[1]["frame"])["unknown"] == {"kept": [1, None]}
    for e in got + b.entries("agent_hello"):
        assert e["bridge_id"] == "bridge-t" and e["conn_id"] == ack["conn_id"]
        assert e["epoch"] == str(ack["epoch"]) and e["ip"] == "127.0.0.1"
        assert e["received_at"].endswith("Z")
    assert json.loads(b.entries("agent_hello")[0]["frame"]) == hello
    assert b.entries("agent_events", event="connected")[0]["conn_id"] == ack["conn_id"]
    ws.close()
    gone = b.entries("agent_events", event="disconnected")[0]
    assert gone["conn_id"] == ack["conn_id"] and gone["reason"] == "peer_closed"


def test_heartbeat_ping_audit(bridge):
    b = bridge()
    ws = b.connect()
    ws.send({"type": "HEARTBEAT", "agent_id": "gw-1", "ts": "2026-11-20T11:00:00.500Z"})
    beat = ws.expect("HEARTBEAT")
    assert beat["echo"] == "2026-11-20T11:00:00.500Z" and beat["ts"].endswith("Z")
    ws.send({"type": "PING", "ts": "abc"})
    assert ws.expect("PONG")["ts"] == "abc"
    ws.send({"type": "AUDIT", "agent_id": "gw-1", "record": {"seq": 5}})
    audit = b.entries("agent_events", event="audit")[0]
    assert json.loads(audit["frame"])["record"] == {"seq": 5}


def test_command_result_and_ack(bridge):
    b = bridge()
    ws = b.connect()
    cid = b.redis.xadd_command("gw-1", "ECHO", params={"message": "hi"}, issued_by_admin_id="42")
    c = ws.expect("COMMAND")
    assert c["correlation_id"] == cid and c["verb"] == "ECHO" and c["args"] == {"message": "hi"}
    assert c["agent_id"] == "gw-1" and c["issued_by"] == "42" and c["nonce"]
    assert 0 < c["ttl_remaining_ms"] <= 60000
    ws.send({"type": "COMMAND_ACK", "agent_id": "gw-1", "correlation_id": cid})
    b.entries("command_events", correlation_id=cid, event="offered")
    b.entries("command_events", correlation_id=cid, event="accepted")
    ws.send(result("gw-1", cid, rc=0, stdout="hi"))
    ws.expect("RESULT_ACK", correlation_id=cid)
    stored = b.entries("command_results", correlation_id=cid)
    assert len(stored) == 1 and stored[0]["source"] == "agent" and stored[0]["command"] == "ECHO"
    assert json.loads(stored[0]["frame"])["stdout"] == "hi"
    ws.send(result("gw-1", cid, rc=0, stdout="hi"))  # again: acknowledged, not stored
    ws.expect("RESULT_ACK", correlation_id=cid)
    assert len(b.entries("command_results", correlation_id=cid)) == 1


def test_commands_wait_for_welcome(bridge):
    b = bridge()
    ws = b.connect("gw-1", hello=False)
    ws.expect("HELLO_ACK")
    cid = b.redis.xadd_command("gw-1", "ECHO")
    viwtest.wait_for(lambda: b.redis.client.exists("viw.mbox.gw-1"), what="routed")
    with pytest.raises(AssertionError):
        ws.recv(0.5)
    ws.send({"type": "HELLO", "agent_id": "gw-1", "version": "1", "capabilities": []})
    ws.expect("WELCOME")
    assert ws.expect("COMMAND")["correlation_id"] == cid


def test_result_for_another_agent(bridge):
    b = bridge()
    one, two = b.connect("gw-1"), b.connect("gw-2")
    cid = b.redis.xadd_command("gw-1", "ECHO")
    one.expect("COMMAND")
    two.send(result("gw-2", cid))
    error = two.expect("ERROR")
    assert error["code"] == "not_yours" and error["correlation_id"] == cid
    b.entries("dead_letters")
    one.send(result("gw-1", cid))
    one.expect("RESULT_ACK", correlation_id=cid)


def test_dead_letters_of_one_agent_are_limited_over_all_its_connections(bridge):
    """A hostile agent that answers for ids it makes up, on one connection after the other."""
    b, began, a_minute, rounds = bridge(), time.monotonic(), 128, 3
    for n in range(rounds):
        ws = b.connect("gw-1")
        for i in range(1000):
            try:
                ws.send(result("gw-1", f"made-up-{n}-{i}"))
                ws.recv()
            except wslib.ConnectionClosed:
                break
        assert ws.wait_closed() == 1008
    letters = [f for _, f in b.redis.client.xrange("viw.dead_letters")]
    most = a_minute * (1 + (time.monotonic() - began) / 60) + 1
    assert a_minute <= len(letters) <= most and {f["reason"] for f in letters} == {"unknown_command"}
    assert b.metric("viw_frames_refused_total", code="unknown_command") == 10 * rounds
    assert b.proc.wait_log("too_many_bad_frames", error="unknown_command")["agent_id"] == "gw-1"
    other = b.connect("gw-2")  # the limit is gw-1's alone
    other.send(result("gw-2", "never-heard-of"))
    other.expect("RESULT_ACK", correlation_id="never-heard-of")
    ws = b.connect("gw-1")  # and what it was asked to do is stored
    cid = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND", correlation_id=cid)
    ws.send(result("gw-1", cid))
    ws.expect("RESULT_ACK", correlation_id=cid)


@pytest.mark.parametrize("frame, most", [
    ({"type": "AUDIT", "record": {"seq": 5}}, 128),
    ({"type": "AUDIT", "record": {"pad": "x" * 60000}}, 8),
    ({"type": "HELLO", "version": "1", "capabilities": []}, 128),
])
def test_what_only_a_writer_removes_is_limited_by_agent(bridge, frame, most):
    """A hostile agent fills neither Redis nor agent_events, however often it connects."""
    b, began, rounds = bridge(), time.monotonic(), 3
    for _ in range(rounds):
        ws = b.connect("gw-1")
        for _ in range(1000):
            try:
                ws.send({**frame, "agent_id": "gw-1"})
                if frame["type"] == "HELLO":
                    ws.recv()
            except wslib.ConnectionClosed:
                break
        assert ws.wait_closed() == 1008
    stream = {"AUDIT": "agent_events", "HELLO": "agent_hello"}[frame["type"]]
    kept = [f for _, f in b.redis.client.xrange(f"viw.{stream}") if stream == "agent_hello" or f["event"] == "audit"]
    first = rounds if stream == "agent_hello" else 0  # a connection's first HELLO, of which handshakes are the limit
    assert most <= len(kept) - first <= most * (1 + (time.monotonic() - began) / 60) + 1
    assert b.metric("viw_frames_refused_total", code="too_many") == 10 * rounds
    large = b.connect("gw-1", hello=False)  # a first one that is large counts as well
    large.send({"type": "HELLO", "agent_id": "gw-1", "version": "1", "capabilities": [], "hostname": "h", "pad": "x" * 60000})
    assert large.expect("ERROR")["code"] == "too_many"
    b.connect("gw-2").send({**frame, "agent_id": "gw-2"})  # the limit is gw-1's alone
    b.entries(stream, agent_id="gw-2")
    assert b.connect("gw-1").welcome


@pytest.mark.parametrize("frame, code", [
    ("{", "bad_json"),
    ("[1]", "bad_json"),
    ('{"type":"HEARTBEAT","type":"HEARTBEAT"}', "bad_json"),
    ('{"type":"PING","ts":"\\u0000"}', "bad_json"),
    ('{"type":"PING","x":' + "[" * 20 + "]" * 20 + "}", "bad_json"),
    ('{"type":"PING","x":1e400}', "bad_json"),
    ("{}", "missing_field"),
    ('{"type":"NOPE"}', "unknown_type"),
    ('{"type":"WELCOME"}', "wrong_direction"),
    ('{"type":"TELEMETRY","agent_id":"gw-1","ts":"2026-11-20T11:00:00Z"}', "missing_field"),
    ('{"type":"TELEMETRY","agent_id":"gw-1","ts":"now","metrics":{}}', "bad_field"),
    ('{"type":"RESULT","agent_id":"gw-1","correlation_id":"c","status":"fine"}', "bad_field"),
])
def test_bad_frames_get_error_and_are_counted(frames_bridge, frame, code):
    b = frames_bridge
    ws = b.connect()
    before = b.metric("viw_frames_refused_total", code=code)
    ws.send(frame)
    error = ws.expect("ERROR")
    assert error["code"] == code and error["msg"], error
    assert b.metric("viw_frames_refused_total", code=code) == before + 1
    ws.send({"type": "PING"})
    ws.expect("PONG")
    ws.close()


@pytest.fixture(scope="module")
def frames_bridge():
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


def test_tenth_bad_frame_within_a_minute_closes_1008(bridge):
    b = bridge()
    ws = b.connect()
    for _ in range(9):
        ws.send("{")
        ws.expect("ERROR")
    ws.send({"type": "PING"})
    ws.expect("PONG")
    ws.send("{")
    ws.expect("ERROR")
    assert ws.wait_closed() == 1008
    assert b.proc.wait_log("disconnected")["detail"] == "too_many_bad_frames"


def test_other_agent_id_closes_1008(bridge):
    b = bridge()
    ws = b.connect()
    ws.send(telemetry("gw-2"))
    assert ws.wait_closed() == 1008


def test_binary_closes_1003(bridge):
    b = bridge()
    ws = b.connect()
    ws.send(b"{}")
    assert ws.wait_closed() == 1003


class Raw:
    """An agent below python websockets, to send what that never would."""

    def __init__(self, b, agent_id, rcvbuf=None):
        self.s = socket.socket()
        if rcvbuf:
            self.s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.s.settimeout(10)
        self.s.connect(("127.0.0.1", b.port))
        lines = {"Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **b.headers(agent_id)}
        self.s.sendall(("GET /agent/ws HTTP/1.1\r\n" + "".join(
            f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode())
        self.got = b""
        while b"\r\n\r\n" not in self.got:
            self.got += self.s.recv(4096)
        assert self.got.startswith(b"HTTP/1.1 101")
        self.got = self.got.split(b"\r\n\r\n", 1)[1]

    @staticmethod
    def frame(payload, opcode=1, fin=True, announce=None):
        n = len(payload) if announce is None else announce
        head = bytes([opcode | (0x80 if fin else 0)])
        head += bytes([0x80 | n]) if n < 126 else (
            b"\xfe" + struct.pack(">H", n) if n < 65536 else b"\xff" + struct.pack(">Q", n))
        mask = b"\x11\x22\x33\x44"
        return head + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(payload))

    def send(self, *args, **kwargs):
        self.s.sendall(self.frame(*args, **kwargs))

    def end(self):
        self.s.shutdown(socket.SHUT_WR)

    def reset(self):
        self.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.s.close()

    def recv_close(self, timeout=10):
        """The code of the close frame; None when the connection just ended."""
        self.s.settimeout(timeout)
        while True:
            while len(self.got) >= 2:
                n, at = self.got[1] & 0x7f, 2
                if n == 126 and len(self.got) >= 4:
                    n, at = struct.unpack(">H", self.got[2:4])[0], 4
                if len(self.got) < at + n:
                    break
                opcode, payload, self.got = self.got[0] & 15, self.got[at:at + n], self.got[at + n:]
                if opcode == 8:
                    return struct.unpack(">H", payload[:2])[0]
            try:
                chunk = self.s.recv(65536)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            self.got += chunk


def test_bad_utf8_closes_1007(bridge):
    b = bridge()
    raw = Raw(b, "gw-1")
    raw.send(b'{"type":"PING","ts":"\xff"}')
    assert raw.recv_close() == 1007
    raw.s.close()


NO_WEBSOCKET = {  # RFC 6455 5.2, 5.4, 5.5: what libwebsockets itself refuses
    "reserved-opcode": Raw.frame(b"x", opcode=3),
    "reserved-control-opcode": Raw.frame(b"", opcode=15),
    "reserved-bit": Raw.frame(b"{}", opcode=0x41),
    "continuation-of-nothing": Raw.frame(b"{}", opcode=0),
    "message-amid-a-message": Raw.frame(b'{"type":', fin=False) + Raw.frame(b"{}"),
    "control-frame-in-pieces": Raw.frame(b"p", opcode=9, fin=False),
    **{f"long-{name}": Raw.frame(b"", opcode=opcode, announce=n)
       for name, opcode, n in (("ping", 9, 126), ("pong", 10, 65535), ("close", 8, 126), ("ping-of-64-bits", 9, 1 << 17))},
    "whole-long-ping": Raw.frame(b"x" * 126, opcode=9),
    "length-with-its-highest-bit": b"\x81\xff\x80" + b"\0" * 11,
}


def test_what_is_no_websocket_closes_1002_and_is_named_so(bridge):
    b = bridge()
    for name, wire in NO_WEBSOCKET.items():
        raw = Raw(b, name)
        raw.s.sendall(wire)
        assert raw.recv_close() == 1002, name
        raw.s.close()
        line = b.proc.wait_log("disconnected", agent_id=name)
        assert (line["detail"], line["rc"]) == ("protocol_error", 1002), line
        assert b.entries("agent_events", event="disconnected", agent_id=name)[0]["reason"] == "protocol_error"
    assert b.metric("viw_disconnects_total", reason="protocol_error") == len(NO_WEBSOCKET)
    for name, word, end in (("gw-lost", b"", Raw.end), ("gw-amid", b"\x89", Raw.end), ("gw-reset", b"", Raw.reset)):
        raw = Raw(b, name)  # ends without a word, or amid one
        raw.s.sendall(word)
        end(raw)
        assert b.proc.wait_log("disconnected", agent_id=name)["detail"] == "connection_lost"
        raw.s.close()


def test_fragmented_and_coalesced_frames(bridge):
    b = bridge()
    ws = Raw(b, "gw-1")
    text = json.dumps(telemetry("gw-1", cpu_pct=1, pad="x" * 5000)).encode()
    # three fragments with a ping between them, each byte-wise
    wire = (ws.frame(text[:10], fin=False) + ws.frame(b"p", opcode=9) +
            ws.frame(text[10:4000], opcode=0, fin=False) + ws.frame(text[4000:], opcode=0))
    for i in range(0, len(wire), 333):
        ws.s.sendall(wire[i:i + 333])
    b.entries("telemetry", count=1)
    # many in one segment, sizes around the receive buffer's
    many = b"".join(ws.frame(json.dumps(telemetry("gw-1", pad="y" * n)).encode())
                    for n in [0, 800, 850, 900, 1000, 1023, 1024, 1025, 2000, 4096, 9000] * 3)
    ws.s.sendall(many)
    got = b.entries("telemetry", count=34)
    assert len(json.loads(got[0]["frame"])["metrics"]["pad"]) == 5000


def test_empty_fragments(bridge):
    b = bridge()
    ws = b.connect()
    frame = json.dumps(telemetry("gw-1"))
    for pieces in (("", frame), ("", "", frame[:9], "", frame[9:], "")):
        ws.send(pieces)
    assert len(b.entries("telemetry", count=2)) == 2
    ws.send(("", ""))
    assert ws.expect("ERROR")["code"] == "bad_json"


def test_frame_at_the_limit_and_over_it(bridge):
    b = bridge(max_frame_bytes=4096)
    ws = b.connect()
    base = json.dumps(telemetry("gw-1", pad=""))
    ws.send(base.replace('"pad": ""', f'"pad": "{"z" * (4096 - len(base))}"'))
    b.entries("telemetry", count=1)
    ws.send(base.replace('"pad": ""', f'"pad": "{"z" * (4097 - len(base))}"'))
    assert ws.wait_closed() == 1009
    raw = Raw(b, "gw-2")  # in fragments that are each small
    for i in range(20):
        raw.send(b"x" * 300, opcode=0 if i else 1, fin=False)
    raw.send(b"x", opcode=0)
    assert raw.recv_close() == 1009
    raw.s.close()
    assert len(b.entries("telemetry")) == 1


def test_a_huge_announced_frame_costs_nothing(bridge):
    b = bridge()
    raws = [Raw(b, f"gw-{i}") for i in range(20)]
    for r in raws:
        r.send(b"x" * 1000, announce=2 ** 62)
    ws = b.connect("gw-other")
    ws.send({"type": "PING"})
    ws.expect("PONG")
    with open(f"/proc/{b.proc.pid}/statm") as f:
        assert int(f.read().split()[1]) * 4096 < 300e6
    for r in raws:
        r.s.close()


def test_slow_reader_is_closed_by_name(bridge):
    """Its window is full; what waits for it is capped, and others are served meanwhile."""
    b = bridge(send_queue_msgs=50)
    raw = Raw(b, "gw-slow", rcvbuf=2048)
    ping = Raw.frame(json.dumps({"type": "PING", "ts": "t" * 60}).encode())

    def pump():
        try:
            for _ in range(100000):
                raw.s.sendall(ping * 20)
        except OSError:
            pass
    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    assert b.proc.wait_log("disconnected", agent_id="gw-slow", timeout=20)["detail"] == "slow_reader"
    raw.s.close()
    thread.join(5)


def test_one_busy_agent_does_not_hold_up_another(bridge):
    b = bridge()
    busy, calm = Raw(b, "gw-busy"), b.connect("gw-calm")
    stop = threading.Event()
    load = Raw.frame(json.dumps(telemetry("gw-busy")).encode()) * 100

    def pump():
        while not stop.is_set():
            busy.s.sendall(load)
    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    worst = 0
    for _ in range(50):
        t = time.monotonic()
        calm.send({"type": "PING"})
        calm.expect("PONG")
        worst = max(worst, time.monotonic() - t)
    stop.set()
    thread.join(5)
    assert worst < 3.0, worst  # held up, it would be until the load stops


def test_journal_change_is_taken_within_a_connection(bridge):
    b = bridge()
    ws = b.connect()
    ws.send({"type": "HELLO", "agent_id": "gw-1", "version": "1", "capabilities": [],
             "journal_id": str(uuid.uuid4())})
    ws.expect("WELCOME")
    cid = b.redis.xadd_command("gw-1", "ECHO")
    assert ws.expect("COMMAND")["correlation_id"] == cid


def test_min_agent_version_closes_1008(bridge):
    b = bridge(min_agent_version="1.10")
    ws = b.connect("gw-1", hello=False)
    ws.expect("HELLO_ACK")
    ws.send({"type": "HELLO", "agent_id": "gw-1", "version": "1.9.9", "capabilities": []})
    assert ws.expect("ERROR")["code"] == "agent_too_old"
    assert ws.wait_closed() == 1008
    assert b.connect("gw-1", hello=False)
