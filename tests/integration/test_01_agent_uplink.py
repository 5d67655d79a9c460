"""01 connect, the agent's side: every way a backend can be wrong, and what the agent then does.

The backend is python websockets (or a bare socket that misbehaves): programs we did not write.
"""
import os
import re
import select
import socket
import ssl
import threading
import time

import pytest

import peers
import viwtest
from viwtest import wait_for


@pytest.fixture
def bridge(ws_loop):
    made = []

    def go(**kwargs):
        made.append(peers.PeerBridge(ws_loop, **kwargs).start())
        return made[-1]
    yield go
    for b in made:
        b.close()


def server_context(pki, want_client=True, cert=None, minimum=None, maximum=None):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(*(cert or pki.server))
    if want_client:
        ctx.load_verify_locations(pki.path("client_ca.pem"))
        ctx.verify_mode = ssl.CERT_REQUIRED
    if minimum:
        ctx.minimum_version = minimum
    if maximum:
        ctx.maximum_version = maximum
    return ctx


def tls_env(tmp, pki, port, host="localhost", **more):
    cert, key = more.pop("identity", None) or pki.agent("gw-1")
    env = peers.agent_env(tmp, f"wss://{host}:{port}/agent/ws", VIW_AGENT_CERT_PATH=cert,
                          VIW_AGENT_KEY_PATH=key, VIW_AGENT_TRUST_BUNDLE=pki.path("ca.pem"))
    env.update(more)
    return {k: v for k, v in env.items() if v is not None}


class BareServer:
    """A TCP server whose one handler gets each connection in a thread."""

    def __init__(self, handler, host="127.0.0.1"):
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((host, 0))
        self.sock.listen(64)
        self.port = self.sock.getsockname()[1]
        self.handler, self.accepted, self.bytes_seen = handler, 0, b""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._one, args=(conn,), daemon=True).start()

    def _one(self, conn):
        try:
            self.handler(self, conn)
        except OSError:
            pass
        finally:
            conn.close()

    def close(self):
        self.sock.close()


@pytest.fixture
def bare():
    made = []

    def go(handler, **kwargs):
        made.append(BareServer(handler, **kwargs))
        return made[-1]
    yield go
    for s in made:
        s.close()


# ---------------------------------------------------------------- good ways


def test_connects_with_hmac_and_says_hello(bridge, start, tmp):
    b = bridge(secret="s3cret")
    start("gateway-agent", env=peers.agent_env(
        tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_SHARED_SECRET="s3cret", VIW_AGENT_SITE="berlin",
        VIW_AGENT_LABELS="rack=7,role=edge"))
    hello = b.wait_frame("HELLO")
    assert hello["agent_id"] == "gw-1" and hello["site"] == "berlin"
    assert hello["labels"] == {"rack": "7", "role": "edge"}
    assert hello["supported_verbs"] == ["ECHO"], "no helper: ECHO, and effects are off"
    assert b.conns[0].frames[0]["type"] == "HELLO", "nothing is sent before HELLO_ACK"
    t = b.wait_frame("TELEMETRY")
    assert t["seq"] == 1 and t["metrics"]["helper"] == "down" and 0 <= t["metrics"]["mem_pct"] <= 100
    assert t["metrics"]["services"] == dict.fromkeys(
        ("docker", "ssh", "nginx", "postgresql", "redis", "openvpn", "fwknop"), "unknown"), "nobody to ask: no guess"
    later = b.wait_frame("TELEMETRY", n=3)
    assert later["seq"] == 3 and later["boot_id"] == t["boot_id"] and 0 <= later["metrics"]["cpu_pct"] <= 100


def test_mtls_with_pin_and_host_name(bridge, start, tmp, pki):
    b = bridge(ssl=server_context(pki))
    pin = pki.spki_pin(pki.server[0])
    backup = pki.spki_pin(pki.path("ca.pem"))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, VIW_AGENT_BACKEND_SPKI_PIN=f"{backup},{pin}"))
    b.wait_frame("HELLO")
    t = b.wait_frame("TELEMETRY")
    days = t["metrics"]["cert_days_left"]
    assert 28 <= days["client"] <= 30 and 28 <= days["backend"] <= 30 and 28 <= days["trust_bundle"] <= 30
    assert p.find_logs("cert_expiry"), "29 days left are warned of"


def test_the_chain_it_shows(start, tmp, pki, bare):
    """What the file holds; of a lone certificate the issuers in the bundle, but not the root, which costs the backend."""
    sub = pki.sub_ca("sub_ca", "client_ca", "/CN=Test Intermediate")
    cert, key = pki.agent("gw-1", ca="sub_ca")
    roots = [pki.path("ca.pem"), pki.path("client_ca.pem")]
    for file, bundle, n in ((pki.joined("both.pem", cert, sub), roots, 2), (cert, roots, 1), (cert, [*roots, sub], 2)):
        shown = []

        def handler(server, conn):
            ctx = server_context(pki)
            ctx.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            ctx.load_verify_locations(sub)
            with ctx.wrap_socket(conn, server_side=True) as s:
                shown.append(len(s._sslobj.get_unverified_chain()))
                s.recv(4096)
        s = bare(handler)
        p = start("gateway-agent", env=tls_env(tmp, pki, s.port, identity=(file, key), VIW_AGENT_TRUST_BUNDLE=pki.joined(
            "bundle.pem", *bundle)))
        wait_for(lambda: shown, 10)
        p.stop()
        assert shown[0] == n, (file, bundle)


@pytest.mark.parametrize("url_host,bind", [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
def test_mtls_to_an_address(bridge, start, tmp, pki, url_host, bind):
    b = bridge(ssl=server_context(pki), host=bind)
    start("gateway-agent", env=tls_env(tmp, pki, b.port, host=url_host))
    b.wait_frame("HELLO")


def test_localhost_falls_back_to_the_address_that_answers(bridge, start, tmp):
    b = bridge()  # 127.0.0.1 only; localhost may be ::1 first
    start("gateway-agent", env=peers.agent_env(tmp, f"ws://localhost:{b.port}/agent/ws"))
    b.wait_frame("HELLO")


# ---------------------------------------------------------------- TLS faults


def expect_end(p, cause, text, event="disconnected"):
    line = p.wait_log(event, timeout=15, error=cause)
    assert text in line["msg"], line
    return line


def test_pin_mismatch_aborts_before_any_http_byte(bridge, start, tmp, pki, bare):
    plain = []

    def handler(server, conn):
        ctx = server_context(pki, want_client=False)
        try:
            with ctx.wrap_socket(conn, server_side=True) as s:
                data = s.recv(4096)
                plain.append(data)
        except (ssl.SSLError, OSError) as e:
            plain.append(e)
    s = bare(handler)
    wrong = pki.spki_pin(pki.path("client_ca.pem"))
    seen = pki.spki_pin(pki.server[0])
    port = viwtest.free_port()
    p = start("gateway-agent", env=tls_env(
        tmp, pki, s.port, VIW_AGENT_BACKEND_SPKI_PIN=wrong, VIW_AGENT_FEATURE_INBOUND_HTTP="true",
        VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}"))
    line = expect_end(p, "pin", seen, event="pin_mismatch")
    assert "not pinned" in line["msg"]
    wait_for(lambda: plain, 5)
    assert all(not isinstance(x, bytes) or x == b"" for x in plain), "no byte of HTTP was sent"
    import urllib.request
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    assert "viw_agent_pin_mismatch_total 1" in text


def test_backend_of_another_ca_is_refused(bridge, start, tmp, pki):
    pki.rogue("gw-x")
    rogue = pki.issue("rogue-server", "rogue_ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth")
    b = bridge(ssl=server_context(pki, cert=rogue))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port))
    expect_end(p, "tls", "certificate at depth")
    assert not b.handshakes


def test_backend_with_another_name_is_refused(bridge, start, tmp, pki):
    other = pki.issue("other", "ca", "/CN=localhost", ["DNS:bridge.example", "IP:127.0.0.9"], usage="serverAuth")
    b = bridge(ssl=server_context(pki, cert=other))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port))
    expect_end(p, "tls", "is not for localhost")
    q = start("gateway-agent", env=tls_env(tmp, pki, b.port, host="127.0.0.1"))
    expect_end(q, "tls", "is not for 127.0.0.1")
    assert not b.handshakes


def test_expired_backend_is_refused(bridge, start, tmp, pki):
    old = pki.issue("old", "ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth", days=-1)
    b = bridge(ssl=server_context(pki, cert=old))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port))
    expect_end(p, "tls", "expired")


def test_a_certificate_for_clients_is_no_backends(bridge, start, tmp, pki):
    """Where one CA signs both, another site's agent must not pass for the bridge."""
    agent = pki.issue("agent-localhost", "ca", "/CN=localhost", ["DNS:localhost"], usage="clientAuth")
    b = bridge(ssl=server_context(pki, cert=agent))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port))
    expect_end(p, "tls", "unsuitable certificate purpose")
    assert not b.handshakes


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a hosts file of its own")
def test_localhost_that_leads_elsewhere_gets_no_plaintext(start, tmp):
    (tmp / "hosts").write_text("192.0.2.1 localhost\n")
    (tmp / "nsswitch").write_text("hosts: files\n")
    p = start("/usr/bin/unshare", env=peers.agent_env(tmp, "ws://localhost:9/agent/ws"), args=[
        "-n", "-m", "--propagation", "private", "bash", "-c",
        f"mount --bind {tmp}/hosts /etc/hosts && mount --bind {tmp}/nsswitch /etc/nsswitch.conf && exec {viwtest.BIN}/gateway-agent"])
    line = expect_end(p, "resolve", "loopback")
    assert "192.0.2.1" in line["msg"]


def test_a_backend_without_tls_is_said(bridge, start, tmp, pki):
    b = bridge()
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port))
    assert "does not speak TLS" in expect_end(p, "tls", "wrong version number")["msg"]


def test_tls_1_1_is_refused(start, tmp, pki, bare):
    def handler(server, conn):
        ctx = server_context(pki, want_client=False, minimum=ssl.TLSVersion.TLSv1, maximum=ssl.TLSVersion.TLSv1_1)
        ctx.set_ciphers("ALL:@SECLEVEL=0")
        try:
            ctx.wrap_socket(conn, server_side=True)
            server.bytes_seen = b"accepted"
        except ssl.SSLError:
            pass
    s = bare(handler)
    p = start("gateway-agent", env=tls_env(tmp, pki, s.port))
    expect_end(p, "tls", "")
    assert s.bytes_seen == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_backend_that_refuses_our_certificate(bridge, start, tmp, pki, version):
    """TLS 1.3 tells only after the client believes to be done (and half of it shows as a bare close)."""
    b = bridge(ssl=server_context(pki, minimum=version, maximum=version))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, identity=pki.rogue("gw-1")))
    line = p.wait_log("disconnected", timeout=15)
    assert line["error"] in ("tls", "lost"), line
    p.wait_log("disconnected", timeout=15, count=2)
    assert not b.conns


# ---------------------------------------------------------------- refusals and close codes


def test_refused_with_a_status_backs_off(bridge, start, tmp):
    """Three agents at once, each refused in its own way."""
    made = []
    for i, status in enumerate((401, 404, 503)):
        b = bridge()
        b.refuse = (status, [])
        made.append((status, b, start("gateway-agent", env=peers.agent_env(
            tmp, f"ws://127.0.0.1:{b.port}/agent/ws", agent_id=f"gw-{i}"))))
    for status, b, p in made:
        expect_end(p, "http", str(status))
        wait_for(lambda: len(b.handshakes) >= 3, 20)
        times = [t for t, _, _ in b.handshakes]
        assert all(y - x >= 0.3 for x, y in zip(times, times[1:])), times
        nonces = [h.get("X-Nonce") or h.get("x-nonce") for _, _, h in b.handshakes]
        assert len(set(nonces)) == len(nonces), "each handshake has its own nonce"
        b.refuse = None
    for _, b, _ in made:
        b.wait_frame("HELLO", timeout=30)


@pytest.mark.parametrize("headers", [
    {"Retry-After": "3"}, {"Retry-After": "Sun, 06 Nov 1994 08:49:40 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}], ids=["seconds", "date"])
def test_retry_after_is_honoured(bridge, start, tmp, headers):
    b = bridge()
    b.refuse = (429, list(headers.items()))
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    expect_end(p, "http", "429")
    b.refuse = None
    b.wait_frame("HELLO", timeout=15)
    times = [t for t, _, _ in b.handshakes]
    assert 3.0 <= times[1] - times[0] <= 6.0


def test_403_waits_at_the_maximum(bridge, start, tmp):
    b = bridge()
    b.refuse = (403, [])
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    line = expect_end(p, "http", "403")
    assert int(line["msg"].split("next try in ")[1].split()[0]) > 50000


@pytest.mark.parametrize("code,low,high", [
    (1001, 0, 5000), (4000, 54000, 60000), (4001, 0, 600), (4003, 3600000, 3600000), (4013, 400, 1600),
    (1008, 400, 1600)])
def test_close_codes(bridge, start, tmp, code, low, high):
    b = bridge()
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("TELEMETRY")
    b.hang_up(code, "test")
    line = p.wait_log("disconnected")
    assert line["error"] == "close" and str(code) in line["msg"]
    wait = int(line["msg"].split("next try in ")[1].split()[0])
    assert low - 50 <= wait <= high, line
    if code == 4003:
        p.wait_log("stopped_by_bridge")


def test_several_backends_in_order(bridge, start, tmp):
    dead, b = viwtest.free_port(), bridge()
    p = start("gateway-agent", env=peers.agent_env(
        tmp, f"ws://127.0.0.1:{dead}/agent/ws,ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("HELLO", timeout=3)  # no pause: the second one is healthy
    assert p.wait_log("disconnected")["detail"].endswith(f":{dead}/agent/ws")


# ---------------------------------------------------------------- silence


STRANGE = {
    "nothing": b"", "ssh": b"SSH-2.0-OpenSSH_9.2\r\n", "http200": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "bad-accept": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                  b"Sec-WebSocket-Accept: nonsense\r\n\r\n",
    "long-header": b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n",
    "noise": b"\x00\xff" * 600}


def test_strange_answers(start, tmp, bare):
    """One agent for each; none connects, all try again."""
    made = []
    for name, answer in STRANGE.items():
        def handler(server, conn, answer=answer):
            conn.recv(4096)
            conn.sendall(answer)
            select.select([conn], [], [], 1)
        s = bare(handler)
        made.append((name, s, start("gateway-agent", env=peers.agent_env(
            tmp, f"ws://127.0.0.1:{s.port}/agent/ws", agent_id=f"gw-{name}"))))
    for name, s, p in made:
        p.wait_log("disconnected", timeout=25)
        wait_for(lambda: s.accepted >= 2, 25, f"{name}: it tries again")
        assert not p.find_logs("connected")


def test_bad_frames_are_dropped_and_ten_close(bridge, start, tmp):
    b = bridge()
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("TELEMETRY")
    b.send('{"type":"FUTURE_FRAME","x":1}')
    for _ in range(9):
        b.send('{"type":"COMMAND"}')
    cid = b.command("gw-1", "ECHO", {"message": "still here"})
    assert b.result(cid)["stdout"] == "still here"
    b.send("not json")
    line = p.wait_log("disconnected")
    assert line["error"] == "protocol"
    assert wait_for(lambda: b.conns[0].closed and b.conns[0].close_code, 5) == 1008


def test_binary_and_too_big_frames_close(bridge, start, tmp):
    b = bridge()
    start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("TELEMETRY")
    b.send(b"binary")
    assert wait_for(lambda: b.conns[0].closed and b.conns[0].close_code, 5) == 1003
    b.wait_conn(2, timeout=10)
    b.wait_frame("HELLO", n=2)
    b.send('{"type":"PING","ts":"' + "x" * 300000 + '"}')
    assert wait_for(lambda: b.conns[1].closed and b.conns[1].close_code, 5) in (1009, 1006)


def test_older_epoch_is_not_obeyed(bridge, start, tmp):
    b = bridge()
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("HELLO")
    b.hello_ack = {"epoch": 5}
    b.hang_up(1001)
    p.wait_log("disconnected", error="stale_epoch", timeout=15)
    assert len([f for c in b.conns[1:] for f in c.of("HELLO")]) == 0
    b.hello_ack = {}
    b.wait_frame("HELLO", n=2, timeout=20)


# ---------------------------------------------------------------- proxy


def connect_proxy(seen, auth=None):
    def handler(server, conn):
        head = b""
        while b"\r\n\r\n" not in head:
            head += conn.recv(4096)
        seen.append(head.decode())
        if auth and auth not in head.decode():
            conn.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        where = head.decode().split()[1]
        host, port = where.rsplit(":", 1)
        with socket.create_connection((host.strip("[]"), int(port))) as up:
            conn.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            while True:
                ready, _, _ = select.select([conn, up], [], [], 30)
                for s in ready:
                    data = s.recv(65536)
                    if not data:
                        return
                    (up if s is conn else conn).sendall(data)
    return handler


def test_connect_proxy_from_the_environment(bridge, start, tmp, pki, bare):
    b, seen = bridge(ssl=server_context(pki)), []
    proxy = bare(connect_proxy(seen))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, https_proxy=f"http://127.0.0.1:{proxy.port}"))
    b.wait_frame("TELEMETRY")
    assert seen[0].startswith(f"CONNECT localhost:{b.port} HTTP/1.1")
    assert "X-Agent" not in seen[0]
    assert p.alive


def test_connect_proxy_with_a_password_to_an_ipv6_address(bridge, start, tmp, pki, bare):
    b, seen = bridge(ssl=server_context(pki), host="::1"), []
    proxy = bare(connect_proxy(seen, auth="basic dTpzM2NyZXQ="))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, host="[::1]", https_proxy=f"http://u:s3cret@127.0.0.1:{proxy.port}"))
    b.wait_frame("TELEMETRY")
    assert seen[0].startswith(f"CONNECT [::1]:{b.port} HTTP/1.1")
    assert "s3cret" not in p.text


def test_no_proxy_goes_direct_and_dead_proxy_is_not_skipped(bridge, start, tmp, pki):
    b = bridge(ssl=server_context(pki))
    dead = f"http://127.0.0.1:{viwtest.free_port()}"
    start("gateway-agent", env=tls_env(tmp, pki, b.port, https_proxy=dead, no_proxy="example.org,localhost"))
    b.wait_frame("HELLO")
    p = start("gateway-agent", env=dict(tls_env(tmp, pki, b.port, https_proxy=dead), VIW_AGENT_ID="gw-1"))
    p.wait_log("disconnected", timeout=10)
    assert len(b.conns) == 1


def test_proxy_that_refuses(bridge, start, tmp, pki, bare):
    b, seen = bridge(ssl=server_context(pki)), []
    proxy = bare(connect_proxy(seen, auth="basic dTpw"))
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, https_proxy=f"http://127.0.0.1:{proxy.port}"))
    said = expect_end(p, "proxy", "proxy 127.0.0.1 gives no tunnel")["msg"]
    assert re.search(r": it did not answer 200( but 407)?; next try", said), said  # the status where libwebsockets tells it (4.3)
    assert not b.handshakes
