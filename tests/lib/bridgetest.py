"""One agent-bridge under test: started with settings, asked over HTTP, connected to as agents do."""
import http.client
import json
import re
import uuid

import viwtest

SECRET = "a test secret of the bridge"


class Bridge:
    def __init__(self, start, redis, connect, secret=SECRET, redis_url=None, wait=True, **settings):
        self.connect_ws, self.secret, self.redis = connect, secret, redis
        self.port = viwtest.free_port()
        self.internal_port = self.port
        env = {"BIND": f"127.0.0.1:{self.port}", "ID": "bridge-t", "DRAIN_S": "1",
               "REDIS_URL": redis_url or redis.url}
        if secret:
            env["SHARED_SECRET"] = secret
        env.update({k.upper(): str(v) for k, v in settings.items() if v is not None})
        for name in [k for k, v in settings.items() if v is None]:
            env.pop(name.upper(), None)
        if "INTERNAL_BIND" in env:
            self.internal_port = int(env["INTERNAL_BIND"].rsplit(":", 1)[1])
        self.env = {f"AGENT_BRIDGE_{k}": v for k, v in env.items()}
        self.tls = "TLS_CERT" in env
        self.proc = start("agent-bridge", env=self.env)
        if wait:
            self.proc.wait_log("listening")
            self.wait_ready()

    # ---- HTTP

    def http(self, method, path, body=None, headers=None, port=None):
        """(status, headers, text). The internal endpoints' plain listener."""
        conn = http.client.HTTPConnection("127.0.0.1", port or self.internal_port, timeout=10)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            conn.request(method, path, body=body, headers=headers or {})
            answer = conn.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            conn.close()

    def get(self, path, **kwargs):
        """The JSON of a 200."""
        status, _, text = self.http("GET", path, **kwargs)
        assert status == 200, (path, status, text)
        return json.loads(text)

    def post(self, agent_id, path="/internal/agent/agents/{}/commands", headers=None, **body):
        body.setdefault("correlation_id", str(uuid.uuid4()))
        body.setdefault("command", "ECHO")
        status, head, text = self.http("POST", path.format(agent_id), body, headers)
        return status, json.loads(text), head

    def wait_ready(self, ready=True, timeout=10):
        if self.tls and self.internal_port == self.port:
            return
        viwtest.wait_for(lambda: (self.http("GET", "/internal/agent/_readyz")[0] == 200) == ready,
                         timeout, f"ready is {ready}")

    def metric(self, name, **labels):
        """The value of one series; 0 when it is not there yet."""
        want = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
        for line in self.http("GET", "/metrics")[2].splitlines():
            if line.rsplit(" ", 1)[0] == want:
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    # ---- agents

    def url(self, path="/agent/ws"):
        return f"{'wss' if self.tls else 'ws'}://{'localhost' if self.tls else '127.0.0.1'}:{self.port}{path}"

    def headers(self, agent_id, path="/agent/ws", **kwargs):
        kwargs.setdefault("secret", self.secret)
        return viwtest.handshake_headers(agent_id, path=path, **kwargs)

    def connect(self, agent_id="gw-1", hello=True, path="/agent/ws", headers=None, **kwargs):
        ws = self.connect_ws(self.url(path), headers=headers or self.headers(agent_id, path), **kwargs)
        if hello:
            ws.hello_ack, ws.welcome = ws.hello(agent_id)
        return ws

    def refused(self, headers, path="/agent/ws", **kwargs):
        """The refusal of a handshake, which is JSON, logged once and counted: (status, code, headers)."""
        import wslib
        lines, counted = len(self.proc.find_logs("handshake_refused")), self.refusals()
        try:
            self.connect_ws(self.url(path), headers=headers, **kwargs)
        except wslib.InvalidStatusCode as e:
            [log] = viwtest.wait_for(lambda: [line for line in self.proc.find_logs("handshake_refused")[lines:]
                                              if line.get("agent_id") == headers["X-Agent-Id"]], what="a log line")
            code = log["error"]
            assert log["level"] == "warn" and log["ip"] and log["msg"], log
            assert e.headers["Content-Type"] == "application/json" and int(e.headers["Content-Length"]) > len(code)
            if counted is not None:
                now = self.refusals()
                assert now.pop(code) == counted.pop(code, 0) + 1 and now == counted
            return e.status_code, code, e.headers
        raise AssertionError("the handshake was accepted")

    def refusals(self):
        """viw_handshake_refused_total by code; None where no plain listener tells."""
        if self.tls and self.internal_port == self.port:
            return None
        token = self.env.get("AGENT_BRIDGE_ADMIN_TOKEN")
        status, _, text = self.http("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else None)
        if status != 200:
            return None
        return {code: float(n) for code, n in re.findall(r'^viw_handshake_refused_total\{code="(\w+)"\} (\S+)$', text, re.M)}

    # ---- streams

    def entries(self, stream, timeout=5, count=1, **fields):
        """Waits for count entries of viw.<stream> with these fields; returns them as dicts."""
        def found():
            rows = [dict(f, id=i) for i, f in self.redis.client.xrange(f"viw.{stream}")]
            hits = [r for r in rows if all(r.get(k) == v for k, v in fields.items())]
            return hits if len(hits) >= count else None
        return viwtest.wait_for(found, timeout, f"{count} entries of {stream} with {fields}")


def telemetry(agent_id, seq=1, **metrics):
    return {"type": "TELEMETRY", "agent_id": agent_id, "ts": viwtest.rfc3339(), "seq": seq,
            "boot_id": "b1", "metrics": metrics or {"cpu_pct": 12.5}}


def result(agent_id, correlation_id, status="success", **fields):
    return {"type": "RESULT", "agent_id": agent_id, "correlation_id": correlation_id, "status": status,
            **fields}
