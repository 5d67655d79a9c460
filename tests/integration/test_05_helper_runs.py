"""Privilege: nothing of a run outlives it, and nothing in it may do more than was declared."""
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from helperlib import MARK, Helper, alive, code, daemon, quiet, reload, silent_engine, supervisor_of
from viwtest import helper_program, rfc3339, wait_for


@pytest.fixture
def helper(start, root_dir):
    return Helper(start, root_dir)


@pytest.mark.parametrize("then,want", [("echo left", None), ("sleep 60", "timeout")])
def test_a_daemon_of_another_user_ends_with_its_run(helper, then, want):
    pids = daemon(helper, "d", then, run_as="nobody", timeout_s=2)
    helper.start()
    reply = helper.run("d")
    assert code(reply) == want, reply
    assert quiet(pids), "dead when the reply comes"


@pytest.mark.parametrize("effects", [True, False])
def test_a_daemon_of_another_user_ends_with_a_killed_supervisor(helper, effects):
    pids = daemon(helper, "d", f"echo $$ > {helper.root}/pids.sh; sleep 60", run_as="nobody", effects=effects)
    (helper.root / "pids.sh").touch()
    os.chown(helper.root / "pids.sh", 65534, 65534)
    helper.start()
    c = helper.client()
    c.send(verb="d", args={}, correlation_id="c-1", deadline=rfc3339(60))
    script = wait_for(lambda: (helper.root / "pids.sh").read_text().strip())
    os.kill(supervisor_of(int(script)), signal.SIGKILL)
    reply = c.recv()
    assert code(reply) == ("outcome_unknown" if effects else "internal")
    if effects:
        assert quiet(pids), "dead when the reply comes"
    wait_for(lambda: quiet(pids) and not alive(int(script)), 5)


def test_orphans_of_runs_long_answered_are_ended_too(helper):
    """What a supervisor could not wait for any more falls to the helper, and ends there."""
    helper.verb("look", f"echo $$ > {helper.root}/pid; sleep 60", effects=False)
    helper.start()
    helper.client().send(verb="look", args={}, correlation_id="c-1")
    pid = int(wait_for(lambda: (helper.root / "pid").exists() and (helper.root / "pid").read_text().strip()))
    supervisor = supervisor_of(pid)
    os.kill(supervisor, signal.SIGSTOP)  # so that it cannot end the script itself
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not alive(pid), what="the orphan is dead")


def test_children_of_whoever_started_it_are_left_alone(helper):
    """A wrapper that starts something in the background and then becomes the helper."""
    helper.verb("look", f"echo $$ > {helper.root}/pid; sleep 60", effects=False)
    env = dict(helper.env, ASAN_OPTIONS="detect_leaks=0")
    helper.proc = helper._start("/bin/bash", env=env, args=["-c", f"sleep 300 & echo $! > {helper.root}/mine; exec {helper_program()}"])
    helper.proc.wait_log("ready")
    mine = int((helper.root / "mine").read_text())
    c = helper.client()
    c.send(verb="look", args={}, correlation_id="c-1")
    pid = int(wait_for(lambda: (helper.root / "pid").exists() and (helper.root / "pid").read_text().strip()))
    os.kill(supervisor_of(pid), signal.SIGKILL)
    assert code(c.recv()) == "internal"
    wait_for(lambda: not alive(pid), what="the run is dead")
    time.sleep(1.2)  # two ticks, at which a helper of its own looks for orphans
    assert alive(mine)
    os.kill(mine, signal.SIGKILL)


def test_a_script_that_stops_its_supervisor_meets_its_time_limit(helper):
    helper.verb("stopper", MARK + "kill -STOP $PPID; sleep 60", timeout_s=1)
    helper.start()
    assert code(helper.run("stopper", cid="c-1")) == "timeout"
    assert helper.query("c-1")["data"]["state"] == "done"


def test_at_its_time_limit_a_script_hears_term_first(helper):
    helper.verb("tidy", "trap 'echo tidied; exit 0' TERM; while :; do sleep 0.1; done", timeout_s=1)
    helper.verb("deaf", "trap '' TERM; while :; do sleep 0.1; done", timeout_s=1)
    helper.start()
    tidy, deaf = helper.run("tidy"), helper.run("deaf")
    assert (code(tidy), tidy["stdout"]) == ("timeout", "tidied\n") and 1000 <= tidy["duration_ms"] < 3000
    assert code(deaf) == "timeout" and deaf["duration_ms"] >= 3000  # two seconds between TERM and KILL


def test_the_largest_reply_stays_below_one_mebibyte(helper):
    """What escaping makes too long is cut and marked, in the reply alone."""
    helper.verb("loud", "for fd in 1 2; do head -c 262144 /dev/zero | tr '\\0' '\\001' >&$fd; done", max_output_bytes=262144)
    helper.start()
    c = helper.client()
    c.send(verb="loud", args={}, correlation_id="c-1", deadline=rfc3339(60))
    line = c.sock.makefile("rb").readline()
    assert len(line) <= 1 << 20, len(line)
    reply = json.loads(line[65:])
    assert reply["rc"] == 0 and reply["truncated"] == {"stdout": True, "stderr": True}
    assert len(reply["stdout"]) > 30000 and set(reply["stdout"]) == {"\x01"}


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_runs_of_an_earlier_helper_count(helper, how):
    """Nobody has asked the next helper for them yet, and still a verb's `concurrency` and the limit of all hold."""
    gate = helper.root / "gate"
    for name in ("one", "other"):
        helper.verb(name, MARK + f"while [ ! -e {gate} ]; do sleep 0.05; done; echo ok")
    helper.start()
    helper.client().send(verb="one", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: helper.starts("c-1") == 1)
    getattr(helper, how)()
    helper.start()
    assert code(helper.run("one", cid="c-2")) == "busy"
    getattr(helper, how)()
    helper.start(HOST_HELPER_MAX_CONCURRENCY="1")
    assert code(helper.run("other", cid="c-3")) == "busy"
    assert helper.starts("c-2") == helper.starts("c-3") == 0
    gate.touch()
    wait_for(lambda: helper.run("one", cid="c-2").get("stdout") == "ok\n")
    first = helper.run("one", cid="c-1")
    assert first["stdout"] == "ok\n" and first["replayed"] is True and helper.starts("c-1") == 1


def test_a_stopped_supervisor_of_an_earlier_helper_meets_its_time_limit_too(helper):
    helper.verb("stopper", MARK + "kill -STOP $PPID; sleep 60", timeout_s=1)
    helper.start()
    helper.client().send(verb="stopper", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: helper.starts("c-1") == 1)
    helper.kill()
    helper.start()
    wait_for(lambda: helper.query("c-1")["data"]["state"] == "done", 15)
    assert code(helper.run("stopper", cid="c-1")) == "timeout"


# ---------------------------------------------------------------- what a run may do


CLONES = r"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    r = libc.syscall(*args)
    if r == 0:
        os._exit(0)
    return errno.errorcode[ctypes.get_errno()] if r < 0 else "allowed"
for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x10020000):
    print(call(56, flag | 17, 0, 0, 0, 0))
print(call(435, 0, 0), call(438, -1, 0, 0))
"""
# mount(2) by the 32-bit and the x32 interface: whoever gets an answer was not stopped.
FOREIGN = r"""
#include <unistd.h>
int main(int argc, char **argv)
{
	long r;
	(void)argv;
	if (argc > 1)
		r = syscall(0x40000000L | 165, 0, 0, 0, 0, 0);
	else
		__asm__ volatile("int $0x80" : "=a"(r) : "a"(21), "b"(0), "c"(0), "d"(0), "S"(0), "D"(0) : "memory");
	return r == -38 ? 38 : 3;
}
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_no_way_around_the_filter_of_system_calls(helper):
    (helper.scripts / "clones.py").write_text(CLONES)
    helper.verb("clones", f"exec /usr/bin/python3 {helper.scripts}/clones.py")
    helper.start()
    assert helper.run("clones")["stdout"].split() == ["EPERM"] * 8 + ["ENOSYS", "EPERM"]


@pytest.mark.skipif(os.uname().machine != "x86_64" or not shutil.which("cc"), reason="needs a C compiler for x86-64")
def test_system_calls_of_another_interface_end_the_process(helper):
    (helper.root / "foreign.c").write_text(FOREIGN)
    subprocess.run(["cc", "-o", helper.scripts / "foreign", helper.root / "foreign.c"], check=True)
    helper.verb("foreign", f"{helper.scripts}/foreign; echo $?; {helper.scripts}/foreign x32; echo $?")
    helper.start()
    ended = {str(128 + signal.SIGSYS), str(128 + signal.SIGSEGV)}  # SIGSEGV: a kernel without the interface
    assert set(helper.run("foreign")["stdout"].split()) <= ended


# ---------------------------------------------------------------- what a run may write


def test_writable_paths_are_all_a_script_can_write(helper):
    inside, outside = helper.root / "inside", helper.root / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "old").write_text("old")
    tries = f"""echo x > {inside}/new && mkdir {inside}/dir && mv {inside}/new {inside}/dir/new && echo inside ok
echo x > {outside}/new; echo x >> {outside}/old; : > {outside}/old; rm {outside}/old; mkdir {outside}/dir; ln -s x {outside}/link
mv {inside}/dir/new {outside}/; ln {outside}/old {inside}/old; mkfifo {outside}/fifo
/usr/bin/python3 -c 'import os; os.truncate("{outside}/old", 0)'
echo x > /dev/null && t=$(mktemp) && echo y > $t && rm $t && echo always ok"""
    helper.verb("some", tries, writable_paths=[str(inside), "/no/such/folder"])
    helper.verb("none", tries, writable_paths=[])
    helper.verb("any", tries)
    helper.start()
    reply = helper.run("some")
    assert reply["stdout"] == "inside ok\nalways ok\n", reply
    assert reply["stderr"].count("Permission denied") + reply["stderr"].count("PermissionError") + reply["stderr"].count("cross-device") >= 9
    assert sorted(p.name for p in outside.iterdir()) == ["old"] and (outside / "old").read_text() == "old"
    assert helper.run("none")["stdout"] == "always ok\n"
    assert sorted(p.name for p in outside.iterdir()) == ["old"] and (outside / "old").read_text() == "old"
    helper.run("any")
    assert not (outside / "old").exists()


def status_of(pid):
    return dict(line.rstrip("\n").split(":\t", 1) for line in open(f"/proc/{pid}/status") if ":\t" in line)


def test_built_in_verbs_run_as_nobody_with_what_they_need(helper):
    """An engine that never answers, so that the process can be looked at."""
    path = helper.root / "engine.sock"
    engine = silent_engine(path)
    helper.start(HOST_HELPER_ENGINE_SOCKET=str(path))
    c = helper.client()
    c.send(verb="list_containers", args={})
    peer, _ = engine.accept()
    pid = int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
    st = status_of(pid)
    assert st["Uid"].split() == ["65534"] * 4 and st["Gid"].split() == ["65534"] * 4 and st["Groups"].strip() == ""
    assert int(st["CapEff"], 16) == int(st["CapPrm"], 16) == 1 << 1  # CAP_DAC_OVERRIDE: the socket is root's
    assert st["NoNewPrivs"] == "1" and st["Seccomp"] == "2"
    peer.close()
    engine.close()
    assert code(c.recv()) == "internal"


# ---------------------------------------------------------------- the journal is quicker


def strace(helper, delay_s):
    """The helper with every sync held back, the one before the journal file too, so that two supervisors of one id can meet."""
    env = dict(helper.env, ASAN_OPTIONS="detect_leaks=0")
    helper.proc = helper._start("/usr/bin/strace", env=env, args=[
        "-f", "-qq", "-o", str(helper.root / "strace"), "-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={int(delay_s * 1e6)}",
        str(helper_program())])
    helper.proc.wait_log("ready")
    kids = subprocess.run(["pgrep", "-P", str(helper.proc.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
    return int(kids[0])


def child_names(pid):
    return [Path(f"/proc/{p}/comm").read_text().strip() for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("args,want", [({"n": 1}, None), ({"n": 2}, "digest_mismatch")])
def test_supervisor_that_finds_the_id_taken(helper, args, want):
    """Killed just after its fork, a helper leaves a supervisor that has no journal file yet. The next helper, asked for
    the same id, sees none and starts its own: the file decides, also about other arguments."""
    helper.verb("once", MARK + "echo first $1", argv=["{n}"], params={"n": {"type": "int"}}, concurrency=4)
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    first = strace(helper, 1.2)
    helper.client().send(verb="once", args={"n": 1}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: "viw-run" in child_names(first), what="a supervisor")
    os.kill(first, signal.SIGKILL)
    old = helper.proc
    strace_pid = strace(helper, 3.0)
    reply = helper.run("once", args, cid="c-1", timeout=30)
    assert code(reply) == want, reply
    if not want:
        assert reply["stdout"] == "first 1\n" and reply["replayed"] is True
    wait_for(lambda: helper.starts("c-1") == 1)
    os.kill(strace_pid, signal.SIGTERM)
    helper.proc.wait_exit(10)
    old.wait_exit(10)


def test_a_child_on_a_stuck_disk_does_not_keep_the_next_helper_waiting(helper):
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    first = strace(helper, 4.0)
    helper.client().send(op="hello")
    wait_for(lambda: open(f"/proc/{first}/task/{first}/children").read().split(), what="a child that syncs")
    old = helper.proc
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    helper.start()
    assert time.monotonic() - began < 2.5
    old.wait_exit(15)


def test_without_landlock_it_says_so_and_the_unit_is_what_holds(helper):
    """A kernel that has none, as strace plays it: said once at the start; everything runs, held by the unit alone."""
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    helper.verb("once", f"echo x > {helper.root}/new && echo wrote", writable_paths=[])
    helper.proc = helper._start("/usr/bin/strace", env=dict(helper.env, ASAN_OPTIONS="detect_leaks=0"), args=[
        "-f", "-qq", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset", "-e", "inject=landlock_create_ruleset:error=ENOSYS",
        str(helper_program())])
    helper.proc.wait_log("no_landlock")
    helper.proc.wait_log("ready")
    assert helper.run("once")["stdout"] == "wrote\n"
    assert "cpu_pct" in helper.run("get_monitoring_data")["data"]
    kids = subprocess.run(["pgrep", "-P", str(helper.proc.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
    os.kill(int(kids[0]), signal.SIGTERM)
    helper.proc.wait_exit(10)


def test_a_run_that_ends_while_there_are_no_descriptors_is_answered_later(helper):
    """Its supervisor is killed while the helper can open nothing: neither its asker nor its place may be lost."""
    helper.verb("once", f"echo $$ > {helper.root}/pid; sleep 60")
    helper.start()
    c = helper.client(timeout=1)
    c.send(verb="once", args={}, correlation_id="c-1", deadline=rfc3339(60))
    pid = helper.root / "pid"
    wait_for(lambda: pid.exists() and pid.read_text(), what="a run")
    script = int(pid.read_text())
    limit = resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
    os.kill(supervisor_of(script), signal.SIGKILL)
    with pytest.raises(TimeoutError):
        c.recv()
    resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE, limit)
    c.sock.settimeout(15)
    assert code(c.recv()) == "outcome_unknown"
    assert not alive(script)
    helper.verb("once", "echo second")
    assert helper.run("once")["stdout"] == "second\n", "its place is free again"
