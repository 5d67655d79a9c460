"""No program leaves a core dump that could hold a secret, not even where an administrator has raised the limit."""
import os
import resource
import signal

import pytest

import viwtest


@pytest.fixture
def bin_dir():
    path = viwtest.plain_build()
    if path is None:
        pytest.skip("no build without AddressSanitizer, which needs its programs dumpable: ./viw build release")
    return path


def dumps_core(proc):
    """Raises the limit from outside, as `prlimit` does, and crashes it."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.prlimit(proc.pid, resource.RLIMIT_CORE, unlimited)
    except PermissionError:
        pass  # a hard limit of 0 binds root too where it lacks CAP_SYS_RESOURCE
    os.kill(proc.pid, signal.SIGSEGV)
    _, status = os.waitpid(proc.pid, 0)
    proc.popen.returncode = -os.WTERMSIG(status)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV
    return os.WCOREDUMP(status)


def test_programs_leave_no_core_dump(redis, pg, start, root_dir, bin_dir, tmp):
    control = viwtest.Proc(["sleep", "60"], name="sleep", dir=tmp, cwd=tmp)
    if not dumps_core(control):
        pytest.skip("this kernel dumps no cores here at all")
    key = viwtest.write_secret(root_dir / "secret", "k" * 64)
    (root_dir / "verbs.d").mkdir()
    state = tmp / "state"
    state.mkdir()
    state.chmod(0o777)
    port = [viwtest.free_port() for _ in range(4)]
    programs = {
        "agent-bridge": {"AGENT_BRIDGE_BIND": f"127.0.0.1:{port[0]}", "AGENT_BRIDGE_REDIS_URL": redis.unix_url,
                         "AGENT_BRIDGE_SHARED_SECRET": "x" * 32},
        "telemetry-writer": {"TELEMETRY_WRITER_REDIS_URL": redis.unix_url, "TELEMETRY_WRITER_DATABASE_URL": pg.uri,
                             "TELEMETRY_WRITER_INTERNAL_BIND": f"127.0.0.1:{port[1]}"},
        "results-writer": {"RESULTS_WRITER_REDIS_URL": redis.unix_url, "RESULTS_WRITER_DATABASE_URL": pg.uri,
                           "RESULTS_WRITER_INTERNAL_BIND": f"127.0.0.1:{port[2]}"},
        "gateway-agent": {"VIW_AGENT_BACKEND_URL": f"ws://127.0.0.1:{port[0]}/agent/ws", "VIW_AGENT_ID": "gw-1",
                          "VIW_AGENT_SHARED_SECRET": "x" * 32, "VIW_AGENT_STATE_DIR": str(state)},
        "host-helper": {"HOST_HELPER_SOCKET": str(root_dir / "helper.sock"), "HOST_HELPER_SECRET_FILE": str(key),
                        "HOST_HELPER_VERBS_DIR": str(root_dir / "verbs.d"),
                        "HOST_HELPER_STATE_DIR": str(root_dir / "state")},
    }
    dumped = []
    for name, env in programs.items():
        user = None if name == "host-helper" else "nobody"
        p = start(name, env=env, bin_dir=bin_dir, cwd=tmp, user=user)
        viwtest.wait_for(lambda: '"ts"' in p.text or not p.alive, 10, f"{name} says something")
        viwtest.time.sleep(0.3)
        assert p.alive, p.tail()
        # What the kernel will not dump, its own user may not read either (PR_SET_DUMPABLE).
        assert user is None or os.stat(f"/proc/{p.pid}/environ").st_uid == 0, name
        if dumps_core(p):
            dumped.append(name)
    assert dumped == []
