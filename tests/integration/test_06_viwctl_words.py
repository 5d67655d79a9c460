"""viwctl's tables as people meet them: help, manual page, and completion in real shells."""
import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest
import viwtest

VIWCTL = viwtest.BIN / "viwctl"
DEFS = viwtest.ROOT / "viwctl"
WORDS = re.findall(r'^SUBCOMMAND\("([\w-]+)"', (DEFS / "subcommands.def").read_text(), re.M)
EXITS = re.findall(r"^EXIT\((\w+), (\d+)", (DEFS / "exits.def").read_text(), re.M)


def run(*words, **kwargs):
    return subprocess.run([VIWCTL, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}, timeout=20, **kwargs)


def test_every_word_has_help_that_is_not_an_error():
    assert len(WORDS) >= 12
    for word in WORDS:
        done = run(word, "--help")
        assert done.returncode == 0 and done.stdout.startswith(f"viwctl {word}") and not done.stderr, word
        done = run(word, "--no-such-option")
        assert done.returncode == 64 and f"viwctl {word}" in done.stderr, word


def test_every_option_of_a_word_is_in_its_help_and_no_two_share_a_key():
    options = re.findall(r'^OPTION\("([\w-]+)", "([\w-]+)", \'(\w)\'', (DEFS / "options.def").read_text(), re.M)
    assert len(options) > 30 and len({(w, k) for w, _, k in options}) == len(options)
    for word, name, _ in options:
        assert f"--{name}" in run(word, "--help").stdout, (word, name)


OPTIONS = re.findall(r'^OPTION\("([\w-]+)", "([\w-]+)", \'\w\', \w+, (?:NULL|"([^"]*)"), "([^"]*)"', (DEFS / "options.def").read_text(), re.M)
NUMBERS = [(word, name) for word, name, arg, _ in OPTIONS if arg in ("N", "M", "SECONDS")]
LISTS = [(word, name) for word, name, _, values in OPTIONS if values and not values.startswith("@")]


@pytest.mark.parametrize("word, name", NUMBERS, ids=lambda v: v)
def test_a_number_is_a_number_or_refused(word, name):
    assert len(NUMBERS) >= 7
    for text in ("12abc", "", " 5", "+5", "-1", "1e3", "0x10", "99999999999999999999"):
        done = run(word, f"--{name}={text}")
        assert done.returncode == 64 and f"--{name} must be" in done.stderr and f"'{text}'" in done.stderr, (text, done)


@pytest.mark.parametrize("word, name", LISTS, ids=lambda v: v)
def test_a_value_is_one_of_those_listed_or_refused(word, name):
    for text in ("9", "onlin", "", "online offline"):
        done = run(word, f"--{name}={text}")
        assert done.returncode == 64 and f"--{name} must be one of: " in done.stderr, (text, done)


@pytest.mark.parametrize("line", ["gateways gw-1 gw-2", "top now", "doctor now", "command a b", "cancel a b", "lost a b",
                                  "logs a b --unit u", "rotation-check now", "enroll a b", "completion bash zsh",
                                  "dead-letters list 5 6", "dead-letters list 5x", "dead-letters list 0",
                                  "dead-letters show 1 2", "send gw-1 ECHO message"])
def test_an_operand_too_many_or_that_is_none_is_refused(line):
    done = run(*line.split())
    assert done.returncode == 64 and done.stderr and not done.stdout, done


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp("man")
    subprocess.run([viwtest.ROOT / "tools" / "man.sh", out, viwtest.BIN], check=True)
    return out


def rendered(page):
    return subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", page], text=True, env={
        "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MANROFFSEQ": "", "PAGER": "cat"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(not shutil.which("man"), reason="no man here")
def test_manual_pages_have_no_warnings(pages):
    made = sorted(pages.glob("*.[18]"))
    assert [p.name for p in made] == ["agent-bridge.8", "gateway-agent.8", "host-helper-containers.8", "host-helper-verbs.8", "host-helper.8", "results-writer.8",
                                      "telemetry-writer.8", "viw-migrate.8", "viwctl.1"]
    for page in made:
        done = rendered(page)
        assert done.returncode == 0 and not done.stderr, f"{page.name}: {done.stderr}"
        assert len(done.stdout.splitlines()) > 10, page.name


@pytest.mark.skipif(not shutil.which("man"), reason="no man here")
def test_the_manual_of_viwctl_names_every_word_option_setting_and_exit_code(pages):
    text = rendered(pages / "viwctl.1").stdout
    for word in WORDS:
        assert f"viwctl {word}" in text, word
    for name in re.findall(r'^OPTION\("[\w-]+", "([\w-]+)"', (DEFS / "options.def").read_text(), re.M):
        assert f"--{name}" in text, name
    for name in re.findall(r'"([A-Z]+_[A-Z_]+)"', (DEFS / "viwctl_settings.def").read_text()):
        assert name in text, name
    status = text[text.index("EXIT STATUS"):]
    for name, code in EXITS:
        assert re.search(rf"^ +{code} ", status, re.M), name


# ---- completion ----

class Shell:
    """An interactive shell on a terminal; type() returns what appears until it is quiet."""

    def __init__(self, argv, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, env)

    def type(self, text, until):
        os.write(self.fd, text.encode())
        seen, end = "", time.monotonic() + 10
        while not re.search(until, seen):
            assert time.monotonic() < end, f"no {until!r} after {text!r}: {seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                seen += os.read(self.fd, 65536).decode(errors="replace")
        return seen

    def close(self):
        os.close(self.fd)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=["bash", "zsh"])
def shell(request, tmp, redis, pg, monkeypatch):
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} here")
    for agent in ("gw-north", "gw-south"):
        pg.query(f"INSERT INTO os_gateways (agent_id, status) VALUES ('{agent}', 'offline')")
    script = tmp / "_viwctl"
    script.write_text(run("completion", request.param).stdout)
    viwtest.write_verb(tmp / "verbs.d", "add_user", exec="/bin/true")
    env = {"PATH": f"{viwtest.BIN}:/usr/bin:/bin", "HOME": str(tmp), "TERM": "dumb", "LANG": "C.UTF-8",
           "VIWCTL_REDIS_URL": redis.url, "VIWCTL_DATABASE_URL": pg.uri, "VIWCTL_VERBS_DIR": str(tmp / "verbs.d"),
           "ASAN_OPTIONS": "exitcode=99"}
    (tmp / "request.csr").write_text("")
    monkeypatch.chdir(tmp)
    if request.param == "bash":
        s = Shell(["bash", "--norc", "--noprofile", "-i"], env)
        s.type(f"PS1='ready> '; bind 'set show-all-if-ambiguous on'; source {script}; echo do''ne\n", "done\r?\n")
    else:
        s = Shell(["zsh", "-f", "-i"], env)
        s.type(f"PS1='ready> '; unsetopt zle_bracketed_paste; autoload -U compinit; compinit -D -u; "
               f"source {script}; echo do''ne\n", "done\r?\n")
    yield s
    s.close()


@pytest.mark.parametrize("typed, completed", [
    ("viwctl gatew", "gateways "),
    ("viwctl gateways --st", "--status "),
    ("viwctl gateways --status onl", "online "),
    ("viwctl send gw-n", "gw-north "),
    ("viwctl send gw-north add_", "add_user "),
    ("viwctl send --all add_", "add_user "),
    ("viwctl logs gw-south --unit nginx.service --fol", "--follow "),
    ("viwctl dead-letters re", "retry "),
    ("viwctl enroll gw-x --csr req", "request.csr "),
], ids=lambda v: v.strip().replace(" ", "_"))
def test_tab_completes(shell, typed, completed):
    shell.type(typed + "\t", re.escape(completed))
