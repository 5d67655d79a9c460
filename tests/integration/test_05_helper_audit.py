"""Privilege: the audit log: what is recorded, what of it survives, and what nobody can change unseen."""
import hashlib
import json
import os
import re
import socket
import subprocess
import threading
import zlib

import pytest

from helperlib import MARK, Helper, code
from viwtest import helper_program, wait_for


@pytest.fixture
def helper(start, root_dir):
    h = Helper(start, root_dir)
    h.verb("greet", MARK + 'printf "[%s]" "$@"', argv=["{name}"], params={"name": {"type": "username"}})
    return h.start()


def verify(start, helper, *args):
    proc = start("host-helper", env=helper.env, args=["audit", "verify", *args])
    return proc.wait_exit(), proc.stdout


def test_audit_log_names_what_was_changed(start, helper):
    for i in range(5):
        helper.run("greet", {"name": f"u{i}"}, cid=f"c-{i}")
    helper.run("greet", {"name": "u0"}, cid="c-5")
    code(helper.run("greet", {"name": "-x"}, cid="bad"))
    head = helper.call(op="hello")["data"]["audit"]
    checkpoint = f"{head['seq']}:{head['hash']}"
    helper.stop()
    records = helper.audit()
    request = next(r for r in records if r["event"] == "request" and r["correlation_id"] == "c-3")
    told = {"agent_id": "test-agent", "verb": "greet", "op": "run", "rc": 0, "code": "ok", "peer_uid": os.getuid(), "peer_pid": os.getpid(),
            "stdout_crc32": f"{zlib.crc32(b'[u3]'):08x}", "stderr_crc32": "00000000"}
    assert {k: request.get(k) for k in told} == told and request["duration_ms"] >= 0
    hashes = [r["args_hash"] for r in records if r["event"] == "request" and r.get("verb") == "greet" and r["code"] == "ok"]
    assert len(hashes) == 6 and len(set(hashes)) == 5  # equal arguments can be recognised, whatever the id
    assert next(r for r in records if r.get("correlation_id") == "bad")["code"] == "bad_args"
    rc, out = verify(start, helper)
    assert rc == 0 and "unbroken" in out
    assert verify(start, helper, checkpoint)[0] == 0
    log = helper.state / "audit.log"
    good = log.read_bytes()
    lines = good.splitlines(keepends=True)
    edited = lines[:4] + [lines[4].replace(b"u", b"U", 1)] + lines[5:]
    swapped = lines[:4] + [lines[5], lines[4]] + lines[6:]
    for bad, word in ((edited, "edited"), (lines[:4] + lines[5:], "missing"), (swapped, "missing"),
                      (lines[:4] + [lines[3]] + lines[4:], "out of order"), (lines[:-2], "cut off"),
                      (lines[:4] + [b"{}\n"] + lines[5:], "not a record"), (lines[:-1] + [lines[-1][:-5]], "torn")):
        log.write_bytes(b"".join(bad))
        rc, out = verify(start, helper)
        assert rc == 1 and word in out, (word, out)
    # Whoever also forges the head is found by a checkpoint that left the host.
    cut = lines[:4]
    log.write_bytes(b"".join(cut))
    last = hashlib.sha256(cut[-1].rstrip(b"\n")).hexdigest()
    (helper.state / "audit.head").write_text(f"{json.loads(cut[-1])['seq']:020d} {last}\n")
    assert verify(start, helper)[0] == 0
    rc, out = verify(start, helper, checkpoint)
    assert rc == 1 and "checkpoint" in out


def test_audit_goes_on_over_restarts(start, helper):
    helper.run("greet", {"name": "a"})
    helper.kill()
    helper.start()
    helper.run("greet", {"name": "b"})
    helper.stop()
    assert verify(start, helper)[0] == 0
    assert [r["event"] for r in helper.audit()].count("begin") == 2

# ---------------------------------------------------------------- rotation


def rotated(helper):
    return sorted(helper.state.glob("audit-*.log"))


def ask(helper, n):
    c = helper.client()
    for _ in range(n):
        c.call(op="query")
    c.close()


@pytest.fixture
def small(start, root_dir):
    """Files of ten records, three kept."""
    return Helper(start, root_dir, HOST_HELPER_AUDIT_FILE_BYTES="4096", HOST_HELPER_AUDIT_FILES="3").start()


def test_the_chain_goes_on_over_files_and_restarts(start, small):
    ask(small, 15)
    hello = small.call(op="hello")["data"]["audit"]
    ask(small, 10)
    small.kill()
    small.start()
    ask(small, 5)
    small.stop()
    assert 2 <= len(rotated(small)) <= 3
    rc, out = verify(start, small, f"{hello['seq']}:{hello['hash']}")
    assert rc == 0 and "unbroken" in out and "removed" not in out
    # every file, the newest put aside too
    for path in rotated(small):
        good = path.read_bytes()
        lines = good.splitlines(keepends=True)
        for bad, word in ((lines[:2] + [lines[2].replace(b"query", b"queri", 1)] + lines[3:], "edited"), (lines[:2] + lines[3:], "missing"),
                          (lines[:-1], "missing"), (lines[:2] + [lines[3], lines[2]] + lines[4:], "missing")):
            path.write_bytes(b"".join(bad))
            rc, out = verify(start, small)
            assert rc == 1 and word in out, (path.name, word, out)
        assert path.name in verify(start, small)[1] or path == rotated(small)[-1]
        path.unlink()
        assert verify(start, small)[0] == 1
        path.write_bytes(good)
    assert verify(start, small)[0] == 0


def test_old_files_are_removed_and_the_log_tells(start, small):
    early = small.call(op="hello")["data"]["audit"]
    ask(small, 80)
    small.stop()
    assert len(rotated(small)) == 3
    rc, out = verify(start, small)
    assert rc == 0 and re.search(r"records 1 to \d+ were removed by rotation", out), out
    rc, out = verify(start, small, f"{early['seq']}:{early['hash']}")
    assert rc == 1 and "cannot be compared" in out
    # one more is gone, which no record tells
    rotated(small)[0].unlink()
    rc, out = verify(start, small)
    assert rc == 1 and "no record tells" in out, out


def test_a_crash_while_a_file_is_put_aside_breaks_no_chain(start, small):
    ask(small, 3)
    small.kill()
    last = small.audit()[-1]["seq"]
    (small.state / "audit.log").rename(small.state / f"audit-{last:020d}.log")
    small.start()
    ask(small, 1)
    small.stop()
    assert small.audit()[0]["seq"] == last + 1
    assert verify(start, small)[0] == 0


def test_verify_beside_a_working_helper(start, small):
    stop = threading.Event()

    def load():
        while not stop.is_set():
            ask(small, 20)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(8):
            rc, out = verify(start, small)
            assert rc == 0, out
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------- power cut


def test_what_is_on_disk_before_something_starts_or_is_told(helper):
    """The order of syncs, as the kernel sees it: the start's record, then the journal file and its folder, then the script;
    and a sync before hello tells a checkpoint."""
    helper.stop()
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    trace = helper.root / "strace"
    helper.proc = helper._start("/usr/bin/strace", env=dict(helper.env, ASAN_OPTIONS="detect_leaks=0"), args=[
        "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=fdatasync,fsync,renameat2,execve,sendto", str(helper_program())])
    helper.proc.wait_log("ready")
    assert helper.run("greet", {"name": "a"}, cid="c-1")["status"] == "ok"

    def steps():
        words = {"fdatasync": r"fdatasync\(\d+<[^>]*/audit\.log>", "file": r"fsync\(\d+<[^>]*/journal/\.new-", "name": r"renameat2\(.*RENAME_NOREPLACE",
                 "folder": r"fsync\(\d+<[^>]*/journal>", "start": r"execve\(\"[^\"]*greet\.sh\"", "done": r"fdatasync\(\d+<[^>]*/journal/[0-9a-f]{64}>",
                 "reply": r"sendto\("}
        for line in trace.read_text().splitlines():
            for word, pattern in words.items():
                if re.search(pattern, line):
                    yield word
    assert list(steps()) == ["fdatasync", "file", "name", "folder", "start", "done", "reply"]
    hello = helper.call(op="hello")
    assert list(steps())[-2:] == ["fdatasync", "reply"] and hello["data"]["audit"]["seq"] > 1
    kids = subprocess.run(["pgrep", "-P", str(helper.proc.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
    subprocess.run(["kill", kids[0]], check=True)
    helper.proc.wait_exit(10)


def test_what_was_answered_is_synced_within_seconds(helper):
    """Without hello too: the helper's own clock syncs what readers and refusals left."""
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    helper.stop()
    trace = helper.root / "strace"
    helper.proc = helper._start("/usr/bin/strace", env=dict(helper.env, ASAN_OPTIONS="detect_leaks=0"), args=[
        "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=fdatasync", str(helper_program())])
    helper.proc.wait_log("ready")
    assert code(helper.run("nope")) == "verb_not_allowed"
    wait_for(lambda: "/audit.log" in trace.read_text(), 8)
    kids = subprocess.run(["pgrep", "-P", str(helper.proc.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
    subprocess.run(["kill", kids[0]], check=True)
    helper.proc.wait_exit(10)

# ---------------------------------------------------------------- journald


class Journald:
    """Stands in for journald at its socket, which is seen by a helper in a mount namespace of its own."""

    def __init__(self, dir):
        self.path, self.sock = dir / "socket", None

    def open(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))
        self.sock.settimeout(5)

    def close(self):
        self.sock.close()
        self.path.unlink()

    def has(self, cid):
        """The records that wait, until that of this request."""
        want = b"VIW_CORRELATION_ID\n" + len(cid).to_bytes(8, "little") + cid.encode() + b"\n"
        try:
            while want not in self.sock.recv(65536):
                pass
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def journald(root_dir):
    dir = root_dir / "journald"
    dir.mkdir()
    j = Journald(dir)
    yield j
    if j.sock:
        j.sock.close()


def start_beside(helper, journald):
    """Its /run/systemd/journal is the folder of the stand-in."""
    words = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind"
    if subprocess.run(["unshare", "-m", "sh", "-c", f"{words} {journald.path.parent} /run/systemd/journal"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces here")
    helper.proc = helper._start("/usr/bin/unshare", env=helper.env, args=[
        "-m", "--", "/bin/sh", "-c", f"{words} {journald.path.parent} /run/systemd/journal && exec {helper_program()}"])
    helper.proc.wait_log("ready")


def test_a_journald_that_comes_late_or_again_gets_the_records(start, root_dir, journald):
    """Looked for again and again: it is not there at the start, it goes away for a while, another takes its place."""
    helper = Helper(start, root_dir)
    start_beside(helper, journald)
    helper.query("early")

    def arrives(cid):
        helper.query(cid)
        return journald.has(cid)

    for cid in ("late", "again"):
        journald.open()
        journald.sock.setblocking(False)
        wait_for(lambda: arrives(cid), 10, f"a record of {cid}", every=0.2)
        journald.close()
        helper.query("away")
    journald.open()
    journald.sock.setblocking(False)
    wait_for(lambda: arrives("third"), 10, "a record", every=0.2)
    journald.close()
    journald.open()
    helper.query("first-of-another")
    assert journald.has("first-of-another"), "the record that found the old one gone is not lost"
    assert sum(r.get("correlation_id") == "away" for r in helper.audit()) == 2  # the file has them all
