"""Identity from TLS (contract 1.1): native, with openssl and python's ssl as clients, and behind a
real nginx that terminates mTLS."""
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import viwtest


def mtls(bridge, pki, **kwargs):
    settings = {"tls_cert": pki.server[0], "tls_key": pki.server[1], "tls_client_ca": pki.path("client_ca.pem"),
                "tls_crl": pki.path("crl.pem"), "internal_bind": f"127.0.0.1:{viwtest.free_port()}"}
    settings.update(kwargs)
    return bridge(**settings)


def connect(b, pki, agent_id, cert, **kwargs):
    return b.connect(agent_id, ssl=pki.client_context(*cert) if cert else pki.client_context(), **kwargs)


def refused_by_tls(b, pki, agent_id, cert, **kwargs):
    """The client certificate is refused in the TLS handshake or just after it (TLS 1.3)."""
    before = len(b.proc.find_logs("handshake_refused", error="tls"))
    with pytest.raises(Exception) as e:
        connect(b, pki, agent_id, cert, hello=False, **kwargs)
    assert "Status" not in type(e.value).__name__, e.value
    viwtest.wait_for(lambda: len(b.proc.find_logs("handshake_refused", error="tls")) > before)
    return b.proc.find_logs("handshake_refused", error="tls")[-1]["detail"]


@pytest.mark.parametrize("how", ["uri", "dns", "cn"])
def test_certificate_names_the_agent(bridge, pki, how):
    b = mtls(bridge, pki)
    assert connect(b, pki, "gw-1", pki.agent("gw-1", how)).welcome
    status, code, _ = b.refused(b.headers("gw-2"), ssl=pki.client_context(*pki.agent("gw-1", how, file="x")))
    assert (status, code) == (403, "certificate_name")


def test_san_beats_cn(bridge, pki):
    b = mtls(bridge, pki)
    cert = pki.issue("both", "client_ca", "/CN=gw-1", ["URI:urn:viworks:agent:gw-2", "DNS:gw-1"])
    assert b.refused(b.headers("gw-1"), ssl=pki.client_context(*cert))[:2] == (403, "certificate_name")
    assert connect(b, pki, "gw-2", cert).welcome


def test_rogue_expired_missing_and_revoked_are_refused(bridge, pki):
    good, bad = pki.agent("gw-1"), pki.agent("gw-1", file="revoked")
    pki.revoke(bad[0])
    b = mtls(bridge, pki)
    assert connect(b, pki, "gw-1", good).welcome
    why = refused_by_tls(b, pki, "gw-1", pki.rogue("gw-1"))
    assert "issuer" in why or "verify" in why or "self" in why, why
    assert "revoked" in refused_by_tls(b, pki, "gw-1", bad)
    assert "expired" in refused_by_tls(b, pki, "gw-1", pki.agent("gw-1", file="old", days=-1))
    assert refused_by_tls(b, pki, "gw-1", None)
    # a server certificate of the wrong CA does not do as client either
    refused_by_tls(b, pki, "gw-1", pki.server)
    assert b.metric("viw_handshake_refused_total", code="tls") >= 5


def test_the_chain_it_shows(bridge, pki):
    """What the file holds; of a lone certificate the issuers among the client CAs. Never looked for in a handshake."""
    sub = pki.sub_ca("sub_ca", "ca", "/CN=Test Intermediate")
    cert, key = pki.issue("behind", "sub_ca", "/CN=localhost", ["DNS:localhost", "IP:127.0.0.1"], usage="serverAuth")
    agent = pki.agent("gw-1")

    def shown(**settings):
        b = mtls(bridge, pki, tls_key=key, tls_crl=None, **settings)
        out = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{b.port}", "-showcerts", "-CAfile",
                              pki.path("ca.pem"), "-cert", agent[0], "-key", agent[1]], input=b"", timeout=20,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
        return out.count("BEGIN CERTIFICATE"), "Verification: OK" in out
    assert shown(tls_cert=pki.joined("both.pem", cert, sub)) == (2, True)
    assert shown(tls_cert=pki.joined("all.pem", cert, sub, pki.path("ca.pem"))) == (3, True)
    assert shown(tls_cert=cert) == (1, False)
    cas = pki.joined("cas.pem", pki.path("client_ca.pem"), sub, pki.path("ca.pem"))
    assert shown(tls_cert=cert, tls_client_ca=cas) == (2, True), "without the root"


def test_hmac_and_certificate_are_both_needed(bridge, pki):
    b = mtls(bridge, pki)
    cert = pki.agent("gw-1")
    assert b.refused(b.headers("gw-1", secret="wrong"), ssl=pki.client_context(*cert))[:2] == (401, "bad_auth")
    b2 = mtls(bridge, pki, secret=None)
    assert connect(b2, pki, "gw-1", cert).welcome


def test_an_upgrade_to_something_else_is_refused_like_the_rest(bridge, pki):
    b = mtls(bridge, pki)
    conn = http.client.HTTPSConnection("localhost", b.port, timeout=10, context=pki.client_context(*pki.agent("gw-1")))
    conn.request("GET", "/agent/ws", headers={**b.headers("gw-1"), "Upgrade": "foo", "Connection": "Upgrade"})
    answer = conn.getresponse()
    assert answer.status == 400 and json.loads(answer.read())["error"]["code"] == "bad_upgrade"
    conn.close()
    assert b.proc.wait_log("handshake_refused", error="bad_upgrade")["agent_id"] == "gw-1"
    assert b.metric("viw_handshake_refused_total", code="bad_upgrade") == 1


def over_tls(b, pki, head, piece=None):
    with socket.create_connection(("127.0.0.1", b.port), timeout=5) as plain, \
            pki.client_context(*pki.agent("gw-1")).wrap_socket(plain, server_hostname="localhost") as s:
        for i in range(0, len(head), piece or len(head)):
            try:
                s.sendall(head[i:i + (piece or len(head))])
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = b""
        while b"\r\n\r\n{" not in answer or not answer.endswith(b"}"):
            chunk = s.recv(4096)
            assert chunk, answer
            answer += chunk
    top, _, body = answer.decode().partition("\r\n\r\n")
    return int(top.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("piece", [None, 1, 40])
def test_a_head_that_cannot_be_read_is_refused_over_tls_too(bridge, pki, piece):
    b = mtls(bridge, pki)
    for head, want in ((b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n", (400, "bad_request")),
                       (b"GET / HTTP/1.1\r\nHost: x\0y\r\n\r\n", (400, "bad_request")),
                       (b"GET / HTTP/1.1\r\nX-Junk: " + b"j" * 100000, (431, "head_too_large"))):
        if piece:  # all of it is sent within the two seconds that the bridge goes on reading
            head = head[:9000]
        assert over_tls(b, pki, head, piece) == want
    assert b.metric("viw_handshake_refused_total", code="bad_request") == 2
    assert b.metric("viw_handshake_refused_total", code="head_too_large") == 1
    assert connect(b, pki, "gw-1", pki.agent("gw-1")).welcome


def test_who_was_refused_and_sends_on_and_on_is_hung_up_on(bridge, pki):
    b = mtls(bridge, pki)
    with socket.create_connection(("127.0.0.1", b.port), 5) as plain, \
            pki.client_context(*pki.agent("gw-1")).wrap_socket(plain, server_hostname="127.0.0.1") as s:
        raw = socket.socket(fileno=os.dup(s.fileno()))
        b.proc.signal(signal.SIGSTOP)  # so that it finds everything at once
        s.sendall(b"nonsense\r\n\r\n")
        sent = 0
        with pytest.raises(OSError):
            s.settimeout(0.2)
            while sent < 4 << 20:
                s.sendall(b"x" * 16384)
                sent += 16384
        assert sent > 512 << 10
        began = time.monotonic()
        b.proc.signal(signal.SIGCONT)
        with pytest.raises(ConnectionError):  # reset: not read to its end
            raw.settimeout(5)
            while raw.recv(65536):
                pass
        assert time.monotonic() - began < 1.5
    assert connect(b, pki, "gw-1", pki.agent("gw-1")).welcome


def test_revoked_fingerprint_in_redis(bridge, pki):
    b = mtls(bridge, pki)
    cert = pki.agent("gw-1")
    ws = connect(b, pki, "gw-1", cert)
    b.redis.client.sadd("viw.revoked", pki.fingerprint(cert[0]))
    assert ws.wait_closed(10) == 4003
    viwtest.wait_for(lambda: b.refused(b.headers("gw-1"), ssl=pki.client_context(*cert))[:2] == (403, "revoked"))


def test_tls_versions(bridge, pki):
    b = mtls(bridge, pki)
    cert = pki.agent("gw-1")

    def client(*args):
        return subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{b.port}", "-CAfile", pki.path("ca.pem"),
                               "-cert", cert[0], "-key", cert[1], "-brief", *args], input=b"", timeout=10,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
    assert "TLSv1.3" in client("-tls1_3")
    assert "TLSv1.2" in client("-tls1_2")
    assert "Protocol version: TLSv1.1" not in client("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = pki.client_context(*cert)
        context.minimum_version = context.maximum_version = version
        assert b.connect("gw-1", ssl=context).welcome


def test_frames_over_tls(bridge, pki):
    """Small, large and many in one record, both ways."""
    from bridgetest import telemetry
    b = mtls(bridge, pki)
    ws = connect(b, pki, "gw-1", pki.agent("gw-1"))
    for n in [0, 1000, 5000, 20000, 100000] * 4:
        ws.send(telemetry("gw-1", pad="x" * n))
    b.entries("telemetry", count=20)
    ws.send({"type": "PING"})
    ws.expect("PONG")


def test_key_updates_on_and_on_hold_nobody_up(bridge, pki):
    """Each costs us as much as its sender, who never lets us see the end of what there is to read."""
    b = mtls(bridge, pki)
    cert = pki.agent("gw-1")
    script = os.path.join(os.path.dirname(viwtest.__file__), "key_updates.py")
    with subprocess.Popen([sys.executable, script, str(b.port), *cert, "8"], stdout=subprocess.PIPE, text=True) as flood:
        try:
            assert flood.stdout.readline() == "sending\n"
            for _ in range(3):
                assert b.http("GET", "/internal/agent/_healthz")[0] == 200
            assert connect(b, pki, "gw-2", pki.agent("gw-2")).welcome
            assert flood.poll() is None, "nobody was answered until it had ended"
        finally:
            flood.kill()


def reload_by(b, how, paths):
    n = len(b.proc.find_logs("tls_reloaded"))
    if how == "hup":
        b.proc.signal(signal.SIGHUP)
    b.proc.wait_log("tls_reloaded", count=n + 1)


@pytest.mark.parametrize("how", ["hup", "file"])
def test_certificate_and_crl_reload_keeps_sockets(bridge, pki, how):
    one, two = pki.agent("gw-1"), pki.agent("gw-2")
    b = mtls(bridge, pki)
    a1, a2 = connect(b, pki, "gw-1", one), connect(b, pki, "gw-2", two)
    old = served_fingerprint(b)
    fresh = pki.issue("server2", "ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth")
    # the key first: a pair that does not fit together must not be taken
    shutil.copy(fresh[1], pki.server[1] + ".new")
    os.replace(pki.server[1] + ".new", pki.server[1])
    if how == "hup":
        b.proc.signal(signal.SIGHUP)
    b.proc.wait_log("tls_refused")
    assert served_fingerprint(b) == old
    shutil.copy(fresh[0], pki.server[0] + ".new")
    os.replace(pki.server[0] + ".new", pki.server[0])
    reload_by(b, how, pki.server)
    viwtest.wait_for(lambda: served_fingerprint(b) == pki.fingerprint(fresh[0]))
    n = len(b.proc.find_logs("tls_reloaded"))
    pki.revoke(two[0])
    if how == "hup":
        b.proc.signal(signal.SIGHUP)
    b.proc.wait_log("tls_reloaded", count=n + 1)
    for ws in (a1, a2):  # open sockets are not dropped
        ws.send({"type": "PING"})
        ws.expect("PONG")
    assert "revoked" in refused_by_tls(b, pki, "gw-2", two)
    assert connect(b, pki, "gw-1", one).welcome


def test_half_written_crls_change_nothing(bridge, pki):
    """Of a file with the CRLs of two CAs, say, the second of which is cut."""
    b = mtls(bridge, pki)
    with open(pki.path("crl.pem")) as f:
        crl = f.read()
    for n, text in enumerate(("", crl[:200], crl + crl[:200], crl + crl.replace("M", "!"))):
        with open(pki.path("crl.new"), "w") as f:
            f.write(text)
        os.replace(pki.path("crl.new"), pki.path("crl.pem"))
        assert "crl.pem" in b.proc.wait_log("tls_refused", count=n + 1)["error"]
    assert not b.proc.find_logs("tls_reloaded")
    assert connect(b, pki, "gw-1", pki.agent("gw-1")).welcome


def test_a_crl_past_its_next_update_refuses_all(bridge, pki):
    pki.make_crl("client_ca", "-crlsec", "3")
    b = mtls(bridge, pki)
    one = connect(b, pki, "gw-1", pki.agent("gw-1"))
    time.sleep(3.5)
    assert "CRL has expired" in refused_by_tls(b, pki, "gw-2", pki.agent("gw-2"))
    one.send({"type": "PING"})
    one.expect("PONG")


def test_a_crl_that_another_key_signed_refuses_all(bridge, pki):
    """Of the CA's name, but not by the CA: what it revokes cannot be known."""
    cert = pki.agent("gw-1")
    pki._ca("other_ca", "/O=ViWorkS/CN=Test Client CA")
    b = mtls(bridge, pki, tls_crl=pki.make_crl("other_ca"))
    assert "signature" in refused_by_tls(b, pki, "gw-1", cert)


def test_a_crl_of_only_cas_is_none_for_agents(bridge, pki):
    cert = pki.agent("gw-1")
    with open(pki.path("client_ca.cnf"), "a") as f:
        f.write("[part]\nissuingDistributionPoint=critical,@idp\n[idp]\nonlyCA=TRUE\n")
    b = mtls(bridge, pki, tls_crl=pki.make_crl("client_ca", "-crlexts", "part"))
    assert "scope" in refused_by_tls(b, pki, "gw-1", cert)


def test_each_ca_of_the_chain_has_its_crl(bridge, pki):
    sub = pki.sub_ca("sub_ca", "client_ca", "/O=ViWorkS/CN=Test Intermediate")
    cert, key = pki.agent("gw-1", ca="sub_ca")
    good = (pki.joined("good.pem", cert, sub), key)
    bad, bad_key = pki.agent("gw-1", ca="sub_ca", file="bad")
    pki.revoke(bad, "sub_ca")
    crls = pki.joined("crls.pem", pki.crl, pki.path("sub_ca.crl.pem"))
    for cas in (pki.path("client_ca.pem"), pki.joined("cas.pem", pki.path("client_ca.pem"), sub)):
        b = mtls(bridge, pki, tls_client_ca=cas, tls_crl=crls)
        assert connect(b, pki, "gw-1", good).welcome
        assert "revoked" in refused_by_tls(b, pki, "gw-1", (pki.joined("bad2.pem", bad, sub), bad_key))
        b = mtls(bridge, pki, tls_client_ca=cas)
        assert "unable to get certificate CRL" in refused_by_tls(b, pki, "gw-1", good), "the intermediate's is missing"
    pki.revoke(sub)
    b = mtls(bridge, pki, tls_crl=pki.joined("crls.pem", pki.crl, pki.path("sub_ca.crl.pem")))
    assert "revoked" in refused_by_tls(b, pki, "gw-1", good)


def test_a_key_of_another_kind_takes_the_place_of_the_old(bridge, pki):
    """OpenSSL keeps a certificate of each kind, and here the client prefers the old one's."""
    b = mtls(bridge, pki)
    first = connect(b, pki, "gw-1", pki.agent("gw-1"))
    kinds = {"rsa": ("rsa:2048",), "ec": ("ec", "-pkeyopt", "ec_paramgen_curve:P-384"), "rsa2": ("rsa:2048",)}
    for n, (name, key) in enumerate(kinds.items()):
        fresh = pki.issue(name, "ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth", key=key)
        want = pki.fingerprint(fresh[0])
        for old, new in zip(pki.server, fresh):
            os.replace(new, old)
        viwtest.wait_for(lambda: served_fingerprint(b) == want, what=f"the new certificate ({name}) is served")
        assert connect(b, pki, f"gw-{n + 2}", pki.agent(f"gw-{n + 2}")).welcome
    first.send({"type": "PING"})
    first.expect("PONG")


def test_agents_come_in_while_sighup_follows_sighup(bridge, pki):
    b = mtls(bridge, pki)
    certs = [pki.agent(f"gw-{i}") for i in range(5)]
    enough = threading.Event()

    def storm():
        while not enough.wait(0.003):
            b.proc.signal(signal.SIGHUP)
    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for i in range(10):
            assert connect(b, pki, f"gw-{i % 5}", certs[i % 5]).welcome
    finally:
        enough.set()
        thread.join()
    assert b.proc.find_logs("reloaded") and not b.proc.find_logs("tls_refused")


def served_fingerprint(b):
    import hashlib
    import socket
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", b.port), timeout=5) as s:
        with context.wrap_socket(s) as t:
            return hashlib.sha256(t.getpeercert(True)).hexdigest()


def test_bad_tls_files_stop_the_start_with_78(start, pki, redis):
    env = {"AGENT_BRIDGE_BIND": "127.0.0.1:0", "AGENT_BRIDGE_REDIS_URL": redis.url,
           "AGENT_BRIDGE_TLS_CERT": pki.server[0], "AGENT_BRIDGE_TLS_KEY": pki.path("ca.key"),
           "AGENT_BRIDGE_TLS_CLIENT_CA": pki.path("client_ca.pem")}
    p = start("agent-bridge", env=env)
    assert p.wait_exit() == 78 and "ca.key" in p.text
    p = start("agent-bridge", env={k: v for k, v in env.items() if not k.endswith("KEY")})
    assert p.wait_exit() == 78 and "AGENT_BRIDGE_TLS_KEY" in p.text


# ---------------------------------------------------------------- behind nginx


NGINX = """
daemon off; master_process off; worker_processes 1; pid {dir}/pid; error_log stderr warn;
events {{ worker_connections 200; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  large_client_header_buffers 4 16k;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {cert}; ssl_certificate_key {key};
    ssl_client_certificate {ca}; ssl_crl {crl}; ssl_verify_client {verify};
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-SSL-Client-Verify $ssl_client_verify;
      proxy_set_header X-SSL-Client-Cert $ssl_client_escaped_cert;
      proxy_set_header X-SSL-Client-Fingerprint ""; proxy_set_header X-SSL-Client-DN "";
      proxy_set_header X-SSL-Client-SAN "";
    }}
  }}
}}
"""


@pytest.fixture
def behind_nginx(bridge, pki, tmp):
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed")
    procs = []

    def go(verify="on", **settings):
        settings.setdefault("trusted_proxies", "127.0.0.1/32")
        b = bridge(internal_bind=f"127.0.0.1:{viwtest.free_port()}", admin_token="t", wait=False, **settings)
        b.proc.wait_log("redis_up")
        dir = tmp / f"nginx{len(procs)}"
        dir.mkdir()
        b.front = viwtest.free_port()
        (dir / "conf").write_text(NGINX.format(
            dir=dir, port=b.front, cert=pki.server[0], key=pki.server[1], ca=pki.path("client_ca.pem"),
            crl=pki.path("crl.pem"), verify=verify, upstream=b.port))
        p = viwtest.Proc([shutil.which("nginx"), "-p", dir, "-c", dir / "conf", "-e", "stderr"], name="nginx", dir=tmp)
        procs.append(p)

        def up():
            import socket
            try:
                socket.create_connection(("127.0.0.1", b.front), 1).close()
                return True
            except OSError:
                return False
        viwtest.wait_for(up, what="nginx listens")
        b.url = lambda path="/agent/ws": f"wss://localhost:{b.front}{path}"
        return b
    yield go
    for p in procs:
        p.signal(signal.SIGTERM)
        p.wait_exit()


def test_behind_nginx(behind_nginx, pki):
    b = behind_nginx()
    cert = pki.agent("gw-1")
    # X-Forwarded-For sent by the client itself is hearsay: the proxy's own view counts
    ws = b.connect("gw-1", ssl=pki.client_context(*cert), local_addr=("127.0.0.2", 0),
                   headers={**b.headers("gw-1"), "X-Forwarded-For": "203.0.113.5"})
    from bridgetest import telemetry
    ws.send(telemetry("gw-1"))
    assert b.entries("telemetry")[0]["ip"] == "127.0.0.2"
    status, code, _ = b.refused(b.headers("gw-2"), ssl=pki.client_context(*cert))
    assert (status, code) == (403, "certificate_name")
    # what a client claims of itself does not pass the proxy
    forged = {**b.headers("gw-2"), "X-SSL-Client-DN": "CN=gw-2", "X-SSL-Client-Fingerprint": "a" * 64}
    assert b.refused(forged, ssl=pki.client_context(*cert))[:2] == (403, "certificate_name")
    b.redis.client.sadd("viw.revoked", pki.fingerprint(cert[0]))
    assert ws.wait_closed(10) == 4003
    viwtest.wait_for(lambda: b.refused(b.headers("gw-1"), ssl=pki.client_context(*cert))[:2] == (403, "revoked"))


def test_behind_nginx_without_certificate_is_401(behind_nginx, pki):
    b = behind_nginx(verify="optional")
    assert b.refused(b.headers("gw-1"), ssl=pki.client_context())[:2] == (401, "no_identity")


def test_behind_nginx_subject_policy(behind_nginx, pki):
    b = behind_nginx(client_dn_policy="*O=ViWorkS*")
    assert b.connect("gw-1", ssl=pki.client_context(*pki.agent("gw-1"))).welcome
    other = pki.issue("other", "client_ca", "/O=Else/CN=gw-2")
    assert b.refused(b.headers("gw-2"), ssl=pki.client_context(*other))[:2] == (403, "certificate_policy")


def test_proxy_headers_spelled_out(bridge):
    """The form without X-SSL-Client-Cert, from a trusted address (here: this test)."""
    b = bridge(trusted_proxies="127.0.0.0/8", internal_bind=f"127.0.0.1:{viwtest.free_port()}",
               admin_token="t", wait=False)
    b.proc.wait_log("redis_up")
    said = {"X-SSL-Client-Verify": "SUCCESS", "X-SSL-Client-Fingerprint": "AB" * 32,
            "X-SSL-Client-DN": "CN=gw-1,O=x", "X-Forwarded-For": "198.51.100.7"}
    assert b.connect("gw-1", headers={**b.headers("gw-1"), **said}).welcome
    assert b.entries("agent_events", event="connected")[0]["ip"] == "198.51.100.7"
    assert b.refused({**b.headers("gw-2"), **said})[:2] == (403, "certificate_name")
    assert b.refused({**b.headers("gw-1"), **said, "X-SSL-Client-Verify": "NONE"})[:2] == (401, "no_identity")
    assert b.refused(b.headers("gw-1"))[:2] == (401, "no_identity")
    san = {**said, "X-SSL-Client-SAN": "URI:urn:viworks:agent:gw-3"}
    assert b.connect("gw-3", headers={**b.headers("gw-3"), **san}).welcome
    assert b.refused({**b.headers("gw-1"), **san})[:2] == (403, "certificate_name")


def test_a_certificate_of_its_own_that_is_over_is_said(bridge, pki, start):
    """It is served all the same, and only agents notice: without this line nothing here would tell why they stay away."""
    over = pki.issue("over", "ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth", days=-1)
    b = mtls(bridge, pki, tls_cert=over[0], tls_key=over[1])
    line = b.proc.wait_log("cert_expiry")
    assert f"{over[0]}: was valid until" in line["msg"] and line["setting"] == "AGENT_BRIDGE_TLS_CERT"
    check = start("agent-bridge", args=["--check-config"], env={
        "AGENT_BRIDGE_SHARED_SECRET": "x" * 32, "AGENT_BRIDGE_TLS_CERT": over[0], "AGENT_BRIDGE_TLS_KEY": over[1]})
    assert check.wait_exit() == 0 and f"warning: AGENT_BRIDGE_TLS_CERT {over[0]}: was valid until" in check.text


@pytest.mark.parametrize("leaves, reason", [(True, "connection_lost"), (False, "protocol_error")])
def test_a_tls_socket_that_ends_is_told_from_one_that_breaks_the_protocol(bridge, pki, leaves, reason):
    b = mtls(bridge, pki)
    lines = {"Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **b.headers("gw-1")}
    with pki.client_context(*pki.agent("gw-1")).wrap_socket(
            socket.create_connection(("127.0.0.1", b.port), timeout=10), server_hostname="localhost") as s:
        s.sendall(("GET /agent/ws HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode())
        got = b""
        while b'"HELLO_ACK"' not in got:
            got += s.recv(4096)
        if leaves:
            with contextlib.suppress(OSError):
                s.unwrap()  # close_notify
        else:
            s.sendall(b"\x89\xfe\x01\x00\0\0\0\0")  # a PING of 256 bytes
        assert b.proc.wait_log("disconnected", agent_id="gw-1")["detail"] == reason
