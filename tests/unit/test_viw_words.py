"""Words of ./viw do what they were told or refuse: an option that is misspelt, or a number that is none, is never
taken for its absence."""
import subprocess

import pytest
import viwtest


@pytest.mark.parametrize("line", [
    "package --chek", "docs --chek", "up --onec", "up --once more", "down --wpie", "demo --onec", "images --prebuild",
    "first-day --debs", "first-day now", "fmt --chek", "fmt no-such-commit", "test -k"])
def test_what_is_not_understood_is_named_and_nothing_begins(line, tmp):
    done = subprocess.run([viwtest.ROOT / "viw", *line.split()], text=True, cwd=tmp, timeout=20, stdin=subprocess.DEVNULL,
                          env={"PATH": "/usr/bin:/bin", "VIW_UP_DIR": str(tmp / "up"), "HOME": str(tmp)},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 64 and done.stdout == "", done
    assert f"'{line.split()[-1]}' is not understood; usage: ./viw {line.split()[0]}" in done.stderr
    assert not (tmp / "up").exists()


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
