"""Privilege: a helper that cannot look into /proc takes nobody for dead. In a mount namespace of its own /proc is covered."""
import os
import resource
import shutil
import signal
import subprocess
import time

import pytest

from helperlib import MARK, Helper, alive, code, daemon, quiet, supervisor_of
from viwtest import helper_program, rfc3339, wait_for


class Proc:
    """/proc of one mount namespace."""

    def __init__(self, pid):
        self.enter = ["nsenter", "-t", str(pid), "-m"]

    def cover(self):
        subprocess.run([*self.enter, "mount", "-t", "tmpfs", "none", "/proc"], check=True)

    def uncover(self):
        subprocess.run([*self.enter, "umount", "/proc"], check=True)


@pytest.fixture
def helper(start, root_dir):
    """Not started yet."""
    if not shutil.which("nsenter") or subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/proc"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces here")
    return Helper(start, root_dir)


def start_apart(helper):
    helper.proc = helper._start("/usr/bin/unshare", env=helper.env, args=["-m", "--", str(helper_program())])
    helper.proc.wait_log("ready")
    return Proc(helper.proc.pid)


@pytest.mark.parametrize("effects", [True, False])
def test_what_a_killed_supervisor_left_is_not_dead_because_proc_cannot_be_read(helper, effects):
    pids = daemon(helper, "d", f"echo $$ > {helper.root}/script; sleep 60", run_as="nobody", effects=effects)
    script = helper.root / "script"
    script.touch()
    os.chown(script, 65534, 65534)
    proc = start_apart(helper)
    c = helper.client(timeout=1.5)
    c.send(verb="d", args={}, correlation_id="c-1", deadline=rfc3339(60))
    pid = int(wait_for(lambda: script.read_text().strip()))
    supervisor = supervisor_of(pid)
    proc.cover()
    os.kill(supervisor, signal.SIGKILL)
    helper.proc.wait_log("run_not_seen")
    if effects:
        with pytest.raises(TimeoutError):
            c.recv()
        assert helper.query("c-1")["data"]["state"] == "running"
    proc.uncover()
    c.sock.settimeout(15)
    assert code(c.recv()) == ("outcome_unknown" if effects else "internal")
    if effects:
        assert quiet(pids), "dead when the reply comes"
    wait_for(lambda: quiet(pids) and not alive(pid), 5, "dead")
    assert len(helper.proc.find_logs("run_not_seen")) == 1


def test_a_supervisor_that_cannot_look_does_not_say_it_is_over(helper):
    pids = daemon(helper, "d", f"while [ ! -e {helper.root}/end ]; do sleep 0.01; done", run_as="nobody")
    proc = start_apart(helper)
    c = helper.client(timeout=7)
    c.send(verb="d", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: pids.read_text(), what="a daemon")
    proc.cover()
    (helper.root / "end").touch()
    with pytest.raises(TimeoutError):
        c.recv()
    proc.uncover()
    c.sock.settimeout(15)
    assert c.recv()["rc"] == 0
    assert quiet(pids), "dead when the reply comes"


def test_it_does_not_start_where_it_cannot_see_what_was_left(helper):
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    helper.proc = helper._start("/usr/bin/strace", env=dict(helper.env, ASAN_OPTIONS="detect_leaks=0"), args=[
        "-f", "-qq", "-o", "/dev/null", "-P", "/proc/locks", "-e", "inject=openat:error=EMFILE", str(helper_program())])
    assert helper.proc.wait_exit(10) != 0
    assert helper.proc.find_logs("run_not_seen") and not helper.proc.find_logs("ready")


def test_a_journal_file_that_cannot_be_read_is_told_once(start, root_dir):
    """The helper has no descriptor for it."""
    helper = Helper(start, root_dir)
    helper.verb("slow", MARK + "echo $$ >> LEDGER; sleep 60")
    helper.start()
    c = helper.client(timeout=20)
    c.send(verb="slow", args={}, correlation_id="c-1", deadline=rfc3339(60))
    pid = int(wait_for(lambda: helper.ledger_lines()[1:])[0])
    limits = resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(supervisor_of(pid), signal.SIGKILL)
    helper.proc.wait_log("journal_failed", correlation_id="c-1", error="Too many open files")
    time.sleep(1.5)
    resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE, limits)
    assert code(c.recv()) == "outcome_unknown"
    assert not alive(pid) and len(helper.proc.find_logs("journal_failed")) == 1
