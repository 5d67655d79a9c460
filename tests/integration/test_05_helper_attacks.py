"""Privilege: every attack of SECURITY.md's list, each with the refusal it must meet, against the real program."""
import fcntl
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import time
import uuid

import pytest

import viwtest
from helperlib import KEY, MARK, Helper, alive, code, reload
from viwtest import HelperClient, helper_request, rfc3339, wait_for, write_secret


@pytest.fixture
def helper(start, root_dir):
    h = Helper(start, root_dir)
    h.verb("greet", MARK + 'printf "[%s]" "$@"', argv=["{name}"], params={"name": {"type": "username"}})
    h.verb("look", "echo fine", effects=False)
    return h.start()


def raw(helper, line):
    c = helper.client()
    c.send_raw(line)
    return c


def healthy(helper):
    assert helper.run("look")["stdout"] == "fine\n"


# ---------------------------------------------------------------- messages


def test_forged_mac_is_refused_and_the_connection_closed(helper):
    c = raw(helper, helper_request("another key of thirty-two bytes!", verb="greet", args={"name": "a"},
                                   deadline=rfc3339(60)))
    assert code(c.recv()) == "bad_mac"
    assert c.recv() is None
    assert helper.ledger_lines() == []


def test_every_mutated_byte_of_a_request_is_refused(helper):
    line = bytearray(helper_request(KEY, verb="greet", args={"name": "a"}, deadline=rfc3339(60)))
    for at in range(0, len(line) - 1, 7):
        bad = bytearray(line)
        bad[at] ^= 1
        if bad[at] == 0x0a:
            continue
        c = raw(helper, bytes(bad))
        reply = c.recv()
        # A change of case in the MAC's hex is the same MAC; every other change is not.
        assert code(reply) == "bad_mac", (at, reply)
        c.close()
    assert helper.ledger_lines() == []


@pytest.mark.parametrize("line", [b"\n", b" \n", b"x\n", b"0" * 64 + b"\n", b"0" * 64 + b" \n", b"{}\n",
                                  b"g" * 64 + b" {}\n", b"\0" * 100 + b"\n", b"0" * 65 + b" {}\n"])
def test_lines_that_are_no_message(helper, line):
    c = raw(helper, line)
    assert code(c.recv()) == "bad_mac"
    assert c.recv() is None


def signed(body):
    return hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest().encode() + b" " + body + b"\n"


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"x"', b"{}", b'{"v":1}', b'{"v":1,"v":1}', b"{\"a\":" * 20 + b"1" + b"}" * 20,
                                  b"\xff\xfe", b'{"v":1e999}', b'{"v":"1"}'])
def test_authentic_but_malformed_is_bad_request_and_the_connection_lives(helper, body):
    c = raw(helper, signed(body))
    assert code(c.recv()) == "bad_request"
    assert c.call(op="hello")["status"] == "ok"


@pytest.mark.parametrize("change", [{"v": 2}, {"agent_id": "-x"}, {"agent_id": "a" * 65}, {"correlation_id": "a b"},
                                    {"correlation_id": None}, {"nonce": "not-a-uuid"}, {"nonce": None},
                                    {"issued_at": "yesterday"}, {"expires_at": None}, {"op": "exec"}, {"args": []},
                                    {"args": None}, {"args": "x"}, {"agent_id": ["a"]}])
def test_schema_faults_are_bad_request(helper, change):
    fields = {"verb": "greet", "args": {"name": "a"}, "deadline": rfc3339(60), **change}
    assert code(helper.call(**fields)) == "bad_request"
    assert helper.ledger_lines() == []


def test_truncated_request_never_runs(helper):
    line = helper_request(KEY, verb="greet", args={"name": "a"}, deadline=rfc3339(60))
    for cut in (1, 64, 65, 100, len(line) - 1):
        c = raw(helper, line[:cut])
        c.sock.shutdown(socket.SHUT_WR)
        assert c.recv() is None
    healthy(helper)
    assert helper.ledger_lines() == []


def test_oversized_request_is_refused_and_nothing_is_kept(helper):
    c = helper.client()
    try:
        c.send_raw(b"0" * 64 + b" " + b"x" * (1 << 20) + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        pass  # it closed before all was sent
    try:
        assert code(c.recv()) == "bad_request"
        assert c.recv() is None
    except ConnectionResetError:
        pass
    assert [r["code"] for r in helper.audit() if r["event"] == "request"] == ["bad_request"]
    healthy(helper)
    big = {"verb": "greet", "args": {"name": "a" * 65000}, "deadline": rfc3339(60)}
    assert code(helper.call(**big)) == "bad_args"


def test_replayed_bytes_also_across_a_restart(helper):
    effects = helper_request(KEY, verb="greet", args={"name": "a"}, deadline=rfc3339(60))
    readonly = helper_request(KEY, verb="look", args={})
    assert raw(helper, effects).recv()["status"] == "ok"
    assert raw(helper, readonly).recv()["status"] == "ok"
    for how in (None, helper.stop, helper.kill):
        if how:
            how()
            helper.start()
        assert code(raw(helper, effects).recv()) == "replayed"
        assert code(raw(helper, readonly).recv()) == "replayed"
    assert len(helper.ledger_lines()) == 1


@pytest.mark.parametrize("issued,expires,want", [(-120, -60, "expired"), (-30, -1, "expired"), (30, 20, "expired"),
                                                 (0, 0, "expired"), (0, 61, "bad_request"), (-10, 55, "bad_request"),
                                                 (70, 100, "expired"), (-61, -3, "expired")])
def test_times_that_are_refused(helper, issued, expires, want):
    now = time.time()
    at = {offset: rfc3339(offset, now) for offset in (issued, expires)}
    reply = helper.run("greet", {"name": "a"}, issued_at=at[issued], expires_at=at[expires])
    assert code(reply) == want
    assert helper.ledger_lines() == []


def test_unknown_verbs_and_the_agents_own_are_refused(helper):
    for verb in ("nope", "ECHO", "shutdown", "", "greet ", "../greet", "greet.sh", "/bin/sh"):
        assert code(helper.run(verb)) == "verb_not_allowed"


# ---------------------------------------------------------------- parameters


INJECTIONS = ["-rf", "--help", "-", "$(touch /tmp/x)", "`id`", "a;id", "a|id", "a&id", "a>b", "a<b", "a\nb", "a\0b", "a\tb",
              "../../etc/passwd", "/etc/passwd", "..", ".", "a b", "a*", "a?", "~root", "a'b", 'a"b', "a\\b", "a{b}",
              "{name}", "\u0430lice", "al\u200bice", "alice\u202e", "a" * 33, "", 5, True, None, [], {}, ["alice"], 1.5]


def test_username_injections_are_bad_args(helper):
    for value in INJECTIONS:
        reply = helper.run("greet", {"name": value})
        # A NUL is no JSON for this protocol at all.
        assert code(reply) in ("bad_args", "bad_request"), value
    assert helper.ledger_lines() == []
    assert code(helper.run("greet", {"name": "a", "extra": "b"})) == "bad_args"
    assert code(helper.run("greet", {})) == "bad_args"


def test_text_reaches_the_script_as_one_word_whatever_it_holds(helper):
    helper.verb("say", 'printf "[%s]" "$@"', argv=["--", "{t}", "x={t}"], params={"t": {"type": "text"}}, effects=False)
    helper.proc.signal(signal.SIGHUP)
    helper.proc.wait_log("verbs_loaded", count=2)
    for text in ["$(id)", "a b", "; rm -rf /", "`id`", "*", "a'b\"c", "{t}", "{x}", "\\n", "\u00e9"]:
        assert helper.run("say", {"t": text})["stdout"] == f"[--][{text}][x={text}]"


# ---------------------------------------------------------------- executables


def test_swapped_executable(helper):
    path = helper.scripts / "greet.sh"
    path.chmod(0o775)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    path.chmod(0o757)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    path.chmod(0o755)
    os.chown(path, 65534, 65534)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    os.chown(path, 0, 0)
    path.chmod(0o644)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    path.chmod(0o755)
    target = helper.scripts / "other.sh"
    path.rename(target)
    path.symlink_to(target)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    path.unlink()
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    path.mkdir()
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    path.rmdir()
    target.rename(path)
    assert helper.ledger_lines() == [] and helper.journal_files() == []
    assert helper.run("greet", {"name": "a"})["status"] == "ok"


def test_symlinked_or_writable_directory_above(helper):
    helper.scripts.chmod(0o777)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    helper.scripts.chmod(0o1777)  # the sticky bit does not help
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    helper.scripts.chmod(0o755)
    os.chown(helper.scripts, 65534, 65534)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    os.chown(helper.scripts, 0, 0)
    real = helper.root / "elsewhere"
    helper.scripts.rename(real)
    helper.scripts.symlink_to(real)
    assert code(helper.run("greet", {"name": "a"})) == "not_executable"
    assert helper.ledger_lines() == []


def test_script_without_interpreter_is_not_executable_and_stored(helper):
    path = helper.scripts / "greet.sh"
    path.write_text("#!/no/such/interpreter\n")
    reply = helper.run("greet", {"name": "a"}, cid="c-1")
    assert code(reply) == "not_executable"
    assert helper.query("c-1")["data"]["state"] == "done"


# ---------------------------------------------------------------- scripts


def test_script_that_forks_daemons_leaves_none(helper):
    pids = helper.root / "pids"
    helper.verb("daemon", f"""for i in 1 2 3; do
  setsid bash -c 'trap "" TERM HUP; echo $$ >> {pids}; exec sleep 300' >/dev/null 2>&1 &
done
(setsid env -i bash -c 'echo $$ >> {pids}; exec sleep 300' &)
while [ "$(wc -l < {pids})" != 4 ]; do sleep 0.02; done 2>/dev/null
echo left""")
    reload(helper)
    reply = helper.run("daemon")
    assert (reply["rc"], reply["stdout"]) == (0, "left\n")
    tree = [int(p) for p in pids.read_text().split()]
    assert len(tree) == 4 and not any(alive(p) for p in tree)


def test_fork_bomb_ends_at_its_timeout(helper):
    # As a user of its own: the kernel does not hold root to `ulimit -u`, and a busy machine would drown.
    helper.verb("bomb", "ulimit -u 1000; f() { sleep 0.2; (f &) ; (f &) ; }; for i in 1 2 3 4 5; do f & done; sleep 60",
                timeout_s=1, run_as="nobody")
    reload(helper)
    assert code(helper.run("bomb", timeout=40)) == "timeout"
    assert not subprocess.run(["pgrep", "-f", str(helper.scripts / "bomb.sh")], stdout=subprocess.PIPE).stdout
    healthy(helper)


def test_flooding_output_is_cut_and_marked(helper):
    helper.verb("flood", "head -c 5000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2; exit 4",
                max_output_bytes=10000)
    reload(helper)
    reply = helper.run("flood")
    assert (reply["stdout"], reply["stderr"], reply["rc"]) == ("x" * 10000, "y" * 10000, 4)
    assert reply["truncated"] == {"stdout": True, "stderr": True}


def test_endless_output_ends_at_its_timeout(helper):
    helper.verb("yes", "exec yes", max_output_bytes=100, timeout_s=1)
    reload(helper)
    reply = helper.run("yes")
    assert code(reply) == "timeout" and reply["stdout"] == "y\n" * 50


def test_binary_output_is_escaped(helper):
    helper.verb("binary", r"printf 'a\xff\xc3\xa9\x00\xed\xa0\x80z\n'")
    reload(helper)
    assert helper.run("binary")["stdout"] == "a\\xffé\\x00\\xed\\xa0\\x80z\n"


def test_secret_at_the_cut_does_not_leak_in_part(helper):
    helper.verb("edge", 'read s; head -c 95 /dev/zero | tr "\\0" x; echo "$s$s$s"', max_output_bytes=100,
                params={"userpass": {"type": "secret", "max": 128, "via": "stdin"}})
    reload(helper)
    out = helper.run("edge", {"userpass": "CorrectHorseBattery"})["stdout"]
    assert "Corr" not in out and out.startswith("x" * 95 + "***")


def test_script_that_closes_its_output_or_ignores_stdin(helper):
    helper.verb("closer", "exec >&- 2>&-; exit 6")
    helper.verb("deaf", "exec <&-; echo ok", params={"userpass": {"type": "secret", "max": 4096, "via": "stdin"}})
    reload(helper)
    assert helper.run("closer")["rc"] == 6
    assert helper.run("deaf", {"userpass": "x" * 4000})["stdout"] == "ok\n"


def test_script_that_kills_its_parent_ends_unknown_and_never_runs_again(helper):
    helper.verb("patricide", MARK + "kill -9 $PPID; sleep 300")
    reload(helper)
    assert code(helper.run("patricide", cid="c-1")) == "outcome_unknown"
    assert code(helper.run("patricide", cid="c-1")) == "outcome_unknown"
    assert helper.starts("c-1") == 1
    assert helper.proc.alive
    wait_for(lambda: not subprocess.run(["pgrep", "-f", str(helper.scripts / "patricide.sh")], stdout=subprocess.PIPE).stdout)


def test_script_killed_by_a_signal_tells_it(helper):
    helper.verb("dies", "kill -SEGV $$")
    reload(helper)
    reply = helper.run("dies")
    assert (reply["status"], reply["rc"]) == ("ok", 128 + signal.SIGSEGV)


def test_what_a_script_inherits(helper):
    helper.verb("self", r"""ls -l /proc/self/fd | sed -n 's/.* \([0-9]*\) -> .*/\1/p' | sort -n | tr '\n' ' '; echo
env | sort | sed 's/=.*//' | tr '\n' ' '; echo
pwd; umask; grep -E '^(SigBlk|SigIgn|SigCgt|NoNewPrivs|Seccomp):' /proc/self/status | awk '{print $1 $2}' | tr '\n' ' '; echo
ulimit -c; ulimit -n; ulimit -f; ulimit -s; ulimit -l; [ "$(ps -o sid= -p $$ | tr -d ' ')" = $$ ] && echo own session""")
    reload(helper)
    fds, env, cwd, umask, status, core, files, size, stack, locked, session = helper.run("self")["stdout"].splitlines()
    assert fds.split() == ["0", "1", "2", "3"]  # 3 is ls's own, of the folder it lists
    assert set(env.split()) == {"HOME", "LANG", "PATH", "PWD", "SHLVL", "VIW_AGENT_ID", "VIW_CORRELATION_ID", "VIW_RUN_ID", "_"}
    assert (cwd, umask, core, session) == ("/", "0077", "0", "own session")
    # open files, file size and locked memory in KiB, stack
    assert (files, size, stack, locked) == ("1024", str(1 << 20), "8192", "8192")
    status = dict(part.split(":") for part in status.split())
    assert int(status["SigBlk"], 16) == 0 and int(status["SigIgn"], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"


def test_run_as_network_and_capabilities(helper):
    net = "for f in 2 10; do python3 -c \"import socket; socket.socket($f)\" 2>/dev/null && echo open || echo shut; done"
    helper.verb("nobody", "id -u; id -G; grep CapEff /proc/self/status | cut -f2", run_as="nobody")
    helper.verb("offline", net, network=False)
    helper.verb("online", net)
    helper.verb("caps", "grep -E 'Cap(Eff|Prm)' /proc/self/status | cut -f2; touch /etc/shadow-viw-test 2>&1; "
                        "chown nobody /proc/self/exe 2>/dev/null || echo no chown", capabilities=["CAP_KILL"])
    helper.verb("ghost", "id", run_as="nosuchuser")
    reload(helper)
    assert helper.run("nobody")["stdout"].splitlines() == ["65534", "65534", "0" * 16]
    assert helper.run("offline")["stdout"] == "shut\nshut\n"
    assert helper.run("online")["stdout"] == "open\nopen\n"
    out = helper.run("caps")["stdout"].splitlines()
    assert out[:2] == [f"{1 << 5:016x}"] * 2 and out[-1] == "no chown"
    os.path.exists("/etc/shadow-viw-test") and os.unlink("/etc/shadow-viw-test")
    assert code(helper.run("ghost")) == "not_executable"


def test_denied_system_calls_answer_eperm(helper):
    helper.verb("calls", """unshare -r true 2>/dev/null; mount -t tmpfs none /mnt 2>&1 | grep -o -i -m1 'permission denied\\|not permitted'
python3 -c 'import ctypes; c=ctypes.CDLL(None,use_errno=True); r=c.syscall(321,0,0,0); print(r, ctypes.get_errno())'""")
    reload(helper)
    out = helper.run("calls")["stdout"].lower().splitlines()
    assert out[0] in ("permission denied", "not permitted") and out[1] == "-1 1"


# ---------------------------------------------------------------- peers


def test_wrong_uid_is_turned_away(start, root_dir):
    helper = Helper(start, root_dir, HOST_HELPER_ALLOWED_UIDS="12345").start()
    c = helper.client()
    assert c.recv() is None
    helper.proc.wait_log("peer_refused")
    assert [r["code"] for r in helper.audit() if r["event"] == "refused"] == ["peer_not_allowed"]


def test_other_users_cannot_even_connect(helper):
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c",
                           f"import socket; s=socket.socket(1); s.connect({str(helper.socket)!r})"],
                          stderr=subprocess.PIPE, text=True)
    assert "PermissionError" in done.stderr


@pytest.mark.timeout(120)
def test_ten_thousand_half_open_connections_do_not_keep_the_agent_out(helper):
    agent = helper.client()
    assert agent.call(op="hello")["status"] == "ok"
    line = helper_request(KEY, op="hello")
    held = []
    for i in range(10000):
        s = socket.socket(socket.AF_UNIX)
        s.connect(str(helper.socket))
        s.send(line[:30 + i % 30]) if i % 3 else None
        held.append(s)
        if i % 1000 == 0:
            assert agent.call(op="hello")["status"] == "ok"
    assert agent.call(verb="look", args={})["stdout"] == "fine\n"
    healthy(helper)
    fds = len(os.listdir(f"/proc/{helper.proc.pid}/fd"))
    assert fds < 300, fds
    for s in held:
        s.close()


def test_requests_beyond_the_rate_are_busy(start, root_dir):
    helper = Helper(start, root_dir, HOST_HELPER_RATE="20").start()
    c = helper.client()
    codes = [code(c.call(op="hello")) for _ in range(200)]
    assert codes[0] is None and "busy" in codes and set(codes) == {None, "busy"}
    wait_for(lambda: code(c.call(op="hello")) is None)  # it refills


def test_too_many_unanswered_on_one_connection_are_busy(helper):
    gate = helper.root / "gate"
    helper.verb("long", f"while [ ! -e {gate} ]; do sleep 0.05; done; echo ok")
    reload(helper)
    c = helper.client()
    for _ in range(70):
        c.send(verb="long", args={}, correlation_id="c-1", deadline=rfc3339(60))
    refused = [code(c.recv()) for _ in range(6)]
    assert refused == ["busy"] * 6  # 64 wait for the one run
    gate.touch()
    assert all(c.recv()["stdout"] == "ok\n" for _ in range(64))


def test_peer_that_never_reads_does_not_disturb_others(helper):
    helper.verb("big", "head -c 60000 /dev/zero | tr '\\0' x", effects=False, concurrency=8)
    reload(helper)
    c = helper.client()
    for _ in range(40):
        c.send(verb="big", args={})
    # While its runs fill every place others hear busy at once; then they are served.
    wait_for(lambda: helper.run("look").get("stdout") == "fine\n")
    healthy(helper)


# ---------------------------------------------------------------- own files


@pytest.mark.parametrize("spoil", ["group", "mode", "owner", "symlink", "parent", "short", "missing"])
def test_secret_file_is_refused_unless_roots_own_0400(start, root_dir, spoil):
    helper = Helper(start, root_dir)
    path = helper.secret
    if spoil == "group":
        path.chmod(0o440)
    elif spoil == "mode":
        path.chmod(0o600)
    elif spoil == "owner":
        os.chown(path, 65534, 0)
    elif spoil == "symlink":
        path.rename(helper.root / "real")
        path.symlink_to(helper.root / "real")
    elif spoil == "parent":
        (helper.root / "open").mkdir()
        (helper.root / "open").chmod(0o777)
        path.rename(helper.root / "open/secret")
        helper.env["HOST_HELPER_SECRET_FILE"] = str(helper.root / "open/secret")
    elif spoil == "short":
        path.chmod(0o600)
        path.write_text("short")
        path.chmod(0o400)
    else:
        path.unlink()
    proc = start("host-helper", env=helper.env)
    assert proc.wait_exit() in (71, 78)
    assert proc.find_logs("secret_refused") and not helper.socket.exists()


def test_untrusted_manifests_are_not_allowed_and_check_config_names_them(start, root_dir):
    helper = Helper(start, root_dir)
    for name in ("good", "loose", "theirs", "broken", "linked"):
        helper.verb(name, "echo hi", effects=False)
    (helper.verbs / "loose.json").chmod(0o664)
    os.chown(helper.verbs / "theirs.json", 65534, 65534)
    (helper.verbs / "broken.json").write_text('{"verb": "broken", "exec": "relative", "timeout_s": 0}')
    (helper.verbs / "linked.json").rename(helper.root / "linked.json")
    (helper.verbs / "linked.json").symlink_to(helper.root / "linked.json")
    check = start("host-helper", env=helper.env, args=["--check-config"])
    assert check.wait_exit() == 78
    for text in ("loose.json (file): ", "theirs.json (file): ", "broken.json exec: ", "broken.json timeout_s: ", "linked.json (file): "):
        assert text in check.text, check.text
    helper.start()
    assert helper.run("good")["stdout"] == "hi\n"
    for name in ("loose", "theirs", "broken", "linked"):
        assert code(helper.run(name)) == "verb_not_allowed"


def test_torn_and_foreign_journal_files_are_never_guessed(helper):
    helper.run("greet", {"name": "a"}, cid="c-1")
    helper.run("greet", {"name": "b"}, cid="c-2")  # another's file, of another digest, tells nothing of this one
    files = {p.name: p for p in helper.journal_files()}
    one, two = (files[hashlib.sha256(c.encode()).hexdigest()] for c in ("c-1", "c-2"))
    whole = one.read_bytes()
    for damage in (b"", whole[:40], b"garbage" + whole, whole.replace(b"c-1", b"c-9"), two.read_bytes(),
                   whole.replace(b"\"rc\":0", b"\"rc\":1")):
        one.write_bytes(damage)
        q = helper.query("c-1")
        assert q["data"]["state"] == "unknown", damage
        assert code(helper.run("greet", {"name": "a"}, cid="c-1")) == "outcome_unknown"
    assert helper.proc.find_logs("journal_corrupt")
    assert helper.starts("c-1") == 1


def test_full_disk_stops_new_work_and_keeps_old_outcomes(start, root_dir):
    small = root_dir / "state"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(small)], check=True)
    try:
        helper = Helper(start, root_dir)
        helper.verb("once", MARK + "echo hi; sleep 0.3")
        helper.start()
        assert helper.run("once", cid="c-1")["stdout"] == "hi\n"
        c = helper.client()
        c.send(verb="once", args={}, correlation_id="c-2", deadline=rfc3339(60))
        wait_for(lambda: helper.starts("c-2") == 1)
        with open(small / "fill", "wb", buffering=0) as f:
            try:
                while True:
                    f.write(b"x" * 4096)
            except OSError:
                pass
        assert c.recv()["stdout"] == "hi\n"  # an outcome always fits
        refused = helper.run("once", cid="c-3")
        assert code(refused) == "internal"
        assert helper.starts("c-3") == 0 and helper.query("c-3").get("data", {}).get("state", "absent") == "absent"
        (small / "fill").unlink()
        assert helper.run("once", cid="c-3")["stdout"] == "hi\n"
        again = helper.run("once", cid="c-2")
        assert again["stdout"] == "hi\n" and again["replayed"] is True
        helper.stop()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# ---------------------------------------------------------------- operation


def test_reload_on_sighup_and_the_verbs_subcommand(start, helper):
    assert code(helper.run("fresh")) == "verb_not_allowed"
    helper.verb("fresh", "echo new", effects=False, params={"n": {"type": "int", "default": 3, "via": "env"}})
    (helper.verbs / "look.json").unlink()
    reload(helper)
    assert helper.run("fresh")["stdout"] == "new\n"
    assert code(helper.run("look")) == "verb_not_allowed"
    proc = start("host-helper", env=helper.env, args=["verbs"])
    assert proc.wait_exit() == 0
    assert "fresh\n" in proc.stdout and "n: int, via env, default 3" in proc.stdout and "tail_logs" in proc.stdout


def test_only_one_helper_uses_a_state_folder(start, helper):
    env = dict(helper.env, HOST_HELPER_SOCKET=str(helper.root / "run/second.sock"))
    second = start("host-helper", env=env)
    assert second.wait_exit() == 71 and second.find_logs("state_locked")
    healthy(helper)


def test_a_helper_waits_for_a_lock_that_is_about_to_go(start, helper):
    """A killed helper's child holds it until it has executed its program."""
    helper.stop()
    with open(helper.state / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = start("host-helper", env=helper.env)
        time.sleep(0.5)
        assert second.alive and not second.find_logs("state_locked")
    second.wait_log("ready")


def test_socket_activation(helper, start, root_dir):
    helper.stop()
    path = root_dir / "run/activated.sock"
    args = ["-l", str(path)] + [f"-E{k}={v}" for k, v in helper.env.items()]
    proc = start("/usr/bin/systemd-socket-activate", args=[*args, str(viwtest.helper_program())])
    wait_for(path.exists)
    c = HelperClient(path, KEY)
    assert c.call(op="hello")["status"] == "ok"
