"""What ./viw test makes of its lanes' failures: what was too late is asked once more, what was wrong never."""
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANES = """
say() { echo "== $*"; }
as_root() { "$@"; }
. tools/test.sh
report=$(mktemp -d); trap 'rm -rf "$report"' EXIT
xml() { printf '<testsuite name="p" errors="%s" failures="%s" skipped="0" tests="%s">' 0 "$2" "$3" >"$report/$1.xml"; }
test_pytest() {
	local lane=$1; shift
	case $lane in
	first) xml first "$FIRST" 10; [ -z "$LATE" ] || printf "$LATE" >>"$report/late" ;;
	second) xml second 0 10 ;;
	last) xml last "$LAST" 10 ;;
	'') echo "again: $*"; xml all "$AGAIN" "$#" ;;
	esac
	[ "$lane" != "$BROKEN" ]
}
test_lanes tests
test_verdict
"""


def verdict(late="", first=0, last=0, again=0, broken="none"):
    env = dict(os.environ, FIRST=str(first), LATE=late, LAST=str(last), AGAIN=str(again), BROKEN=broken)
    done = subprocess.run(["bash", "-eu", "-c", LANES], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, timeout=20)
    lines = done.stdout.splitlines()
    return done.returncode, lines[-1], [line for line in lines if line.startswith("again")]


@pytest.mark.parametrize("what, returncode, last_line, again", [
    (dict(), 0, "30 passed, 0 failed", []),
    (dict(first=1, late="late a::b\\n"), 0, "30 passed, 0 failed", ["again: a::b"]),
    (dict(first=1, late="late a::b[x y]\\n", again=1), 1, "29 passed, 1 failed", ["again: a::b[x y]"]),
    (dict(first=1, late="wrong a::b\\n"), 1, "29 passed, 1 failed", []),
    (dict(first=2, late="late a::b\\nwrong a::c\\n"), 1, "28 passed, 2 failed", []),
    (dict(first=4, late="late a\\nlate b\\nlate c\\nlate d\\n"), 1, "26 passed, 4 failed", []),
    (dict(last=1), 1, "29 passed, 1 failed", []),
    (dict(first=1, late="late a::b\\n", last=1), 1, "28 passed, 2 failed", []),
    (dict(first=1), 1, "29 passed, 1 failed", []),  # a lane that broke without a note
    (dict(broken="first"), 1, "30 passed, 1 failed", []),  # every test it reports passed, but it was cut short
    (dict(broken="second"), 1, "30 passed, 1 failed", []),
    (dict(broken="last"), 1, "30 passed, 1 failed", []),
    (dict(first=1, late="late a::b\\n", broken=""), 1, "29 passed, 1 failed", ["again: a::b"]),
])
def test_only_what_was_too_late_is_asked_again(what, returncode, last_line, again):
    assert verdict(**what) == (returncode, last_line, again)


RUN = """
. tools/common.sh
. tools/test.sh
for f in packages_need build_preset test_clang_build ctest; do eval "$f() { :; }"; done
as_root() { "$@"; }
test_pytest() { echo "lane $1"; echo '<testsuite tests="1">' >"$report/$1.xml"; env --default-signal=INT sh -c ': >"$DIR/$0"; exec sleep 60' "$1"; }
test_main
"""


def test_an_interrupted_run_ends_and_gives_no_verdict(tmp_path):
    run = subprocess.Popen(["env", "--default-signal=INT", "bash", "-euo", "pipefail", "-c", RUN], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, env=dict(os.environ, DIR=str(tmp_path), TMPDIR=str(tmp_path)), start_new_session=True)
    end = time.monotonic() + 20
    while not ((tmp_path / "first").exists() and (tmp_path / "second").exists()):
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    out = run.communicate(timeout=20)[0]
    assert run.returncode == 130 and "passed" not in out, out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"], "no lane more, no report left"


def test_a_late_test_and_a_wrong_one_are_told_apart(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import sys\nsys.path.insert(0, %r)\nimport viwtest\n"
        "def test_late():\n    viwtest.wait_for(lambda: False, 0.01)\n"
        "def test_wrong():\n    assert 1 == 2\n" % str(ROOT / "tests/lib"))
    (tmp_path / "conftest.py").symlink_to(ROOT / "tests/conftest.py")
    note = tmp_path / "late"
    env = {k: v for k, v in os.environ.items() if k != "VIW_TEST_LANE"}
    subprocess.run(["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
                   env=dict(env, VIW_TEST_LATE=str(note), PYTHONPATH=str(ROOT / "tests/lib")), timeout=60,
                   stdout=subprocess.DEVNULL)
    assert note.read_text().split("\n")[:2] == ["late test_x.py::test_late", "wrong test_x.py::test_wrong"]
