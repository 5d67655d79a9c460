"""Privilege: the helper's protocol, its journal and its supervisors, against the real program."""
import os
import signal
import stat
import subprocess
import uuid

import pytest

from helperlib import END, MARK, Helper, alive, code, supervisor_of
from viwtest import rfc3339, wait_for


@pytest.fixture
def helper(start, root_dir):
    return Helper(start, root_dir)


# ---------------------------------------------------------------- protocol


def test_hello_names_the_journal_and_the_verbs(helper):
    helper.verb("greet", "echo hi", argv=["{name}"], params={"name": {"type": "username"}})
    helper.start()
    reply = helper.call(op="hello")
    assert reply["status"] == "ok"
    assert uuid.UUID(reply["data"]["journal_id"]).version == 4
    verbs = {v["name"]: v for v in reply["data"]["verbs"]}
    assert verbs["greet"]["params"]["name"]["type"] == "username"
    assert verbs["greet"]["effects"] is True
    assert verbs["get_system_health"]["effects"] is False
    assert "ECHO" not in verbs and "shutdown" not in verbs
    again = helper.call(op="hello")
    assert again["data"]["journal_id"] == reply["data"]["journal_id"]


def test_socket_belongs_to_root_with_mode_0660(helper):
    helper.start()
    st = os.stat(helper.socket)
    assert stat.S_IMODE(st.st_mode) == 0o660 and st.st_uid == 0


def test_run_gives_output_rc_and_times(helper):
    helper.verb("greet", 'echo "hello $1"; echo oops >&2; exit 3', argv=["{name}"],
                params={"name": {"type": "username"}})
    helper.start()
    reply = helper.run("greet", {"name": "alice"}, cid="c-1")
    assert reply["correlation_id"] == "c-1" and reply["status"] == "ok"
    assert (reply["rc"], reply["stdout"], reply["stderr"]) == (3, "hello alice\n", "oops\n")
    assert reply["truncated"] == {"stdout": False, "stderr": False}
    assert reply["started_at"] <= reply["finished_at"]
    assert "replayed" not in reply


def test_several_requests_in_flight_on_one_connection(helper):
    helper.verb("slow", "sleep 0.5; echo slow")
    helper.verb("fast", "echo fast")
    helper.start()
    c = helper.client()
    c.send(verb="slow", args={}, correlation_id="s", deadline=rfc3339(60))
    c.send(verb="fast", args={}, correlation_id="f", deadline=rfc3339(60))
    assert [c.recv()["correlation_id"], c.recv()["correlation_id"]] == ["f", "s"]


def test_parameters_travel_by_argv_stdin_and_environment(helper):
    helper.verb("show", 'echo "argv:$*"; read a; read b; echo "stdin:$a/$b"; echo "env:$VIW_CITY"',
                argv=["--name={name}", "--", "x{name}y"],
                params={"name": {"type": "username"}, "one": {"type": "text", "via": "stdin"},
                        "two": {"type": "text", "via": "stdin", "optional": True},
                        "city": {"type": "text", "via": "env"}})
    helper.start()
    reply = helper.run("show", {"name": "bob", "one": "1", "city": "Rome; ls $(id)"})
    assert reply["stdout"] == "argv:--name=bob -- xboby\nstdin:1/\nenv:Rome; ls $(id)\n"


def test_secrets_are_masked_and_never_in_argv(helper):
    helper.verb("leak", 'read p; echo "got $p and password=hunter2"; tr "\\0" " " < /proc/$$/cmdline',
                params={"userpass": {"type": "secret", "max": 128, "via": "stdin"}})
    helper.start()
    reply = helper.run("leak", {"userpass": "S3cretValue!"})
    assert reply["stdout"].startswith("got *** and password=***\n")
    assert "S3cretValue!" not in str(reply)
    everything = b"".join(p.read_bytes() for p in helper.journal_files())
    everything += (helper.state / "audit.log").read_bytes()
    assert b"S3cretValue!" not in everything


def test_readonly_verbs_leave_no_journal_file_and_run_again(helper):
    helper.verb("look", MARK + "echo seen", effects=False)
    helper.start()
    for _ in range(2):
        assert helper.run("look", cid="same")["stdout"] == "seen\n"
    assert helper.starts("same") == 2
    assert helper.journal_files() == []


# ---------------------------------------------------------------- at most once


def test_same_id_with_fresh_nonce_gives_the_stored_outcome(helper):
    helper.verb("once", MARK + "echo $RANDOM$RANDOM")
    helper.start()
    first = helper.run("once", cid="c-1")
    second = helper.run("once", cid="c-1")
    assert second["replayed"] is True
    assert second["stdout"] == first["stdout"] and second["finished_at"] == first["finished_at"]
    assert helper.starts("c-1") == 1


def test_same_id_while_running_awaits_the_one_outcome(helper):
    helper.verb("once", MARK + "sleep 0.5; echo $RANDOM")
    helper.start()
    clients = [helper.client() for _ in range(5)]
    for c in clients:
        c.send(verb="once", args={}, correlation_id="c-1", deadline=rfc3339(60))
    replies = [c.recv() for c in clients]
    assert len({r["stdout"] for r in replies}) == 1
    assert sorted(r.get("replayed", False) for r in replies) == [False] + [True] * 4
    assert helper.starts("c-1") == 1


def test_same_id_with_other_arguments_is_a_digest_mismatch(helper):
    helper.verb("once", MARK, argv=["{n}"], params={"n": {"type": "int", "default": 1}})
    helper.start()
    assert helper.run("once", {"n": 1}, cid="c-1")["status"] == "ok"
    assert helper.run("once", {}, cid="c-1")["replayed"] is True  # the default is the same value
    assert code(helper.run("once", {"n": 2}, cid="c-1")) == "digest_mismatch"
    assert helper.starts("c-1") == 1


def test_outcome_survives_a_restart(helper):
    helper.verb("once", MARK + "echo done; exit 7")
    helper.start()
    helper.run("once", cid="c-1")
    helper.stop()
    helper.start()
    again = helper.run("once", cid="c-1")
    assert (again["rc"], again["stdout"], again["replayed"]) == (7, "done\n", True)
    q = helper.query("c-1")
    assert (q["data"]["state"], q["rc"], q["stdout"]) == ("done", 7, "done\n")
    assert helper.starts("c-1") == 1


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_run_outlives_the_helper_and_the_next_one_waits_for_it(helper, how):
    gate = helper.root / "gate"
    helper.verb("long", MARK + f"while [ ! -e {gate} ]; do sleep 0.05; done; echo late; exit 5\n")
    helper.start()
    c = helper.client()
    c.send(verb="long", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: helper.starts("c-1") == 1)
    getattr(helper, how)()
    helper.start()
    assert helper.query("c-1")["data"]["state"] == "running"
    waiting = helper.client()
    waiting.send(verb="long", args={}, correlation_id="c-1", deadline=rfc3339(60))
    gate.touch()
    reply = waiting.recv()
    assert (reply["rc"], reply["stdout"], reply["replayed"]) == (5, "late\n", True)
    assert helper.starts("c-1") == 1


def test_outcome_reached_while_no_helper_lived_is_told(helper):
    helper.verb("long", MARK + "sleep 0.3; echo late\n" + END)
    helper.start()
    helper.client().send(verb="long", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: helper.starts("c-1") == 1)
    helper.kill()
    wait_for(lambda: "end c-1" in helper.ledger_lines())
    helper.start()
    reply = helper.run("long", cid="c-1")
    assert reply["stdout"] == "late\n" and reply["replayed"] is True


@pytest.mark.parametrize("helper_dies_too", [False, True])
def test_dead_supervisor_means_outcome_unknown_and_a_dead_tree(helper, helper_dies_too):
    pids = helper.root / "pids"
    helper.verb("long", MARK + f"(setsid sleep 300 & echo $! >> {pids}); echo $$ >> {pids}; sleep 300\n")
    helper.start()
    c = helper.client()
    c.send(verb="long", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    tree = [int(p) for p in pids.read_text().split()]
    supervisor = supervisor_of(tree[1])
    assert supervisor != helper.proc.pid
    if helper_dies_too:
        helper.kill()
    os.kill(supervisor, signal.SIGKILL)
    if helper_dies_too:
        helper.start()
        reply = helper.run("long", cid="c-1")
    else:
        reply = c.recv()
    assert code(reply) == "outcome_unknown"
    wait_for(lambda: not any(alive(p) for p in tree), what="the run's processes to be dead")
    assert helper.query("c-1")["data"]["state"] == "unknown"
    assert code(helper.run("long", cid="c-1")) == "outcome_unknown"
    assert helper.starts("c-1") == 1


def test_readonly_run_whose_supervisor_dies_is_internal_and_leaves_nothing(helper):
    pids = helper.root / "pids"
    helper.verb("look", f"setsid sleep 300 & echo $! $$ > {pids}; sleep 300", effects=False)
    helper.start()
    c = helper.client()
    c.send(verb="look", args={}, correlation_id="c-1")
    tree = wait_for(lambda: pids.exists() and [int(p) for p in pids.read_text().split()])
    os.kill(supervisor_of(tree[1]), signal.SIGKILL)
    assert code(c.recv()) == "internal"
    wait_for(lambda: not any(alive(p) for p in tree), what="the run's processes to be dead")
    assert helper.query("c-1")["data"]["state"] == "absent"


def test_void_that_cannot_be_written_is_an_error_not_a_promise(helper):
    helper.start()
    # a folder that cannot take a file any more: immutable where the file system knows that
    if subprocess.run(["chattr", "+i", helper.state / "journal"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        assert code(helper.query("c-1", op="void")) == "internal"
        assert helper.query("c-1")["data"]["state"] == "absent"
    finally:
        subprocess.run(["chattr", "-i", helper.state / "journal"], check=True)
    assert helper.query("c-1", op="void")["data"]["state"] == "void"


def test_void_keeps_an_id_from_ever_starting(helper):
    helper.verb("once", MARK)
    helper.start()
    assert helper.query("c-1")["data"]["state"] == "absent"
    assert helper.query("c-1", op="void")["data"]["state"] == "void"
    assert helper.query("c-1", op="void")["data"]["state"] == "void"
    assert code(helper.run("once", cid="c-1")) == "cancelled"
    helper.kill()
    helper.start()
    assert code(helper.run("once", cid="c-1")) == "cancelled"
    assert helper.query("c-1")["data"]["state"] == "void"
    assert helper.starts("c-1") == 0


def test_void_while_running_changes_nothing(helper):
    gate = helper.root / "gate"
    helper.verb("long", MARK + f"while [ ! -e {gate} ]; do sleep 0.05; done; echo ok\n")
    helper.start()
    c = helper.client()
    c.send(verb="long", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for(lambda: helper.starts("c-1") == 1)
    assert helper.query("c-1", op="void")["data"]["state"] == "running"
    gate.touch()
    assert c.recv()["stdout"] == "ok\n"
    done = helper.query("c-1", op="void")
    assert done["data"]["state"] == "done" and done["stdout"] == "ok\n"


def test_deadline_is_required_kept_and_bounded(helper):
    helper.verb("once", MARK)
    helper.start()
    assert code(helper.call(verb="once", args={}, correlation_id="a")) == "bad_request"
    assert code(helper.run("once", cid="b", deadline=-1)) == "expired"
    assert code(helper.run("once", cid="c", deadline=25 * 3600)) == "bad_request"
    assert helper.ledger_lines() == [] and helper.journal_files() == []


def test_busy_beyond_the_limits_starts_nothing(helper):
    gate = helper.root / "gate"
    helper.verb("long", MARK + f"while [ ! -e {gate} ]; do sleep 0.05; done\n")
    helper.start()
    c = helper.client()
    c.send(verb="long", args={}, correlation_id="a", deadline=rfc3339(60))
    wait_for(lambda: helper.starts("a") == 1)
    assert code(helper.run("long", cid="b")) == "busy"
    assert helper.query("b")["data"]["state"] == "absent"
    gate.touch()
    assert c.recv()["status"] == "ok"
    assert helper.run("long", cid="b")["status"] == "ok"


def test_timeout_ends_the_whole_tree_and_is_stored(helper):
    pids = helper.root / "pids"
    helper.verb("hang", MARK + f"""trap '' TERM
(trap '' TERM; setsid bash -c 'trap "" TERM; echo $$ >> {pids}; while :; do sleep 1; done' &)
echo $$ >> {pids}; echo partial; while :; do sleep 1; done
""", timeout_s=1)
    helper.start()
    reply = helper.run("hang", cid="c-1")
    assert code(reply) == "timeout" and reply["stdout"] == "partial\n"
    tree = [int(p) for p in pids.read_text().split()]
    assert len(tree) == 2 and not any(alive(p) for p in tree)
    assert code(helper.run("hang", cid="c-1")) == "timeout"
    assert helper.starts("c-1") == 1


# ---------------------------------------------------------------- built-in verbs


def test_get_system_health_tells_of_this_host(helper):
    helper.start()
    data = helper.run("get_system_health")["data"]
    assert data["status"] in ("ok", "warn", "critical") and isinstance(data["reasons"], list)
    with open("/proc/meminfo") as f:
        total = int(f.readline().split()[1]) * 1024
    assert data["mem_total_bytes"] == total
    assert 0 <= data["cpu_pct"] <= 100 and 0 < data["mem_pct"] < 100 and 0 < data["disk_pct"] <= 100


def test_get_monitoring_data_has_the_keys_of_telemetry(helper):
    helper.start()
    data = helper.run("get_monitoring_data", {"services": "no-such-thing"})["data"]
    assert {"cpu_pct", "mem_pct", "disk_pct", "load1", "load5", "load15", "uptime_s", "mem_total_bytes",
            "mem_available_bytes", "disk_total_bytes", "disk_free_bytes"} <= data.keys()
    assert data["services"] == {"no-such-thing.service": "unknown"}
    st = os.statvfs("/")
    assert data["disk_total_bytes"] == st.f_blocks * st.f_frsize
