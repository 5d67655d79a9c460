"""Privilege: the programs of the built-in verbs, which the helper starts as it starts a script."""
import json
import os
import shutil
import signal
import subprocess

import pytest

import viwtest
from helperlib import Helper, alive, code, reload, silent_engine
from viwtest import HELPER_PROGRAMS, helper_program, wait_for, write_script

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def helper(start, root_dir):
    """A helper whose programs are its own, to be spoiled."""
    h = Helper(start, root_dir)
    bin = root_dir / "bin"
    bin.mkdir(mode=0o755)
    for name in HELPER_PROGRAMS:
        shutil.copy(helper_program().with_name(name), bin / name)
    h.program = bin / "host-helper-verbs"
    h.containers = bin / "host-helper-containers"
    h._start = lambda program, env, **kw: start(bin / program, env=env, **kw)
    h.verb("greet", "echo hi", effects=False)
    return h


def stand_in(helper, body):
    """Another program in the place of ours, as dpkg puts it there: what runs keeps the old one."""
    for program in (helper.program, helper.containers):
        fresh = program.with_name("fresh")
        write_script(fresh, body)
        fresh.rename(program)


def logs(helper, **args):
    return helper.run("tail_logs", args)


@pytest.mark.parametrize("name", HELPER_PROGRAMS[1:])
def test_a_program_of_built_in_verbs_is_held_to_the_rules_of_a_script(helper, name):
    helper.start()
    path, real = helper.program.with_name(name), helper.program.with_name("real")
    verb, args = ("tail_logs", {}) if path == helper.program else ("stop_container", {"container": "one"})
    assert code(helper.run(verb, args, cid="c-0")) == (None if path == helper.program else "internal")  # there is no engine
    files = helper.journal_files()
    wait_for(lambda: helper.run("get_system_health")["status"] == "ok")

    def refused(word):
        reply = helper.run(verb, args)
        assert code(reply) == "not_executable" and word in reply["error"]["msg"], reply
        assert helper.run("greet")["stdout"] == "hi\n"
    path.chmod(0o775)
    refused("writable")
    path.chmod(0o755)
    os.chown(path, 65534, 65534)
    refused("root")
    os.chown(path, 0, 0)
    path.chmod(0o644)
    refused("executable")
    path.chmod(0o755)
    path.parent.chmod(0o777)
    refused("writable")
    path.parent.chmod(0o755)
    path.rename(real)
    path.symlink_to(real)
    refused("symlink")
    path.unlink()
    refused("No such file")
    # what the helper answers itself goes on
    wait_for(lambda: helper.run("get_system_health")["status"] == "ok")
    assert helper.journal_files() == files
    real.rename(path)
    assert code(helper.run(verb, args, cid="c-1")) == (None if path == helper.program else "internal")


def test_a_missing_program_of_built_in_verbs_is_named_at_the_start(helper):
    helper.program.unlink()
    helper.containers.chmod(0o775)
    check = helper._start("host-helper", env=helper.env, args=["--check-config"])
    assert check.wait_exit() == 78
    assert f"(built in) exec: {helper.program}: No such file" in check.text, check.text
    assert f"(built in) exec: {helper.containers}: is group- or world-writable" in check.text, check.text
    helper.start()
    faults = helper.proc.find_logs("manifest_fault")
    assert len(faults) == 2 and any("host-helper-verbs: No such file" in f["msg"] for f in faults), faults
    assert helper.run("greet")["stdout"] == "hi\n" and code(logs(helper)) == "not_executable"


LOOK = """
id -u; id -G; grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | cut -f2; umask; pwd
ls -xw0 /proc/$$/fd; echo "$0 $*"; cat
env; touch /etc/viw-verbs 2>/dev/null && echo wrote
exit 1
"""


def seen(helper, verb, args=None, **kw):
    """What the stand-in finds out about itself."""
    stand_in(helper, f"exec >/tmp/look.$$ 2>&1; {LOOK}")
    before = set(os.listdir("/tmp"))
    helper.run(verb, args or {}, **kw)
    new = [f for f in os.listdir("/tmp") if f.startswith("look.") and f not in before]
    assert len(new) == 1, new
    path = f"/tmp/{new[0]}"
    assert os.stat(path).st_uid == 65534
    with open(path) as f:
        lines = f.read().splitlines()
    os.unlink(path)
    return lines


@pytest.mark.parametrize("verb,cap", [("tail_logs", 1 << 2), ("get_service_status", 0), ("list_containers", 1 << 1), ("spawn_container", 1 << 1)])
def test_what_a_program_of_built_in_verbs_inherits(helper, verb, cap):
    args = {"get_service_status": {"unit": "a"}, "spawn_container": {"userpass": "hunter22", "name": "one"}}.get(verb)
    helper.env["HOST_HELPER_CONTAINER_PORTS"] = "18000-18002"
    lines = seen(helper.start(), verb, args)
    assert lines[:2] == ["65534", "65534"]
    assert lines[2:8] == [f"{cap:016x}"] * 4 + ["1", "2"]
    assert lines[8:10] == ["0077", "/"]
    assert lines[11].split()[1:] == [verb] and "hunter22" not in lines[11]
    rest = lines[12:]
    env = dict(line.split("=", 1) for line in rest if "=" in line)
    assert set(env) - {"PWD", "SHLVL", "_"} == {
        "PATH", "LANG", "HOME", "VIW_RUN_ID", "VIW_CORRELATION_ID", "VIW_AGENT_ID", "VIW_CPU_BEFORE", "HOST_HELPER_ENGINE_SOCKET",
        "HOST_HELPER_CONTAINER_IMAGES", "HOST_HELPER_CONTAINER_MEMORY_MB", "HOST_HELPER_CONTAINER_CPU_SHARES",
        "HOST_HELPER_CONTAINER_PIDS", "HOST_HELPER_CONTAINER_NETWORK", "HOST_HELPER_CONTAINER_PORTS",
        *{"tail_logs": ["VIW_LINES"], "get_service_status": ["VIW_UNIT"], "list_containers": ["VIW_ALL"],
          "spawn_container": ["VIW_NAME", "VIW_CONTAINER_PORT"]}[verb]}
    assert env["HOST_HELPER_CONTAINER_PORTS"] == "18000-18002"
    assert "wrote" not in rest and not os.path.exists("/etc/viw-verbs")
    assert ("hunter22" in rest) == (verb == "spawn_container")  # on stdin, nowhere else
    assert lines[10].split() == ["0", "1", "2", "255"]  # the last is bash's own: the script


@pytest.mark.parametrize("body,want", [
    ("echo no json", "internal"),
    ("printf '[1]'", "internal"),
    ("echo '{}'", "internal"),  # a line end would be one in the reply
    ("printf '{\"a\":1}\\n0123 {}'", "internal"),
    ("printf '{\"a\":\\r1}'", "internal"),
    ("printf '{\"a\": 1'", "internal"),
    ("printf '{\"a\":\"'; head -c 300000 /dev/zero | tr '\\0' x; printf '\"}'", "internal"),
    ("exit 0", "internal"),
    ("kill -SEGV $$", "internal"),
    ("printf 'busy\\nno port is free' >&2; exit 100", "busy"),
    ("printf 'expired\\nit was late' >&2; exit 100", "internal"),
    ("printf 'replayed\\nagain' >&2; exit 100", "internal"),
    ("printf 'busy' >&2; exit 100", "internal"),
    ("printf 'busy\\nno' >&2; exit 1", "internal"),
])
def test_lies_of_a_program_of_built_in_verbs(helper, body, want):
    helper.start()
    stand_in(helper, body)
    assert code(helper.run("list_containers")) == want
    reply = helper.run("stop_container", {"container": "one"}, cid="c-1")
    assert code(reply) == ("outcome_unknown" if want == "internal" else want), reply
    again = helper.run("stop_container", {"container": "one"}, cid="c-1")
    assert again["replayed"] is True and code(again) == code(reply)


def test_a_program_of_built_in_verbs_leaves_nothing(helper):
    helper.start()
    stand_in(helper, """setsid sleep 300 >/dev/null 2>&1 & printf '{"left": %d}' $!""")
    reply = helper.run("get_service_status", {"unit": "a"})
    assert reply["status"] == "ok" and not alive(reply["data"]["left"])


def test_an_upgrade_while_a_built_in_verb_runs(helper):
    """The one that runs answers as what it is; the next request is the new program's."""
    path = helper.root / "engine.sock"
    engine = silent_engine(path)
    helper.start(HOST_HELPER_ENGINE_SOCKET=str(path))
    c = helper.client()
    c.send(verb="list_containers", args={})
    peer, _ = engine.accept()
    stand_in(helper, """printf '{"is": "new"}'""")
    assert helper.run("list_containers")["data"] == {"is": "new"}
    peer.recv(65536)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
    assert c.recv()["data"] == {"containers": []}
    peer.close()
    engine.close()


def test_monitoring_data_asks_the_other_program_only_when_it_is_roots_own(helper, engine):
    helper.start(HOST_HELPER_ENGINE_SOCKET=str(engine))
    write_script(helper.containers, """[ "$*" = container_metrics ] && printf '{"containers_running":1,"containers":[{"id":"a"}]}'""")
    data = helper.run("get_monitoring_data")["data"]
    assert data["containers_running"] == 1 and data["containers"] == [{"id": "a"}] and data["uptime_s"] > 0
    for spoil, mend in ((lambda: helper.containers.chmod(0o775), lambda: helper.containers.chmod(0o755)),
                        (lambda: os.chown(helper.containers, 65534, 0), lambda: os.chown(helper.containers, 0, 0)),
                        (lambda: write_script(helper.containers, "echo '{'"), lambda: None),
                        (lambda: write_script(helper.containers, "printf '{\"containers_running\":1}'; exit 1"), lambda: None),
                        (lambda: helper.containers.unlink(), lambda: None)):
        spoil()
        data = helper.run("get_monitoring_data")["data"]
        assert "containers_running" not in data and data["uptime_s"] > 0
        mend()


def test_settings_reach_built_in_verbs_after_a_reload(helper):
    toml = helper.root / "helper.toml"
    toml.write_text('container_images = "a:1"\n')
    helper.start(HOST_HELPER_CONFIG=str(toml))
    stand_in(helper, """printf '{"images": "%s"}' "$HOST_HELPER_CONTAINER_IMAGES" """)
    assert helper.run("list_containers")["data"] == {"images": "a:1"}
    toml.write_text('container_images = "b:2"\n')
    reload(helper)
    assert helper.run("list_containers")["data"] == {"images": "b:2"}


def by_hand(program, *words, **env):
    return subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
                           helper_program().with_name(f"host-helper-{program}"), *words], stdin=subprocess.DEVNULL,
                          env={"PATH": "/usr/bin:/bin", "ASAN_OPTIONS": "detect_leaks=0", **env}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=20)


@pytest.fixture
def engine(root_dir):
    with silent_engine(root_dir / "engine.sock"):
        yield root_dir / "engine.sock"


def test_who_starts_it_by_hand_gains_nothing(engine):
    if not all(p.stat().st_mode & 0o001 for p in helper_program().parents):
        pytest.skip("the build lies where other users may not look")
    assert not any(os.stat(helper_program().with_name(p)).st_mode & 0o7000 for p in HELPER_PROGRAMS)
    done = by_hand("containers", "list_containers", HOST_HELPER_ENGINE_SOCKET=str(engine))
    assert done.returncode == 100 and done.stderr.startswith("internal\ncontainer engine: ") and done.stdout == ""
    for words, env, want in (("containers stop_container", {}, "bad_args"), ("verbs tail_logs", {"VIW_LINES": "1001"}, "bad_args"),
                             ("containers stop_container", {"VIW_CONTAINER": "../x"}, "bad_args"),
                             ("verbs tail_logs", {"VIW_PRIORITY": "-1"}, "bad_args"),
                             ("verbs get_service_status", {"VIW_UNIT": "--all"}, "bad_args"), ("verbs ECHO", {}, "verb_not_allowed"),
                             ("verbs create_panel_user", {}, "verb_not_allowed"), ("verbs", {}, "verb_not_allowed"),
                             ("verbs list_containers", {}, "verb_not_allowed"), ("verbs tail_logs more", {}, "verb_not_allowed")):
        done = by_hand(*words.split(), **env)
        assert done.returncode == 100 and done.stderr.startswith(want + "\n") and done.stdout == "", (words, env, done)
    assert json.loads(by_hand("verbs", "get_system_health").stdout)["mem_total_bytes"] > 0


def test_a_user_of_a_manifest_keeps_the_capabilities_it_declares(helper):
    secret = helper.root / "roots"
    secret.write_text("for root\n")
    secret.chmod(0o600)
    body = f"grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f2; cat {secret}; echo x >>{secret}; chown nobody {secret}; true"
    helper.verb("reader", body, run_as="nobody", capabilities=["CAP_DAC_READ_SEARCH"])
    helper.verb("none", body, run_as="nobody", capabilities=[])
    helper.verb("unsaid", body, run_as="nobody")
    helper.start()
    assert helper.run("reader")["stdout"].splitlines() == [f"{1 << 2:016x}"] * 4 + ["for root"]
    for verb in ("none", "unsaid"):
        assert helper.run(verb)["stdout"].splitlines() == ["0" * 16] * 4
    assert secret.read_text() == "for root\n" and secret.stat().st_uid == 0


def test_the_process_of_a_built_in_verb_is_nobody_elses_to_read(start, root_dir, engine):
    """Another process of nobody's must not find a password in its memory."""
    plain = viwtest.plain_build()
    if not plain or not (plain / HELPER_PROGRAMS[-1]).exists():
        pytest.skip("no build without AddressSanitizer, which needs its programs dumpable: ./viw build release")
    h = Helper(lambda program, **kw: start(program, bin_dir=plain, **kw), root_dir, HOST_HELPER_ENGINE_SOCKET=str(engine)).start()
    c = h.client()
    c.send(verb="spawn_container", args={"userpass": "hunter22"}, correlation_id="c-1", deadline=viwtest.rfc3339(60))

    def process():
        return [p for p in os.listdir("/proc") if p.isdigit() and name_of(p) == "host-helper-con"]
    pid = wait_for(lambda: [p for p in process() if parent_of(parent_of(p)) == str(h.proc.pid)])[0]
    wait_for(lambda: os.stat(f"/proc/{pid}/environ").st_uid == 0, what="it is not dumpable")
    os.kill(int(pid), signal.SIGKILL)
    assert code(c.recv()) == "outcome_unknown"


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as f:
            return f.read().strip()
    except OSError:
        return None


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[1]
