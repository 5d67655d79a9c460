"""Words of ./viw do what they were told or refuse: an option that is misspelt, or a number that is none, is never
taken for its absence."""
import re
import shutil
import subprocess

import pytest
import viwtest


@pytest.mark.parametrize("line", [
    "package --chek", "docs --chek", "up --onec", "up --once more", "down --wpie", "demo --onec", "images --prebuild",
    "images no-such-target", "first-day --debs", "first-day now", "fmt --chek", "fmt no-such-commit", "test -k", "build no-such-preset",
    "run no-such-program", "debian 13"])
def test_what_is_not_understood_is_named_and_nothing_begins(line, tmp):
    done = subprocess.run([viwtest.ROOT / "viw", *line.split()], text=True, cwd=tmp, timeout=20, stdin=subprocess.DEVNULL,
                          env={"PATH": "/usr/bin:/bin", "VIW_UP_DIR": str(tmp / "up"), "HOME": str(tmp)},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 64 and done.stdout == "", done
    assert f"'{line.split()[-1]}' is not understood; usage: ./viw {line.split()[0]}" in done.stderr
    assert not (tmp / "up").exists()


def test_viw_may_be_edited_while_a_word_is_at_work(tmp):
    (tmp / "tools").mkdir()
    shutil.copy(viwtest.ROOT / "viw", tmp / "viw")
    shutil.copy(viwtest.ROOT / "tools" / "common.sh", tmp / "tools")
    (tmp / "tools" / "up.sh").write_text("up_down() { echo 'echo edited' >>viw; }\n")
    done = subprocess.run([tmp / "viw", "down"], text=True, timeout=20, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck, as ./viw fmt does")
def test_shellcheck_says_nothing_of_any_script():
    done = subprocess.run(["bash", "-c", ". tools/common.sh; . tools/fmt.sh; fmt_scripts"], cwd=viwtest.ROOT, text=True, timeout=50,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and int(re.search(r"(\d+) scripts", done.stdout)[1]) > 20, done.stdout


@pytest.mark.parametrize("word", ["run", "debian"])
def test_a_word_that_is_missing_is_asked_for(word):
    done = subprocess.run([viwtest.ROOT / "viw", word], text=True, timeout=20, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 64 and done.stdout == "" and f"a word is missing; usage: ./viw {word}" in done.stderr, done


@pytest.mark.parametrize("line", ["logs", "logs agent-bridge", "psql", "redis", "viwctl", "dead-letters"])
def test_what_looks_at_up_says_when_nothing_was_started(line, tmp):
    done = subprocess.run([viwtest.ROOT / "viw", *line.split()], text=True, timeout=20, stdin=subprocess.DEVNULL,
                          env={"PATH": "/usr/bin:/bin", "VIW_UP_DIR": str(tmp / "up")}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "viw: nothing was started here yet: ./viw up\n")


def test_builds_of_one_preset_take_turns_and_others_do_not_wait(tmp):
    script = """. "$0/tools/common.sh"; build_alone() { echo "$1 begins"; until [ -e "$1.go" ]; do sleep 0.02; done; rm "$1.go"; echo "$1 ends"; }
        build_preset x >1 & until grep -q begins 1; do sleep 0.02; done
        build_preset x >2 & until grep -q 'built by somebody else; waiting' 2; do sleep 0.02; done
        : >y.go; build_preset y; grep begins 2 && exit 1; : >x.go; until grep -q begins 2; do sleep 0.02; done
        grep ends 1; : >x.go; wait; grep ends 2"""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script, viwtest.ROOT], cwd=tmp, text=True, timeout=20, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout == "y begins\ny ends\nx ends\nx ends\n", done


@pytest.mark.parametrize("line", ["up --help", "up -h", "down --help", "test --help", "package -h", "first-day --help", "run --help"])
def test_help_of_a_word_is_its_line_and_nothing_begins(line, tmp):
    done = subprocess.run([viwtest.ROOT / "viw", *line.split()], text=True, cwd=tmp, timeout=20, stdin=subprocess.DEVNULL,
                          env={"PATH": "/usr/bin:/bin", "VIW_UP_DIR": str(tmp / "up"), "HOME": str(tmp)},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == "", done
    assert done.stdout.startswith(f"./viw {line.split()[0]}: ") and done.stdout.count("\n") == 1
    assert not (tmp / "up").exists()


@pytest.mark.parametrize("line", ["--seconds 12abc", "--seconds", "--seconds 0", "--runs -1", "--runs 1e3", "--secnds 5", "no_such_target"])
def test_the_fuzzers_refuse_what_is_no_number_option_or_target(line):
    done = subprocess.run([viwtest.ROOT / "tests" / "fuzz" / "run", *line.split()], text=True, timeout=20,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 78 and done.stdout == "" and ("usage:" in done.stderr or "no target" in done.stderr)
