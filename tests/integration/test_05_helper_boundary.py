"""Privilege: the socket itself, the order of checks, and manifests as the schema and the helper see them."""
import copy
import json
import os
import re
import resource
import signal
import socket
import stat
import time
import uuid

import pytest

from helperlib import KEY, MARK, Helper, code, reload
from viwtest import ROOT, free_port, helper_program, helper_request, rfc3339, wait_for

SHIPPED = ROOT / "host-helper" / "verbs.d"


@pytest.fixture
def helper(start, root_dir):
    return Helper(start, root_dir)


# ---------------------------------------------------------------- own bind


def test_own_socket_has_the_owner_group_and_mode_that_were_asked_for(helper):
    helper.start(HOST_HELPER_SOCKET_GROUP="nogroup")
    st = os.lstat(helper.socket)
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 65534, 0o660) and stat.S_ISSOCK(st.st_mode)


def test_a_group_that_does_not_exist_means_root_with_a_warning(helper):
    helper.start(HOST_HELPER_SOCKET_GROUP="no-such-group")
    st = os.lstat(helper.socket)
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o660)
    assert helper.proc.find_logs("no_socket_group")


@pytest.mark.parametrize("spoil", ["world", "group", "owner", "symlink", "above"])
def test_a_socket_folder_others_may_change_is_refused(start, root_dir, spoil):
    helper = Helper(start, root_dir)
    folder = root_dir / "run"
    if spoil == "world":
        folder.chmod(0o777)
    elif spoil == "group":
        folder.chmod(0o775)
    elif spoil == "owner":
        os.chown(folder, 65534, 65534)
    elif spoil == "symlink":
        folder.rename(root_dir / "real")
        folder.symlink_to(root_dir / "real")
    else:
        (root_dir / "open").mkdir()
        (root_dir / "open").chmod(0o777)
        (root_dir / "open/run").mkdir()
        helper.env["HOST_HELPER_SOCKET"] = str(root_dir / "open/run/s")
    proc = start("host-helper", env=helper.env)
    assert proc.wait_exit() in (71, 78) and proc.find_logs("socket_folder")
    assert not helper.socket.exists()


def test_what_lies_at_the_sockets_path(start, root_dir):
    helper = Helper(start, root_dir)
    helper.socket.write_text("a file")  # not ours to remove
    proc = start("host-helper", env=helper.env)
    assert proc.wait_exit() == 71 and helper.socket.read_text() == "a file"
    helper.socket.unlink()
    with socket.socket(socket.AF_UNIX) as other:  # somebody lives there
        other.bind(str(helper.socket))
        other.listen()
        assert start("host-helper", env=helper.env).wait_exit() == 71
    helper.start()  # what a dead process left is replaced
    assert helper.call(op="hello")["status"] == "ok"


# ---------------------------------------------------------------- order of checks


def test_a_forged_request_uses_up_no_nonce_and_learns_nothing(helper):
    helper.verb("greet", MARK, effects=False)
    helper.start()
    nonce = str(uuid.uuid4())
    for fields in ({"verb": "greet"}, {"verb": "nope"}, {"verb": "greet", "issued_at": rfc3339(-999), "expires_at": rfc3339(-998)}):
        c = helper.client()
        c.send_raw(helper_request("another key of thirty-two bytes!", args={}, nonce=nonce, **fields))
        reply = c.recv()
        assert code(reply) == "bad_mac" and "correlation_id" not in reply
    assert helper.call(verb="greet", args={}, nonce=nonce)["status"] == "ok"
    assert code(helper.call(verb="greet", args={}, nonce=nonce)) == "replayed"
    # neither does one that is out of its time
    late = str(uuid.uuid4())
    assert code(helper.call(verb="greet", args={}, nonce=late, issued_at=rfc3339(-30), expires_at=rfc3339(-1))) == "expired"
    assert helper.call(verb="greet", args={}, nonce=late)["status"] == "ok"


def test_a_bad_connection_disturbs_no_other(helper):
    helper.verb("slow", "sleep 0.6; echo slow", effects=False)
    helper.start()
    good = helper.client()
    good.send(verb="slow", args={})
    for bad in (b"\0" * 100 + b"\n", b"x" * 70000, helper_request(KEY, op="hello")[:-5], b"\n" * 1000):
        c = helper.client()
        try:
            c.send_raw(bad)
        except OSError:
            pass
        c.close()
    assert good.recv()["stdout"] == "slow\n" and good.call(op="query")["status"] == "ok"


def test_half_a_line_in_the_nonce_file_forgets_no_other(helper):
    """As a disk leaves it that was full for a moment."""
    helper.verb("look", "echo fine", effects=False)
    lines = [helper_request(KEY, verb="look", args={}) for _ in range(3)]

    def ask(line):
        c = helper.client()
        c.send_raw(line)
        return code(c.recv())
    for line in lines:
        helper.start()
        assert ask(line) is None
        helper.kill()
        with open(helper.state / "nonces", "a") as f:
            f.write(f"\n{int(time.time() * 1000) + 60000} site")
    helper.start()
    assert [ask(line) for line in lines] == ["replayed"] * 3


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("uids", ["4294967295", "0,4294967296", "99999999999", "0,,1", "root", "-1"])
def test_uids_that_are_none_are_a_fault(start, root_dir, uids):
    """2^32 would be root, and 2^32 - 1 whoever has no uid, such as a peer on TCP."""
    check = start("host-helper", env=Helper(start, root_dir, HOST_HELPER_ALLOWED_UIDS=uids).env, args=["--check-config"])
    assert check.wait_exit() == 78 and "HOST_HELPER_ALLOWED_UIDS" in check.text


@pytest.mark.parametrize("spoil", ["world", "group", "owner", "symlink", "above"])
def test_a_settings_file_others_may_change_is_refused(start, root_dir, spoil):
    helper = Helper(start, root_dir)
    folder = root_dir / "etc"
    folder.mkdir()
    path = folder / "host_helper.toml"
    path.write_text("rate = 100\n")
    helper.env["HOST_HELPER_CONFIG"] = str(path)
    assert start("host-helper", env=helper.env, args=["--check-config"]).wait_exit() == 0
    if spoil == "world":
        path.chmod(0o646)
    elif spoil == "group":
        path.chmod(0o664)
    elif spoil == "owner":
        os.chown(path, 65534, 65534)
    elif spoil == "symlink":
        path.rename(root_dir / "real.toml")
        path.symlink_to(root_dir / "real.toml")
    else:
        folder.chmod(0o777)
    for args in (["--check-config"], []):
        proc = start("host-helper", env=helper.env, args=args)
        assert proc.wait_exit() == 78 and "HOST_HELPER_CONFIG" in proc.text
    assert not helper.socket.exists()


def test_a_uid_taken_off_the_list_is_turned_away_at_the_reload(helper):
    path = helper.root / "host_helper.toml"
    path.write_text('allowed_uids = "0"\n')
    del helper.env["HOST_HELPER_ALLOWED_UIDS"]
    helper.start(HOST_HELPER_CONFIG=str(path))
    c = helper.client()
    assert c.call(op="hello")["status"] == "ok"
    path.write_text('allowed_uids = "12345"\n')
    reload(helper)
    assert c.recv() is None
    assert helper.client().recv() is None
    path.write_text('allowed_uids = "12345,0"\n')
    reload(helper)
    assert helper.call(op="hello")["status"] == "ok"


def test_a_passed_socket_that_is_none_of_unix_is_not_served(helper, start):
    port = free_port()
    args = ["-l", f"127.0.0.1:{port}"] + [f"-E{k}={v}" for k, v in helper.env.items()]
    proc = start("/usr/bin/systemd-socket-activate", args=[*args, str(helper_program())])

    def connects():
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            return None
    peer = wait_for(connects)  # starts the helper, which binds its own

    def answers():
        try:
            return helper.call(op="hello")
        except (FileNotFoundError, ConnectionRefusedError):  # the socket is there before it listens
            return None
    assert wait_for(answers)["status"] == "ok"
    peer.settimeout(0.5)
    peer.sendall(helper_request(KEY, op="hello"))
    with pytest.raises(TimeoutError):
        peer.recv(1)
    assert proc.alive


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize("via", ["argv", "stdin", "env"])
def test_secrets_travel_as_declared_and_are_masked(helper, via):
    body = {"argv": 'echo "arg $1"', "stdin": 'read s; echo "arg $s"', "env": 'echo "arg $VIW_TOKEN"'}[via]
    helper.verb("show", body + '; env | grep -c CorrectHorse; tr "\\0" "\\n" < /proc/$$/cmdline | grep -c CorrectHorse; echo "${#1} ${#VIW_TOKEN} ${#s}"',
                argv=["{token}"] if via == "argv" else [], params={"token": {"type": "secret", "max": 64, "via": via}})
    helper.start()
    out = helper.run("show", {"token": "CorrectHorseBattery"})["stdout"].splitlines()
    assert out[0] == "arg ***"
    assert (out[1] != "0", out[2] != "0") == (via == "env", via == "argv")  # only where it was declared to be
    assert out[3] == {"argv": "19 0 0", "stdin": "0 0 19", "env": "0 19 0"}[via]


# ---------------------------------------------------------------- manifests


def mutations():
    """(name, manifest): each one breaks, or stays within, one rule."""
    base = {"verb": "v", "exec": "/usr/bin/true", "argv": ["{a}"], "params": {"a": {"type": "username"}}}

    def made(name, **changes):
        m = copy.deepcopy(base)
        for k, v in changes.items():
            if v is None:
                m.pop(k, None)
            else:
                m[k] = v
        return name, m

    def param(name, **p):
        return made(name, params={"a": p})
    yield from (made("ok"), made("no_exec", exec=None), made("no_verb", verb=None), made("relative", exec="true"), made("unknown_key", timeout=3))
    for key, good, bad in (("timeout_s", [1, 3600], [0, 3601, "5", 1.5]), ("max_output_bytes", [0, 262144], [-1, 262145, "x"]),
                           ("concurrency", [1, 64], [0, 65]), ("effects", [True], ["yes", 1]), ("idempotent", [False], [0]),
                           ("network", [True], ["no"]), ("run_as", ["www-data"], ["", "1abc", "a b", "x" * 33, 0]),
                           ("writable_paths", [[], ["/srv"]], ["/srv", ["srv"], [1]]),
                           ("capabilities", [[], ["CAP_CHOWN"]], ["CAP_CHOWN", ["chown"], [1]]), ("doc", ["text"], ["", 1, "x" * 257]),
                           ("verb", ["a_B9"], ["", "9a", "a-b", "x" * 65]), ("argv", [["-x", "--", "{a}"]], ["{a}", [1]])):
        for i, v in enumerate(good):
            yield made(f"{key}_good{i}", **{key: v})
        for i, v in enumerate(bad):
            yield made(f"{key}_bad{i}", **{key: v})
    for t in ("secret", "ipv4", "ipv6", "ip", "cidr", "port", "int", "hostname", "unit", "uuid", "key32", "text", "duration_s", "bool"):
        yield param(f"type_{t}", type=t)
    yield from (param("type_none"), param("type_odd", type="string"), param("enum_good", type="enum", values=["x"]),
                param("enum_bad", type="enum", values=[]), param("key_odd", type="text", pattern="x"), param("via_odd", type="text", via="file"),
                param("negative_min", type="int", min=-5, max=5), param("optional_odd", type="text", optional="yes"),
                param("charset_empty", type="text", charset=""), param("max_odd", type="text", max="9"), param("default_list", type="text", default=[]))


def test_schema_and_helper_agree_on_manifests(start, root_dir):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((SHIPPED / "schema/manifest.schema.json").read_text())
    helper = Helper(start, root_dir)
    expected = {}
    for i, (name, m) in enumerate(mutations()):
        if isinstance(m.get("verb"), str) and m["verb"] == "v":
            m["verb"] = f"v{i}"  # each its own
        (helper.verbs / f"{name}.json").write_text(json.dumps(m))
        expected[f"{name}.json"] = jsonschema.Draft202012Validator(schema).is_valid(m)
    check = start("host-helper", env=helper.env, args=["--check-config"])
    assert check.wait_exit() == 78
    faulty = set(re.findall(r"([\w]+\.json) \S+: ", check.text))
    assert {n for n, good in expected.items() if not good} == faulty, check.text


@pytest.mark.parametrize("name", ["run_id", "correlation_id", "Agent_Id"])
def test_a_parameter_cannot_take_a_name_the_helper_sets_itself(start, root_dir, name):
    helper = Helper(start, root_dir)
    helper.verb("v", "echo hi", params={name: {"type": "text", "via": "env"}})
    check = start("host-helper", env=helper.env, args=["--check-config"])
    assert check.wait_exit() == 78 and f"v.json params.{name}: " in check.text, check.text


def test_faults_only_this_host_can_know_are_named(start, root_dir):
    helper = Helper(start, root_dir)
    helper.verb("ghost", "echo hi", run_as="nosuchuser")
    helper.verb("caps", "echo hi", capabilities=["CAP_NONSENSE"])
    helper.verb("gone")
    check = start("host-helper", env=helper.env, args=["--check-config"])
    assert check.wait_exit() == 78
    for text in ("ghost.json run_as: ", "caps.json capabilities: ", "gone.json exec: "):
        assert text in check.text, check.text


def test_without_descriptors_it_waits_for_some_and_does_not_spin(helper):
    """What it can still be asked is answered, each once."""
    helper.verb("slow", "sleep 60")
    helper.start()
    known = helper.client(timeout=5)
    assert known.call(op="query", correlation_id="c-1")["status"] == "ok"
    limit = resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
    late = helper.client(timeout=15)
    late.send(op="query", correlation_id="c-2")
    helper.proc.wait_log("no_descriptors")
    used, began = cpu_ticks(helper.proc.pid), time.monotonic()
    while time.monotonic() - began < 1:
        ask = {"op": "query"} if time.monotonic() - began < 0.5 else {"verb": "slow", "args": {}, "deadline": rfc3339(60)}
        reply = known.call(correlation_id="c-1", **ask)
        assert code(reply) == "internal" and "journal cannot be read" in reply["error"]["msg"], "once, and not `busy` as well"
        time.sleep(0.1)
    assert cpu_ticks(helper.proc.pid) - used < 30, "of 100 in this second"
    assert len(helper.proc.find_logs("no_descriptors")) == 1, "said once"
    resource.prlimit(helper.proc.pid, resource.RLIMIT_NOFILE, limit)
    assert known.call(op="query", correlation_id="c-1")["status"] == "ok"
    assert late.recv()["status"] == "ok"
    assert helper.query("c-3")["status"] == "ok"


def cpu_ticks(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def client_or_none(helper):
    """Its log goes nowhere, so nothing else tells when it listens."""
    try:
        return helper.client()
    except OSError:
        return None


def test_started_without_standard_descriptors_its_log_goes_nowhere_else(helper):
    """Closed ones would be the next files it opens: its lock, which each run would then keep, and what the log is written into."""
    helper.verb("slow", f"touch {helper.root}/begun; sleep 60")
    helper.proc = helper._start("/bin/sh", args=["-c", 'exec "$0" <&- >&- 2>&-', helper_program()], env=helper.env)
    pid = helper.proc.pid
    c = wait_for(lambda: client_or_none(helper), what="a connection")
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in range(3)} == {"/dev/null"}
    c.send(verb="slow", args={}, correlation_id="c-1", deadline=rfc3339(60))
    wait_for((helper.root / "begun").exists, what="a run")
    helper.proc.kill()
    helper.start()  # while the run goes on
    assert helper.query("c-1")["data"]["state"] == "running"


def test_a_reload_of_a_faulty_settings_file_changes_nothing(helper):
    """Nor does it cost memory: the sanitizer looks at the end."""
    conf = helper.root / "helper.toml"
    conf.write_text("rate = 2000\n")
    helper.verb("once", "echo here")
    helper.start(HOST_HELPER_CONFIG=str(conf))
    conf.write_text("rate = 0x\nverbs_dir = '/nonexistent'\n")
    helper.proc.signal(signal.SIGHUP)
    helper.proc.wait_log("reload_failed")
    assert helper.run("once")["stdout"] == "here\n"
