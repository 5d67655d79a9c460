"""The whole chain, started as `./viw up` starts it, for tests that look at it from outside."""
import subprocess

import pytest
import viwtest

SECRET = "end-to-end-secret-0123456789abcdef"


class Chain:
    """agent-bridge, both writers, and on demand host-helper and gateway-agent, on private stores."""

    def __init__(self, start, redis, pg, tmp):
        self.start, self.redis, self.pg, self.tmp = start, redis, pg, tmp
        self.secret = SECRET
        self.port = viwtest.free_port()
        self.ws_url = f"ws://127.0.0.1:{self.port}/agent/ws"
        self.http_url = f"http://127.0.0.1:{self.port}"
        self.bridge = self.telemetry_writer = self.results_writer = self.helper = self.agent = None

    def start_bridge(self, **env):
        self.bridge = self.start("agent-bridge", env={
            "AGENT_BRIDGE_BIND": f"127.0.0.1:{self.port}", "AGENT_BRIDGE_ID": "bridge-1",
            "AGENT_BRIDGE_SHARED_SECRET": SECRET, "AGENT_BRIDGE_REDIS_URL": self.redis.url,
            "AGENT_BRIDGE_DRAIN_S": "1", **env})
        return self

    def start_writers(self, **env):
        for name, prefix in (("telemetry-writer", "TELEMETRY_WRITER"), ("results-writer", "RESULTS_WRITER")):
            proc = self.start(name, env={
                f"{prefix}_REDIS_URL": self.redis.url, f"{prefix}_DATABASE_URL": self.pg.uri,
                f"{prefix}_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}", **env})
            setattr(self, name.replace("-", "_"), proc)
        return self

    def start_helper(self, root_dir, agent_user="nobody", **env):
        import grp
        import pwd
        self.root_dir = root_dir
        key = viwtest.write_secret(root_dir / "helper.secret", "helper-key-0123456789abcdef0123456789")
        (root_dir / "verbs.d").mkdir(exist_ok=True)
        (root_dir / "state").mkdir(mode=0o700, exist_ok=True)
        self.socket = root_dir / "helper.sock"
        user = pwd.getpwnam(agent_user)
        self.helper = self.start("host-helper", env={
            "HOST_HELPER_SOCKET": self.socket, "HOST_HELPER_SECRET_FILE": key,
            "HOST_HELPER_VERBS_DIR": root_dir / "verbs.d", "HOST_HELPER_STATE_DIR": root_dir / "state",
            "HOST_HELPER_ALLOWED_UIDS": user.pw_uid,
            "HOST_HELPER_SOCKET_GROUP": grp.getgrgid(user.pw_gid).gr_name, **env})
        self.helper.wait_log("ready")  # the socket is there before it listens
        return self

    def start_agent(self, agent_id, user="nobody", **env):
        import shutil
        state = self.tmp / f"agent-{agent_id}"
        state.mkdir(exist_ok=True)
        own = {}
        for name, text in (("VIW_AGENT_SHARED_SECRET_FILE", SECRET),
                           ("VIW_AGENT_HELPER_SECRET_FILE", "helper-key-0123456789abcdef0123456789")):
            path = state / name
            if not path.exists():
                viwtest.write_secret(path, text)
            shutil.chown(path, user)
            own[name] = path
        shutil.chown(state, user)
        self.agent = self.start("gateway-agent", args=["run"], user=user, env={
            "VIW_AGENT_ID": agent_id, "VIW_AGENT_SITE": "lab", "VIW_AGENT_BACKEND_URL": self.ws_url,
            "VIW_AGENT_HELPER_SOCKET": getattr(self, "socket", "/nonexistent"),
            "VIW_AGENT_STATE_DIR": state, "VIW_AGENT_FEATURE_EXEC_ENABLE": "true",
            "VIW_AGENT_TELEMETRY_INTERVAL_S": "1", **own, **env})
        return self

    def headers(self, agent_id):
        return viwtest.handshake_headers(agent_id, SECRET)


@pytest.fixture
def chain(start, redis, pg, tmp):
    c = Chain(start, redis, pg, tmp)
    c.start_bridge().start_writers()

    viwtest.wait_for(lambda: viwtest.http_status(f"{c.http_url}/internal/agent/_readyz") == 200,
                     what="the bridge is ready")
    return c


@pytest.fixture
def ctl(request, redis, pg, tmp):
    """ctl("gateways", "--json") -> CompletedProcess; env= overrides settings."""
    def run(*words, env=None, stdin=None, timeout=40):
        settings = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "VIWCTL_REDIS_URL": redis.url,
                    "VIWCTL_DATABASE_URL": pg.uri, "VIWCTL_CA_DIR": str(tmp / "ca"),
                    "ASAN_OPTIONS": "exitcode=99", **(env or {})}
        return subprocess.run([viwtest.BIN / "viwctl", *map(str, words)], env=settings, text=True,
                              cwd=tmp, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=timeout)
    return run
