"""What the integration and end-to-end tests share: programs started and always ended by pid, a
private Redis and PostgreSQL, waiting for conditions, a PKI, a WebSocket client, verb manifests.

The fixtures in ../conftest.py are thin wrappers around what is here.
"""
import asyncio
import atexit
import base64
import datetime
import glob
import hashlib
import hmac
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("VIW_BIN", ROOT / "build" / "dev" / "bin")).resolve()


def plain_build():
    """A folder of programs without AddressSanitizer, for what cannot be had with it; None: not built."""
    for preset in ("release", "clang", "chaos"):
        path = ROOT / "build" / preset / "bin"
        if (path / "results-writer").exists() and (path / "agent-bridge").exists():
            return path
    return None


# ---------------------------------------------------------------- waiting


class TooLate(AssertionError):
    """Something did not come in its time; a whole run may ask that test again (../conftest.py)."""


def wait_for(cond, timeout=10.0, what=None, every=0.02):
    """Calls cond until it returns something true, and returns that. TooLate at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = cond()
        if value:
            return value
        if time.monotonic() > deadline:
            text = what or getattr(cond, "__name__", "condition")
            raise TooLate(f"not within {timeout} s: {text} (last value: {value!r})")
        time.sleep(every)


_ports_given = set()
# Each of the lanes that run side by side (../conftest.py) has its own; 18000 and some are containers'.
_PORTS = (20000, 32000) if os.environ.get("VIW_TEST_LANE") == "second" else (10000, 18000)


def free_port(host="127.0.0.1"):
    """A TCP port nobody listens on now, another one at each call; below the range the kernel takes
    ports of outgoing connections from, so that none of those gets it meanwhile."""
    while True:
        port = random.randrange(*_PORTS)
        if port in _ports_given:
            continue
        with socket.socket() as s:
            try:
                s.bind((host, port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


def http_status(url, headers=None, timeout=5.0):
    """Status of a GET; 0 while nobody listens."""
    import urllib.error
    import urllib.request
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=timeout).status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0


def rfc3339(offset_s=0.0, now=None):
    """The time now plus offset_s, as the contract writes times. now: seconds since 1970, where two must be that far apart."""
    t = datetime.datetime.fromtimestamp(now or time.time(), datetime.timezone.utc) + datetime.timedelta(seconds=offset_s)
    return t.strftime("%Y-%m-%dT%H:%M:%S.") + f"{t.microsecond // 1000:03d}Z"


def make_tmp(parent="/tmp"):
    """A short private directory that other users may pass through (sockets, unprivileged agents)."""
    path = Path(tempfile.mkdtemp(prefix="viw-", dir=parent))
    path.chmod(0o711)
    return path


# ---------------------------------------------------------------- programs

SANITIZER = re.compile(
    rb"ERROR: (Address|Leak|Thread|Memory)Sanitizer|WARNING: ThreadSanitizer"
    rb"|SUMMARY: \w+Sanitizer|[\w./-]+:\d+:\d+: runtime error: ")


class Proc:
    """One process. Its stderr (the log) and stdout go to files; it is ended by its pid."""

    def __init__(self, argv, *, name, dir, env=None, user=None, cwd=None, stdin=None):
        self.env = {k: str(v) for k, v in (env or {}).items()}
        self.name, self.argv = name, [str(a) for a in argv]
        n = len(list(Path(dir).glob(f"{name}.*.log")))
        self.log_path = Path(dir) / f"{name}.{n}.log"
        self.out_path = Path(dir) / f"{name}.{n}.out"
        full = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8", "HOME": "/nonexistent",
                "ASAN_OPTIONS": "exitcode=99:allocator_may_return_null=1:detect_leaks=" +
                ("0" if user not in (None, "root") else "1"),
                "UBSAN_OPTIONS": "print_stacktrace=1", "LSAN_OPTIONS": "exitcode=99"}
        full.update({k: str(v) for k, v in (env or {}).items()})
        who = {}
        if user is not None and os.geteuid() == 0:
            pw = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
            who = {"user": pw.pw_uid, "group": pw.pw_gid, "extra_groups": []}
        with open(self.log_path, "wb") as err, open(self.out_path, "wb") as out:
            self.popen = subprocess.Popen(self.argv, env=full, stdin=stdin or subprocess.DEVNULL,
                                          stdout=out, stderr=err, cwd=cwd or "/",
                                          start_new_session=True, **who)

    @property
    def pid(self):
        return self.popen.pid

    @property
    def returncode(self):
        return self.popen.poll()

    @property
    def alive(self):
        return self.popen.poll() is None

    @property
    def text(self):
        """All of stderr so far."""
        return self.log_path.read_text("utf-8", "replace")

    @property
    def stdout(self):
        return self.out_path.read_text("utf-8", "replace")

    @property
    def logs(self):
        """The log's JSON lines as dicts; other lines as {"raw": line}."""
        out = []
        for line in self.text.splitlines():
            try:
                value = json.loads(line)
                out.append(value if isinstance(value, dict) else {"raw": line})
            except ValueError:
                out.append({"raw": line})
        return out

    def find_logs(self, event=None, **fields):
        want = dict(fields, **({"event": event} if event else {}))
        return [line for line in self.logs if all(line.get(k) == v for k, v in want.items())]

    def wait_log(self, event=None, timeout=10.0, count=1, **fields):
        """Waits for the count-th log line with this event and these fields; returns the last one."""
        def found():
            hits = self.find_logs(event, **fields)
            if len(hits) >= count:
                return hits
            if not self.alive and len(self.find_logs(event, **fields)) < count:
                raise AssertionError(f"{self.name} ended with {self.returncode} before it logged "
                                     f"{event} {fields}:\n{self.tail()}")
            return None
        return wait_for(found, timeout, f"{self.name} logs {event} {fields}\n{self.tail()}")[-1]

    def wait_exit(self, timeout=10.0):
        """Waits until it ends by itself; returns the exit code (negative: the signal)."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TooLate(f"{self.name} still runs after {timeout} s:\n{self.tail()}") from None

    def signal(self, signum):
        if self.alive:
            self.popen.send_signal(signum)

    def stop(self, timeout=10.0):
        """SIGTERM and wait; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def kill(self):
        """SIGKILL and wait."""
        self.signal(signal.SIGKILL)
        return self.popen.wait()

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def tail(self, lines=40):
        text = "\n".join(self.text.splitlines()[-lines:])
        out = "\n".join(self.stdout.splitlines()[-10:])
        return f"--- {self.name} (pid {self.pid}, exit {self.returncode}) stderr:\n{text}" + (
            f"\n--- stdout:\n{out}" if out else "")

    def sanitizer_report(self):
        """The part of the log from the first sanitizer report on, or None."""
        data = self.log_path.read_bytes()
        m = SANITIZER.search(data)
        return data[m.start():m.start() + 6000].decode("utf-8", "replace") if m else None


class Starter:
    """Starts programs of the build under test and remembers them."""

    def __init__(self, dir):
        self.dir, self.procs, self.faults = Path(dir), [], None

    def __call__(self, program, env=None, args=(), user=None, cwd=None, bin_dir=None):
        path = Path(program)
        if not path.is_absolute():
            path = helper_program(bin_dir) if program == "host-helper" else Path(bin_dir or BIN) / program
        if not path.exists():
            raise AssertionError(f"{path} is not built (set VIW_BIN, or build the dev preset)")
        if user not in (None, "root") and not all(p.stat().st_mode & stat.S_IXOTH for p in path.resolve().parents):
            # The tree lies where only its owner may look (/root): the other user gets a copy.
            (self.dir / "bin").mkdir(mode=0o755, exist_ok=True)
            path = Path(shutil.copy2(path, self.dir / "bin" / path.name))
        proc = Proc([path, *args], name=path.name, dir=self.dir, env=env, user=user, cwd=cwd)
        self.procs.append(proc)
        return proc

    def close(self):
        """Ends everything; returns what must fail the test: sanitizer reports, hanging programs."""
        if self.faults is not None:
            return self.faults
        faults = self.faults = []
        for p in reversed(self.procs):
            p.thaw()
            p.signal(signal.SIGTERM)
        for p in reversed(self.procs):
            try:
                p.popen.wait(8)
            except subprocess.TimeoutExpired:
                p.kill()
                faults.append(f"{p.name} did not stop within 8 s of SIGTERM\n{p.tail()}")
            report = p.sanitizer_report()
            if report:
                faults.append(f"{p.name}: sanitizer report\n{report}")
        return faults


# ---------------------------------------------------------------- Redis


class RedisServer:
    """A private redis-server: unix socket and loopback port, AOF, noeviction."""

    def __init__(self, dir, port=None, env=None, fsync="everysec"):
        self.env, self.fsync = env, fsync
        self.dir = Path(dir) / "redis"
        self.dir.mkdir(exist_ok=True)
        self.dir.chmod(0o711)
        self.port = port or free_port()
        self.socket = str(self.dir / "s")
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.unix_url = f"unix://{self.socket}"
        self.proc = None
        self.client = None

    def start(self, *extra, timeout=10.0):
        import redis
        self.proc = Proc(["redis-server", "--port", self.port, "--bind", "127.0.0.1",
                          "--unixsocket", self.socket, "--unixsocketperm", "777",
                          "--dir", self.dir, "--daemonize", "no", "--save", "",
                          "--appendonly", "yes", "--appendfsync", self.fsync,
                          "--maxmemory-policy", "noeviction", "--enable-debug-command", "yes",
                          "--logfile", self.dir / "redis.log", *extra],
                         name="redis-server", dir=self.dir, env=self.env)
        self.client = redis.Redis(unix_socket_path=self.socket, decode_responses=True)

        def up():
            if not self.proc.alive:
                raise AssertionError(f"redis-server ended:\n{(self.dir / 'redis.log').read_text()}")
            try:
                return self.client.ping()
            except redis.exceptions.RedisError:
                return False
        wait_for(up, timeout, "redis-server answers PING")
        return self

    def stop(self):
        if self.proc:
            self.proc.stop()

    def kill(self, remembers=False):
        """remembers: once all it has answered has left for its file. With everysec it answers before that while the
        disk is still busy with the second before, and a SIGKILL would take what it has answered along."""
        if remembers:
            wait_for(lambda: self.client.info("persistence")["aof_buffer_length"] == 0, what="the AOF is written")
        if self.proc:
            self.proc.kill()

    def wipe(self):
        """Forgets the data on disk (call it while stopped)."""
        shutil.rmtree(self.dir / "appendonlydir", ignore_errors=True)

    def freeze(self):
        self.proc.freeze()

    def thaw(self):
        self.proc.thaw()

    def close(self):
        if self.proc and self.proc.alive:
            self.proc.thaw()
            self.proc.kill()

    def xadd_command(self, agent_id, command, correlation_id=None, params=None, prefix="viw", **fields):
        """What a backend does; returns the correlation_id."""
        cid = correlation_id or str(uuid.uuid4())
        entry = {"correlation_id": cid, "agent_id": agent_id, "command": command}
        if params is not None:
            entry["params"] = params if isinstance(params, str) else json.dumps(params)
        entry.update(fields)
        self.client.xadd(f"{prefix}.commands", entry)
        return cid


# ---------------------------------------------------------------- PostgreSQL


def pg_bindir():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    if not found:
        raise AssertionError("PostgreSQL is not installed (apt-get install postgresql)")
    return Path(found[-1]).parent


class PgServer:
    """A private PostgreSQL: unix socket and loopback port, trust, fsync off. Superuser is `viw`."""

    def __init__(self, parent="/tmp", fsync=False, env=None):
        self.env = env
        self.user = "postgres" if os.geteuid() == 0 else None
        self.dir = make_tmp(parent)
        self.port = free_port()
        self.fsync = fsync
        self.proc = None
        self.databases = 0
        if self.user:
            shutil.chown(self.dir, "postgres", "postgres")

    def _run(self, argv):
        cmd = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if self.user else []
        done = subprocess.run([*cmd, *map(str, argv)], cwd="/", stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True,
                              env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})
        if done.returncode:
            raise AssertionError(f"{argv[0]} failed ({done.returncode}):\n{done.stdout}")

    def init(self):
        self._run([pg_bindir() / "initdb", "-D", self.dir / "data", "-U", "viw", "-A", "trust",
                   "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"])
        return self

    def start(self, *extra, timeout=20.0):
        sync = "on" if self.fsync else "off"
        self.proc = Proc([pg_bindir() / "postgres", "-D", self.dir / "data", "-k", self.dir,
                          "-p", self.port, "-h", "127.0.0.1", "-c", f"fsync={sync}",
                          "-c", f"synchronous_commit={sync}", "-c", f"full_page_writes={sync}",
                          "-c", "max_connections=100", "-c", "shared_buffers=32MB",
                          "-c", "log_min_messages=warning", *extra],
                         name="postgres", dir=self.dir, user=self.user, env=self.env)

        def up():
            if not self.proc.alive:
                raise AssertionError(self.proc.tail())
            try:
                self.connect("postgres").close()
                return True
            except Exception:  # not yet
                return False
        wait_for(up, timeout, "PostgreSQL accepts connections")
        return self

    def stop(self):
        """Fast shutdown (SIGINT)."""
        if self.proc and self.proc.alive:
            self.proc.signal(signal.SIGINT)
            self.proc.wait_exit(20)

    def kill(self):
        """Immediate shutdown (SIGQUIT): like a crash, recovery at the next start."""
        if self.proc and self.proc.alive:
            self.proc.signal(signal.SIGQUIT)
            self.proc.wait_exit(20)

    def close(self):
        try:
            self.kill()
        finally:
            shutil.rmtree(self.dir, ignore_errors=True)

    def uri(self, database, user="viw"):
        return f"postgresql://{user}@/{database}?host={self.dir}&port={self.port}"

    def tcp_uri(self, database, user="viw", port=None):
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database, user="viw"):
        import psycopg2
        conn = psycopg2.connect(self.uri(database, user))
        conn.autocommit = True
        return conn

    def sql(self, database, text):
        conn = self.connect(database)
        try:
            conn.cursor().execute(text)
        finally:
            conn.close()

    def make_template(self):
        """The database every test's own one is copied from, migrated once."""
        self.sql("postgres", "CREATE DATABASE viw_template")
        migrate(self.uri("viw_template"))
        return self

    def new_database(self):
        self.databases += 1
        name = f"t{self.databases}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE viw_template")
        return Database(self, name)


def migrate(uri):
    """Runs sql/migrate against uri; nothing when viw-migrate is not built yet."""
    if not (BIN / "viw-migrate").exists():
        return
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "VIW_BIN": str(BIN)}
    done = subprocess.run([str(ROOT / "sql" / "migrate"), uri], env=env, cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise AssertionError(f"sql/migrate failed ({done.returncode}):\n{done.stdout}")


class Database:
    """One database of a PgServer, made fresh for a test."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.uri = server.uri(name)
        self.tcp_uri = server.tcp_uri(name)
        self._conn = None

    def connect(self, user="viw"):
        return self.server.connect(self.name, user)

    def uri_as(self, user):
        """The same database as another role (trust: no password)."""
        return self.server.uri(self.name, user)

    def query(self, sql, *args):
        """Rows as dicts ([] for statements without rows)."""
        if self._conn is None or self._conn.closed:
            self._conn = self.connect()
        with self._conn.cursor() as cur:
            cur.execute(sql, args or None)
            if cur.description is None:
                return []
            names = [d[0] for d in cur.description]
            return [dict(zip(names, row)) for row in cur.fetchall()]

    def wait_row(self, sql, *args, timeout=10.0):
        """Waits until the query has a row; returns the first."""
        return wait_for(lambda: self.query(sql, *args), timeout, f"a row for {sql} {args}")[0]

    def close(self):
        if self._conn is not None:
            self._conn.close()
        self.server.sql("postgres", f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")


# ---------------------------------------------------------------- agents' handshake


def handshake_headers(agent_id, secret=None, path="/agent/ws", timestamp=None, nonce=None, mac=None):
    """The four headers of contract 1.1; without a secret no X-Agent-Auth."""
    ts = timestamp if timestamp is not None else rfc3339()
    nonce = nonce if nonce is not None else str(uuid.uuid4())
    headers = {"X-Agent-Id": agent_id, "X-Timestamp": ts, "X-Nonce": nonce}
    if secret is not None:
        text = f"GET|{path}|{ts}|{nonce}|{agent_id}"
        headers["X-Agent-Auth"] = mac or hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    elif mac is not None:
        headers["X-Agent-Auth"] = mac
    return headers


class WsLoop:
    """One asyncio loop in a thread, so that tests read top to bottom."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coro, timeout=15.0):
        return asyncio.run_coroutine_threadsafe(coro, self.loop).result(timeout)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


class WsClient:
    """A WebSocket client (python websockets) that a test drives by hand.

    websockets' InvalidStatusCode (.status_code, .headers) when the upgrade is refused.
    """

    def __init__(self, ws_loop, url, headers=None, subprotocols=("viworks-agent-v1",), ssl=None,
                 timeout=10.0, **kwargs):
        import wslib
        self._ws_loop = ws_loop
        options = {"ping_interval": None, "max_size": 2**22, "close_timeout": 2, "compression": None,
                   "open_timeout": timeout}
        options.update(kwargs)
        if ssl is not None:
            options["ssl"] = ssl

        async def go():
            return await wslib.connect(url, extra_headers=headers or {},
                                            subprotocols=list(subprotocols) or None, **options)
        self.ws = ws_loop.run(go(), timeout + 2)

    def send(self, frame):
        """A dict is sent as JSON text; str as text; bytes as binary; a tuple of either in as many fragments."""
        data = json.dumps(frame) if isinstance(frame, (dict, list)) else frame
        self._ws_loop.run(self.ws.send(data))

    def recv(self, timeout=5.0):
        """The next frame as a dict. ConnectionClosed when closed, TooLate at the deadline."""
        try:
            return json.loads(self._ws_loop.run(asyncio.wait_for(self.ws.recv(), timeout), timeout + 5))
        except (asyncio.TimeoutError, TimeoutError):
            raise TooLate(f"no frame within {timeout} s") from None

    def expect(self, type, timeout=5.0, **fields):
        """Reads frames until one of this type with these fields came; returns it."""
        deadline = time.monotonic() + timeout
        seen = []
        while time.monotonic() < deadline:
            try:
                frame = self.recv(max(0.01, deadline - time.monotonic()))
            except TooLate:
                break
            if frame.get("type") == type and all(frame.get(k) == v for k, v in fields.items()):
                return frame
            seen.append(frame)
        raise TooLate(f"no {type} {fields} within {timeout} s; saw {seen}")

    def hello(self, agent_id, **fields):
        """HELLO_ACK, HELLO, WELCOME; returns (hello_ack, welcome)."""
        ack = self.expect("HELLO_ACK")
        self.send({"type": "HELLO", "agent_id": agent_id, "version": "1.0.0", "capabilities": [], **fields})
        return ack, self.expect("WELCOME")

    def wait_closed(self, timeout=10.0):
        """Waits for the close; returns its code."""
        async def go():
            await asyncio.wait_for(self.ws.wait_closed(), timeout)
            return self.ws.close_code
        return self._ws_loop.run(go(), timeout + 5)

    def close(self):
        try:
            self._ws_loop.run(self.ws.close(), 5)
        except Exception:  # closed already
            pass


# ---------------------------------------------------------------- certificates


class Pki:
    """Root and client CA, server and agent certificates, CRL, made with openssl (EC P-256).

    Files: ca.pem (server root) · client_ca.pem · server.pem/.key · crl.pem · <agent>.pem/.key.
    """

    def __init__(self, dir):
        self.dir = Path(dir) / "pki"
        self.dir.mkdir()
        self.dir.chmod(0o711)
        for name, subject in (("ca", "/CN=Test Root"), ("client_ca", "/O=ViWorkS/CN=Test Client CA")):
            self._ca(name, subject)
        self.server = self.issue("server", "ca", "/CN=localhost",
                                 ["DNS:localhost", "IP:127.0.0.1", "IP:::1"], usage="serverAuth")
        self.crl = self.make_crl()

    def _ssl(self, *argv, stdin=None):
        done = subprocess.run(["openssl", *map(str, argv)], cwd=self.dir, input=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise AssertionError(f"openssl {argv} failed:\n{done.stdout}")

    def _ca(self, name, subject, days=30):
        self._ssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                  "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", subject, "-days", days,
                  "-addext", "basicConstraints=critical,CA:TRUE",
                  "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._ca_files(name)

    def sub_ca(self, name, ca, subject, days=30):
        """An intermediate CA, for issue(…, ca=name); returns the path of its certificate."""
        (self.dir / f"{name}.ext").write_text("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n")
        self._ssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
                  "-out", f"{name}.csr", "-subj", subject)
        self._ssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
                  "-days", days, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
        self._ca_files(name)
        return self.path(f"{name}.pem")

    def joined(self, name, *paths):
        """One file of several; returns its path."""
        (self.dir / name).write_text("".join(Path(p).read_text() for p in paths))
        return self.path(name)

    def _ca_files(self, name):
        (self.dir / f"{name}.index").write_text("")
        (self.dir / f"{name}.crlnumber").write_text("01\n")
        (self.dir / f"{name}.serial").write_text("01\n")
        (self.dir / f"{name}.cnf").write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={name}.index\ncrlnumber={name}.crlnumber\n"
            f"serial={name}.serial\ncertificate={name}.pem\nprivate_key={name}.key\nnew_certs_dir=.\n"
            "default_md=sha256\ndefault_crl_days=30\npolicy=p\nunique_subject=no\ncopy_extensions=none\n"
            "[p]\ncommonName=optional\norganizationName=optional\n")

    def issue(self, name, ca, subject, sans=(), usage="clientAuth", days=30, start=None,
              key=("ec", "-pkeyopt", "ec_paramgen_curve:P-256")):
        """A certificate; returns (cert path, key path). days may be negative: already expired."""
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
        begin = min(datetime.datetime.now(datetime.timezone.utc), end) - datetime.timedelta(days=1)
        ext = f"extendedKeyUsage={usage}\nkeyUsage=digitalSignature\nbasicConstraints=CA:FALSE\n"
        if sans:
            ext += "subjectAltName=" + ",".join(sans) + "\n"
        (self.dir / f"{name}.ext").write_text(ext)
        self._ssl("req", "-newkey", *key, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        self._ssl("ca", "-batch", "-notext", "-config", f"{ca}.cnf", "-in", f"{name}.csr", "-out",
                  f"{name}.pem", "-extfile", f"{name}.ext",
                  "-startdate", begin.strftime("%Y%m%d%H%M%SZ"), "-enddate", end.strftime("%Y%m%d%H%M%SZ"))
        (self.dir / f"{name}.key").chmod(0o600)
        return str(self.dir / f"{name}.pem"), str(self.dir / f"{name}.key")

    def agent(self, agent_id, how="uri", ca="client_ca", file=None, **kwargs):
        """A client certificate that names the agent: how = uri | dns | cn | none."""
        sans = {"uri": [f"URI:urn:viworks:agent:{agent_id}"], "dns": [f"DNS:{agent_id}"]}.get(how, [])
        cn = agent_id if how == "cn" else "gateway"
        return self.issue(file or f"agent-{agent_id}-{how}", ca, f"/O=ViWorkS/CN={cn}", sans, **kwargs)

    def rogue(self, agent_id):
        """The right name, signed by nobody we trust."""
        if not (self.dir / "rogue_ca.pem").exists():
            self._ca("rogue_ca", "/CN=Rogue CA")
        return self.agent(agent_id, ca="rogue_ca", file=f"rogue-{agent_id}")

    def revoke(self, cert, ca="client_ca"):
        self._ssl("ca", "-config", f"{ca}.cnf", "-revoke", cert)
        return self.make_crl(ca)

    def make_crl(self, ca="client_ca", *more):
        out = "crl.pem" if ca == "client_ca" else f"{ca}.crl.pem"
        self._ssl("ca", "-config", f"{ca}.cnf", "-gencrl", "-out", out, *more)
        return str(self.dir / out)

    def path(self, name):
        return str(self.dir / name)

    def fingerprint(self, cert):
        """SHA-256 over the DER, lower-case hex."""
        return hashlib.sha256(self._der(cert)).hexdigest()

    def spki_pin(self, cert):
        """base64 SHA-256 of the public key (RFC 7469)."""
        pem = subprocess.run(["openssl", "x509", "-in", cert, "-pubkey", "-noout"], check=True,
                             stdout=subprocess.PIPE).stdout.decode()
        der = base64.b64decode("".join(pem.strip().splitlines()[1:-1]))
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    def _der(self, cert):
        return subprocess.run(["openssl", "x509", "-in", cert, "-outform", "DER"], check=True,
                              stdout=subprocess.PIPE).stdout

    def client_context(self, cert=None, key=None):
        """An ssl.SSLContext that trusts ca.pem and shows cert."""
        import ssl
        ctx = ssl.create_default_context(cafile=self.path("ca.pem"))
        if cert:
            ctx.load_cert_chain(cert, key)
        return ctx


# ---------------------------------------------------------------- the helper's side


def is_root_chain(path):
    """True when path and every directory above it are root-owned and not group- or world-writable:
    what the helper asks of manifests and scripts."""
    path = Path(path).resolve()
    for p in [path, *path.parents]:
        st = p.stat()
        if st.st_uid != 0 or st.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return True


def make_root_dir():
    """A private directory whose whole chain only root may write (so not in /tmp)."""
    path = make_tmp("/var/lib")
    path.chmod(0o755)
    assert is_root_chain(path), "run as root: the helper trusts only root-owned files"
    return path


HELPER_PROGRAMS = ("host-helper", "host-helper-verbs", "host-helper-containers")
_helper_copies = {}


def helper_program(bin_dir=None):
    """host-helper with the programs of its built-in verbs beside it, where it trusts them: the build's own folder, or a
    folder of root's with copies of all."""
    bin_dir = Path(bin_dir or BIN).resolve()
    if os.geteuid() != 0 or not (bin_dir / "host-helper-verbs").exists() or all(is_root_chain(bin_dir / p) for p in HELPER_PROGRAMS):
        return bin_dir / "host-helper"
    if bin_dir not in _helper_copies:
        dir = make_root_dir()
        atexit.register(shutil.rmtree, dir, ignore_errors=True)
        for name in HELPER_PROGRAMS:
            shutil.copy(bin_dir / name, dir / name)
            os.chmod(dir / name, 0o755)
        _helper_copies[bin_dir] = dir
    return _helper_copies[bin_dir] / "host-helper"


def write_secret(path, text, mode=0o400):
    path = Path(path)
    path.write_text(text)
    path.chmod(mode)
    return path


def write_script(path, body):
    """An executable bash script, mode 0755."""
    path = Path(path)
    path.write_text("#!/bin/bash\n" + body)
    path.chmod(0o755)
    return path


def write_verb(dir, verb, exec, argv=(), params=None, **fields):
    """A manifest of contract section 5 in dir; returns its path."""
    dir = Path(dir)
    dir.mkdir(exist_ok=True)
    path = dir / f"{verb}.json"
    path.write_text(json.dumps({"verb": verb, "exec": str(exec), "argv": list(argv),
                                "params": params or {}, **fields}, indent=2))
    path.chmod(0o644)
    return path


def helper_request(key, *, mac=None, **fields):
    """One line of the helper protocol, with sensible times and nonce; fields override (None drops)."""
    msg = {"v": 1, "agent_id": "test-agent", "correlation_id": str(uuid.uuid4()),
           "nonce": str(uuid.uuid4()), "issued_at": rfc3339(), "expires_at": rfc3339(30)}
    msg.update(fields)
    data = json.dumps({k: v for k, v in msg.items() if v is not None}, separators=(",", ":")).encode()
    key = key.encode() if isinstance(key, str) else key
    tag = mac or hmac.new(key, data, hashlib.sha256).hexdigest()
    return tag.encode() + b" " + data + b"\n"


class HelperClient:
    """A connection to host-helper's socket; checks the MAC of every reply."""

    def __init__(self, path, key, timeout=10.0):
        self.key = key.encode() if isinstance(key, str) else key
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(str(path))
        self.rest = b""

    def send(self, **fields):
        self.sock.sendall(helper_request(self.key, **fields))

    def send_raw(self, line):
        self.sock.sendall(line)

    def recv(self):
        """The next reply as a dict; None at end of file."""
        while b"\n" not in self.rest:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        tag, body = line.split(b" ", 1)
        good = hmac.new(self.key, body, hashlib.sha256).hexdigest().encode()
        assert hmac.compare_digest(tag, good), "reply with a wrong MAC"
        return json.loads(body)

    def call(self, **fields):
        self.send(**fields)
        return self.recv()

    def close(self):
        self.sock.close()
