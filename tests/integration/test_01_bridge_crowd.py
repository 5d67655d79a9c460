"""Sockets that never finish their handshake (contract 1.1): who holds many of them cannot keep the
slots from others. Plain sockets, tests of openssl's own TLS, from addresses of 127/8."""
import socket
import ssl
import time

import bridgetest
import pytest
import viwtest
from test_01_bridge_handshake import body_of, raw, upgrade
from test_01_bridge_tls import mtls

SLOTS = 10 + 256  # MAX_CONN and what is spared for HTTP and handshakes


def open_half(b, n, source, first, tls=None):
    """n sockets from source that say `first` and no more. In TLS: first goes through it."""
    out = []
    for _ in range(n):
        s = socket.create_connection(("127.0.0.1", b.port), timeout=5, source_address=(source, 0))
        if tls:
            s = tls.wrap_socket(s, server_hostname="localhost")
        s.sendall(first)
        out.append(s)
    return out


def still_open(sockets):
    n = 0
    for s in sockets:
        s.settimeout(0)
        try:
            n += bool(s.recv(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            n += 1
        except OSError:
            pass
    return n


def admitted_beside(b, crowd, client_ssl=None):
    """An agent gets in at once, the crowd is cut and named, and the small neighbour keeps its socket."""
    began = time.monotonic()
    kwargs = {"ssl": client_ssl} if client_ssl else {}
    for i in range(5):
        assert b.connect(f"gw-{i}", **kwargs).welcome
    assert time.monotonic() - began < 8, "agents wait for the crowd's sockets to time out"
    line = b.proc.wait_log("handshake_refused", error="crowded")
    assert line["ip"] == "127.0.0.2" and line["count"] >= 4
    assert b.metric("viw_handshake_refused_total", code="crowded") >= 4
    assert still_open(crowd) < len(crowd)


@pytest.mark.parametrize("first", [b"G", b"GET /agent/ws HTTP/1.1\r\nHost: x\r\n"])
def test_half_a_head_keeps_nobody_out(bridge, first):
    b = bridge(max_conn=10, internal_bind=f"127.0.0.1:{viwtest.free_port()}")
    neighbour = open_half(b, 5, "127.0.0.3", first)
    crowd = open_half(b, SLOTS + 100, "127.0.0.2", first)
    admitted_beside(b, crowd)
    assert still_open(neighbour) == 5  # its few sockets were not what filled the bridge
    assert b.http("GET", "/internal/agent/_healthz")[0] == 200


@pytest.mark.parametrize("path", ["/nope", "/agent/_health", "/internal/agent/agents/x/commands"])
def test_half_a_body_keeps_nobody_out(bridge, path):
    """Refused or not: a request counts as said when it is whole."""
    b = bridge(max_conn=10)
    crowd = open_half(b, SLOTS + 100, "127.0.0.2", f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n".encode())
    admitted_beside(b, crowd)


@pytest.mark.parametrize("stage", ["client_hello", "head"])
def test_half_a_tls_handshake_keeps_nobody_out(bridge, pki, stage):
    b = mtls(bridge, pki, tls_client_ca=None, tls_crl=None, max_conn=10)
    if stage == "head":
        crowd = open_half(b, SLOTS + 20, "127.0.0.2", b"GET /agent/ws HTTP/1.1\r\n", pki.client_context())
    else:
        crowd = open_half(b, SLOTS + 100, "127.0.0.2", b"\x16\x03\x01\x02\x00\x01")
    admitted_beside(b, crowd, pki.client_context())


def test_silent_tls_sockets_are_no_handshakes_at_work(bridge, pki):
    """More of them than handshakes may be at work at once: others are served meanwhile."""
    b = mtls(bridge, pki, tls_client_ca=None, tls_crl=None, max_conn=1000)
    crowd = open_half(b, 600, "127.0.0.2", b"")
    began = time.monotonic()
    assert b.connect("gw-1", ssl=pki.client_context()).welcome
    assert time.monotonic() - began < 5
    assert still_open(crowd) == 600


@pytest.mark.parametrize("pieces", [1, 40])
def test_repeated_header_or_another_path_over_tls_is_refused(bridge, pki, pieces):
    b = mtls(bridge, pki)
    context = pki.client_context(*pki.agent("gw-1"))

    def ask(text):
        with context.wrap_socket(socket.create_connection(("127.0.0.1", b.port), timeout=5),
                                 server_hostname="localhost") as s:
            step = len(text) // pieces + 1
            for i in range(0, len(text), step):
                s.sendall(text[i:i + step].encode())
            out = b""
            while b"\r\n\r\n" not in out or (b" 101 " not in out and not out.endswith(b"}")):
                out += s.recv(65536)
            return out.decode()
    for name in ("X-Agent-Id", "X-Agent-Auth", "X-Nonce", "x-timestamp"):
        status, error, _ = body_of(ask(upgrade(b.headers("gw-1"), extra=f"{name}: gw-1\r\n")))
        assert (status, error["code"]) == (400, "duplicate_header")
    assert b.proc.wait_log("handshake_refused", error="duplicate_header")["agent_id"] == "gw-1"
    for path in ("/agent/%77s", "//agent/ws"):
        status, error, _ = body_of(ask(upgrade(b.headers("gw-1"), path=path)))
        assert (status, error["code"]) == (404, "not_found")
    assert ask(upgrade(b.headers("gw-1"))).startswith("HTTP/1.1 101 ")


def test_repeated_header_after_a_long_head(bridge):
    """Also where it stands at the very end of a large head."""
    b = bridge()
    pad = "".join(f"X-Pad-{i}: {'p' * 90}\r\n" for i in range(40))
    _, error, _ = body_of(raw(b.port, upgrade(b.headers("gw-1"), extra=pad + "X-Nonce: x\r\n")))
    assert error["code"] == "duplicate_header"


def test_few_descriptors_leave_some_for_redis(start, redis, connect):
    """As many agents as fit, the next gets 503; whoever crowds for the rest, Redis is reached anew at once."""
    limited = lambda name, env: start("/usr/bin/prlimit", env=env, args=["--nofile=200", "--", str(viwtest.BIN / name)])
    b = bridgetest.Bridge(limited, redis, connect, max_conn=1000, internal_bind=None)
    assert b.proc.find_logs("descriptor_limit")[0]["count"] == 200
    agents = [b.connect(f"gw-{i}", hello=False) for i in range(102)]
    assert b.refused(b.headers("gw-x"))[:2] == (503, "max_conn")
    crowd = []
    for _ in range(150):  # more than there is room for: the rest wait in the listener's queue
        s = socket.socket()
        s.connect(("127.0.0.1", b.port))
        s.sendall(b"GET /agent/_health HTTP/1.1\r\n")
        crowd.append(s)
    redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    viwtest.wait_for(lambda: len(b.proc.find_logs("redis_up")) == 2, 3, "Redis is up again")
    for s in crowd:
        s.close()
    assert not b.proc.find_logs("disconnected") and len(agents) == 102
