"""Starts and watches what bench/run measures: servers in a folder of their own, ended by pid."""
import json
import os
import re
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import redis as redis_client

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(os.environ.get("VIW_BIN", ROOT / "build/release/bin"))
LOADGEN = BIN.parent / "bench/viw-loadgen"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")


class BenchError(Exception):
    pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(cond, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = cond()
        if value:
            return value
        time.sleep(0.02)
    raise BenchError(f"waited {seconds} s for {what}")


def answers(port):
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def http_ok(port, path):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1).status == 200
    except OSError:
        return False


def metric(port, name):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return float(re.search(rf"^{name} (\S+)", text, re.M).group(1))


def cpu_s(pid):
    """User and system seconds of all threads, also those that ended: proc(5), in 10 ms steps."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def kernel_bytes():
    """What the kernel holds in slabs and socket buffers, whole machine: both ends of loopback."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    slab = int(meminfo["Slab"].split()[0]) * 1024
    sockets = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.M)
    return slab + int(sockets.group(1)) * PAGE


class Proc:
    def __init__(self, name, argv, dir, env=None, stdin=None, stdout=None):
        self.name, self.log = name, Path(dir) / f"{name}.log"
        full = {"PATH": os.environ["PATH"], "HOME": str(dir), "LANG": "C.UTF-8"} | (env or {})
        self.popen = subprocess.Popen([str(a) for a in argv], cwd=dir, env=full, stdin=stdin or subprocess.DEVNULL,
                                      stdout=stdout or open(self.log, "ab"), stderr=open(self.log, "ab"))
        self.pid = self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def ready(self, cond, seconds=10):
        def check():
            if not self.alive():
                raise BenchError(f"{self.name} ended with {self.popen.returncode}: {self.tail()}")
            return cond()
        wait_for(check, seconds, f"{self.name} to be ready")
        return self

    def stop(self, sig=signal.SIGTERM, seconds=15):
        if self.alive():
            self.popen.send_signal(sig)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Bench:
    """One run: a folder, its processes, its secret. Everything ends with the block."""

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="viw-bench-"))
        self.secret = secrets.token_hex(16)
        self.procs = []
        return self

    def __exit__(self, kind, *_):
        for p in reversed(self.procs):
            p.stop(signal.SIGTERM if p.name != "redis" else signal.SIGKILL, 5)
        if kind and os.environ.get("VIW_KEEP"):
            print(f"kept: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, *args, **kw):
        p = Proc(*args, dir=self.dir, **kw)
        self.procs.append(p)
        return p

    def redis(self):
        sock = self.dir / "redis.sock"
        p = self.start("redis", ["redis-server", "--port", 0, "--unixsocket", sock, "--dir", self.dir, "--save", "",
                                 "--appendonly", "yes", "--appendfsync", "everysec",
                                 "--maxmemory-policy", "noeviction"])
        self.db = redis_client.Redis(unix_socket_path=str(sock))

        def up():
            try:
                return self.db.ping()
            except redis_client.RedisError:
                return False
        return p.ready(up)

    def pki(self):
        """A CA, and the server's certificate; the load generator signs the agents' itself."""
        d = self.dir
        run = lambda *a: subprocess.run(["openssl", *map(str, a)], cwd=d, check=True, capture_output=True)
        if not (d / "ca.crt").exists():
            run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2,
                "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=bench CA")
            run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "server.key",
                "-out", "server.csr", "-subj", "/CN=localhost")
            run("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", 2, "-out", "server.crt")
        return d

    def crl(self, revoked):
        """A revocation list of the CA with so many entries."""
        d = self.pki()
        (d / "index").write_text("".join(f"R\t351231235959Z\t260101000000Z\t{n + 0x100000:08X}\tunknown\t/CN=gw-{n}\n"
                                         for n in range(revoked)))
        (d / "crl.cnf").write_text("[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncertificate=ca.crt\nprivate_key=ca.key\n"
                                   "default_md=sha256\ndefault_crl_days=2\n")
        subprocess.run(["openssl", "ca", "-config", "crl.cnf", "-gencrl", "-out", "crl.pem"], cwd=d, check=True, capture_output=True)
        return str(d / "crl.pem")

    def bridge(self, tls=False, port=None, **env):
        self.port = port or free_port()
        internal = free_port()
        settings = {"BIND": f"127.0.0.1:{self.port}", "INTERNAL_BIND": f"127.0.0.1:{internal}", "ID": "bench",
                    "SHARED_SECRET": self.secret, "REDIS_URL": f"unix://{self.dir}/redis.sock", "MAX_CONN": "20000",
                    "RATE_PER_IP": "10000000", "RATE_PER_AGENT": "1000000", "DRAIN_S": "1"}
        if tls:
            d = self.pki()
            settings |= {"TLS_CERT": str(d / "server.crt"), "TLS_KEY": str(d / "server.key"),
                         "TLS_CLIENT_CA": str(d / "ca.crt")}
        settings |= env
        p = self.start("bridge", [BIN / "agent-bridge"], env={f"AGENT_BRIDGE_{k}": v for k, v in settings.items()})
        self.internal = internal
        return p.ready(lambda: answers(self.port) and http_ok(internal, "/internal/agent/_readyz"))

    def node(self):
        self.port = free_port()
        peer = Path(__file__).parent / "peers"
        if not (peer / "node_modules").exists():
            if not shutil.which("npm"):
                raise BenchError("npm is missing: it fetches ws and ioredis for the Node peer")
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=peer, check=True, capture_output=True)
        p = self.start("node", ["node", peer / "node_bridge.js"], env={
            "PORT": str(self.port), "SECRET": self.secret, "REDIS_PATH": str(self.dir / "redis.sock"), "MAXLEN": "1000000",
            "NODE_ENV": "production"})
        return p.ready(lambda: answers(self.port))

    def nats(self):
        self.port, self.nats_port = free_port(), free_port()
        conf = self.dir / "nats.conf"
        conf.write_text(f"host: 127.0.0.1\nport: {self.nats_port}\nmax_connections: 20000\n"
                        f"websocket {{ host: 127.0.0.1, port: {self.port}, no_tls: true }}\n"
                        f"jetstream {{ store_dir: {self.dir}/js, max_file: 8G }}\n")
        p = self.start("nats", ["nats-server", "-c", conf])
        p.ready(lambda: answers(self.port) and answers(self.nats_port))
        self.js = Nats(self.nats_port)
        self.js.ask("$JS.API.STREAM.CREATE.viw", {"name": "viw", "subjects": ["viw.telemetry.*"], "storage": "file",
                                                  "retention": "limits", "num_replicas": 1, "max_msgs": 1000000})
        return p

    def mosquitto(self):
        self.port = free_port()
        conf = self.dir / "mosquitto.conf"
        # 2.0.11 does not start with a WebSocket listener alone
        conf.write_text(f"listener {free_port()} 127.0.0.1\nlistener {self.port} 127.0.0.1\nprotocol websockets\n"
                        "allow_anonymous true\npersistence false\nuser root\nlog_type error\n")
        return self.start("mosquitto", ["mosquitto", "-c", conf]).ready(lambda: answers(self.port))

    def load(self, target, mode, conns, *more, tls=False):
        argv = [LOADGEN, "--port", self.port, "--target", target, "--mode", mode, "--conns", conns, *more]
        if target == "nats":
            argv += ["--path", "/"]
        elif target == "mqtt":
            argv += ["--path", "/mqtt"]
        if tls:
            argv += ["--tls", "--ca-cert", self.dir / "ca.crt", "--ca-key", self.dir / "ca.key"]
        p = self.start("loadgen", argv, env={"VIW_LOADGEN_SECRET": self.secret}, stdin=subprocess.PIPE,
                       stdout=subprocess.PIPE)
        return Load(p)


class Load:
    """The generator's talk: lines in, events out."""

    def __init__(self, proc):
        self.proc, self.text = proc, b""

    def say(self, word):
        try:
            self.proc.popen.stdin.write(word.encode() + b"\n")
            self.proc.popen.stdin.flush()
        except BrokenPipeError:  # it has ended by itself, and said so
            pass

    def event(self, name, seconds):
        end, out = time.monotonic() + seconds, self.proc.popen.stdout
        while True:
            while b"\n" in self.text:
                line, self.text = self.text.split(b"\n", 1)
                e = json.loads(line)
                if e["event"] == name:
                    return e
            left = end - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                self.say("say")
                raise BenchError(f"the load generator did not say {name} within {seconds} s: {self.event('state', 5)}"
                                 if name != "state" else "the load generator is stuck")
            got = os.read(out.fileno(), 65536)
            if not got:
                raise BenchError(f"the load generator ended: {self.proc.tail()}")
            self.text += got

    def quit(self):
        self.say("quit")
        end = self.event("end", 30)
        self.proc.popen.wait(30)
        return end


class Nats:
    """As much of NATS as asking JetStream takes."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.file = self.sock.makefile("rb")
        self.file.readline()
        self.sock.sendall(b'CONNECT {"verbose":false}\r\nSUB inbox 1\r\n')

    def ask(self, subject, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        self.sock.sendall(b"PUB %s inbox %d\r\n%s\r\n" % (subject.encode(), len(data), data))
        while True:
            line = self.file.readline()
            if line.startswith(b"PING"):
                self.sock.sendall(b"PONG\r\n")
            elif line.startswith(b"MSG"):
                payload = self.file.read(int(line.split()[-1]) + 2)
                answer = json.loads(payload)
                if "error" in answer:
                    raise BenchError(f"{subject}: {answer['error']}")
                return answer

    def messages(self):
        return self.ask("$JS.API.STREAM.INFO.viw")["state"]["last_seq"]


def machine():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    rev = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"cpu": cpu.group(1) if cpu else "?", "cores": os.cpu_count(), "kernel": os.uname().release,
            "commit": rev.stdout.strip(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "load1": os.getloadavg()[0]}


resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
