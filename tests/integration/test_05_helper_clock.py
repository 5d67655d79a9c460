"""Privilege: a host whose time of day is wrong. libfaketime moves the clocks of a real helper."""
import os
import signal
import subprocess
from pathlib import Path

import pytest

import viwtest
from bridges import LIBFAKETIME
from helperlib import MARK, Helper, code
from viwtest import helper_program, wait_for

DAY_MS = 86400 * 1000


@pytest.fixture
def helper(start, root_dir):
    h = Helper(start, root_dir)
    h.verb("note", MARK)
    return h.start()


@pytest.fixture
def nine_days_ahead(start, helper):
    """Starts the helper anew, nine days ahead and 400 times as fast."""
    plain = viwtest.plain_build()
    if plain is None or not LIBFAKETIME.exists():
        pytest.skip("needs libfaketime, and a build without AddressSanitizer, which waits for it for ever: ./viw build release")

    def go():
        env = dict(helper.env, LD_PRELOAD=str(LIBFAKETIME), FAKETIME="+9d x400")
        helper.proc = start("host-helper", env=env, bin_dir=plain)
        helper.proc.wait_log("ready")
    return go


def seen_ms(helper):
    return int((helper.state / "journal.seen").read_text())


def children(helper):
    return Path(f"/proc/{helper.proc.pid}/task/{helper.proc.pid}/children").read_text().split()


def test_a_clock_that_is_ahead_takes_nothing_from_the_journal(helper, nine_days_ahead):
    """What may still be offered again is known, and does not run twice."""
    assert helper.run("note", cid="of-old")["rc"] == 0
    of_old, = helper.journal_files()
    helper.stop()
    seen = helper.state / "journal.seen"
    seen.write_text(f"{seen_ms(helper) + 8 * DAY_MS + 60000:020d}\n")  # for so long helpers ran since
    helper.start()
    assert helper.run("note", cid="of-today")["rc"] == 0
    helper.kill()
    nine_days_ahead()
    wait_for(lambda: not of_old.exists(), 10, "it ages")
    wait_for(lambda: not children(helper), 10, "it has aged")
    assert len(helper.journal_files()) == 1
    helper.kill()
    helper.start()
    again = helper.run("note", cid="of-today")
    assert again["rc"] == 0 and again["replayed"] is True
    assert helper.query("of-today", op="void")["data"]["state"] == "done"
    assert helper.starts("of-today") == 1


def test_the_time_it_was_seen_to_run_is_kept(helper, nine_days_ahead):
    helper.stop()
    before = seen_ms(helper)
    assert before >= 0
    nine_days_ahead()
    wait_for(lambda: seen_ms(helper) >= before + 120000, 10, "it is kept while it runs")
    kept = seen_ms(helper)
    helper.kill()
    assert kept <= seen_ms(helper) < before + DAY_MS  # by no wall clock


def test_the_next_helper_reads_the_count_that_the_last_one_wrote(start, helper):
    """Else the count would go ahead of what the next one notes in its files."""
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    helper.stop()
    before = seen_ms(helper)
    last = start("/usr/bin/strace", env=dict(helper.env, ASAN_OPTIONS="detect_leaks=0"), args=[
        "-qq", "-o", "/dev/null", "-P", str(helper.state / "journal.seen"), "-e", "inject=pwrite64:delay_enter=2000000",
        str(helper_program())])
    last.wait_log("ready")
    pid, = Path(f"/proc/{last.pid}/task/{last.pid}/children").read_text().split()
    os.kill(int(pid), signal.SIGTERM)
    last.wait_log("stopped")
    helper.start()
    after = seen_ms(helper)
    assert last.wait_exit(10) == 0
    assert before < after == seen_ms(helper)


def test_without_room_for_the_count_outcomes_are_told(start, root_dir):
    """As after an upgrade from a helper that kept no count, on a disk without free inodes."""
    state = root_dir / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=60,mode=0700", "tmpfs", str(state)], check=True)
    try:
        helper = Helper(start, root_dir)
        helper.verb("note", MARK)
        helper.start()
        assert helper.run("note", cid="before")["rc"] == 0
        helper.stop()
        (state / "journal.seen").unlink()
        with pytest.raises(OSError):
            for i in range(100):
                (state / f"fill{i}").touch()
        helper.start()
        assert helper.run("note", cid="before")["replayed"] is True
        assert code(helper.run("note", cid="after")) == "internal"
        (state / "fill0").unlink()
        helper.stop()
        assert not (state / "journal.seen").exists()
        helper.start()
        assert helper.run("note", cid="before")["replayed"] is True and helper.starts("before") == 1
        helper.stop()
        assert seen_ms(helper) > 0
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)
