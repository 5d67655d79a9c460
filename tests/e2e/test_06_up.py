"""`./viw up`, as a newcomer uses it, on this tree's build under test."""
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import viwtest

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as ./viw up does"),
              pytest.mark.timeout(180)]

README = (viwtest.ROOT / "README.md").read_text()


def test_the_two_commands_of_readme_are_the_ones_that_are_tested():
    """`./viw up` below, `./viw test` by continuous integration."""
    assert re.findall(r"^```sh\n(.*?)```", README, re.M | re.S) == ["./viw up\n", "./viw test\n"]
    assert re.search(r"^\./viw test$", (viwtest.ROOT / ".ci" / "run").read_text(), re.M)


class Viw:
    """Runs ./viw with its data in a directory of its own and the build under test."""

    def __init__(self, dir):
        self.up_dir = dir / "up"
        self.env = {"PATH": os.environ["PATH"], "HOME": "/root", "TERM": "dumb", "VIW_UP_DIR": str(self.up_dir),
                    "VIW_PRESET": viwtest.BIN.parent.name}

    def __call__(self, *words, env={}):
        return subprocess.run([viwtest.ROOT / "viw", *words], env={**self.env, **env}, text=True, timeout=120,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def viw():
    """One directory for the module, as a newcomer has one: tests go from a first `up` to the wipe."""
    dir = viwtest.make_root_dir()
    run = Viw(dir)
    yield run
    run("down")
    shutil.rmtree(dir, ignore_errors=True)


def programs_of(up_dir):
    return [int(p.read_text().split()[0]) for p in (up_dir / "pid").glob("*") if p.name != "up" and p.read_text()]


def test_once_runs_two_commands_and_leaves_nothing_behind(viw):
    done = viw("up", "--once")
    assert done.returncode == 0, done.stdout
    assert re.search(r"get_system_health +done after \d+ ms", done.stdout)
    assert re.search(r"leave_note +done after \d+ ms", done.stdout)
    assert re.search(r"result row \w+ leave_note +done, rc 0, .*note 1 on .*: the spine stands", done.stdout)
    assert len(set(re.findall(r"telemetry .* frame (\d+)", done.stdout))) >= 2
    assert programs_of(viw.up_dir) == []

    again = viw("up", "--once")
    assert again.returncode == 0, again.stdout
    assert "note 2 on" in again.stdout, "what an earlier run did is still there"
    assert int(re.search(r"Everything runs, after (\d+) ms", again.stdout)[1]) < 5000  # < 2000 in a release build


def test_second_terminal_and_interrupt(viw):
    log = open(viw.up_dir.parent / "out", "w+")
    # A shell's background job ignores SIGINT, and so would all that it starts.
    up = subprocess.Popen(["env", "--default-signal=INT", viwtest.ROOT / "viw", "up"], env=viw.env, stdout=log, stderr=subprocess.STDOUT,
                          start_new_session=True)

    def text():
        log.seek(0)
        return log.read()
    try:
        viwtest.wait_for(lambda: "Ctrl-C ends" in text() or up.poll() is not None, 60, "up prints what to try")
        assert up.poll() is None, text()
        pids = programs_of(viw.up_dir)
        assert len(pids) == 7
        assert viw("up", "--once").returncode != 0, "a second up refuses"
        agent = (viw.up_dir / "pid" / "gateway-agent").read_text().split()[0]
        assert os.stat(f"/proc/{agent}").st_uid != 0

        # What up printed to try, tried as printed.
        for line in re.findall(r"^  ((?:redis-cli|psql|curl) .*)$", text(), re.M):
            tried = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert tried.returncode == 0 and tried.stdout.strip(), f"{line}\n{tried.stdout}"
            assert "error" not in tried.stdout.lower(), f"{line}\n{tried.stdout}"
        # What README says to try.
        for line in re.search(r"```sh try\n(.*?)```", README, re.S)[1].splitlines():
            tried = subprocess.run(["bash", "-c", line], env=viw.env, cwd=viwtest.ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert tried.returncode == 0 and tried.stdout.strip() and "rror" not in tried.stdout, f"{line}\n{tried.stdout}"
        viwtest.wait_for(lambda: re.search(r"result row note-\S* *leave_note +done", text()), 15,
                         "the hand-made command shows in the first terminal")
        assert "leave_note" in viw("psql", "-c", "SELECT command FROM agent_commands").stdout
        assert viw("redis", "PING").stdout == "PONG\n"
        viw("redis", "XADD", "viw.commands", "*", "nonsense", "1")
        viwtest.wait_for(lambda: "viw.commands" in viw("dead-letters").stdout, 20, "nonsense is a dead letter")

        os.killpg(up.pid, signal.SIGINT)  # as a terminal does
        up.wait(30)
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    finally:
        if up.poll() is None:
            up.kill()
            viw("down")  # what it started


def test_what_was_started_ends_at_once_whatever_was_being_read(tmp):
    """An interrupt that came inside `IFS=… read` left its IFS to what stops the programs: they were not recognized."""
    (tmp / "pid").mkdir()
    script = r"""source tools/common.sh; source tools/up.sh; UP_DIR=$1; sleep 60 & p=$!
        echo "$p $(up_start_time $p)" >$UP_DIR/pid/redis; IFS=$'\t'; up_stop; ! kill -0 $p 2>/dev/null"""
    began = time.monotonic()
    done = subprocess.run(["bash", "-c", script, "bash", tmp], cwd=viwtest.ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and time.monotonic() - began < 8, done.stdout


def test_it_says_why_when_a_program_cannot_start(viw):
    broken = viw.up_dir / "verbs.d" / "broken.json"
    broken.write_text("{")
    try:
        done = viw("up", "--once")
    finally:
        broken.unlink()
    assert done.returncode != 0
    assert "broken.json" in done.stdout, done.stdout


def test_given_servers_are_used_and_left_alone(root_dir, redis, pg):
    viw = Viw(root_dir)
    done = viw("up", "--once", env={"VIW_REDIS_URL": redis.url, "VIW_DATABASE_URL": pg.uri})
    assert done.returncode == 0, done.stdout
    assert redis.client.xinfo_groups("viw.commands")[0]["entries-read"] == 2
    assert len(pg.query("SELECT 1 FROM agent_command_results WHERE status = 'done'")) == 2
    assert not (viw.up_dir / "redis" / "appendonlydir").exists()
    assert not (viw.up_dir / "pg" / "data").exists()
    assert redis.proc.alive


def test_down_wipe_forgets(viw):
    assert viw("down", "--wipe").returncode == 0
    assert not viw.up_dir.exists()
