"""What is generated or quoted in the documents agrees with the tree."""
import os
import re
import subprocess
from pathlib import Path

import pytest
import viwtest

ROOT = viwtest.ROOT
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / folder / "README.md" for folder in ("host-helper", "bench", "compose/nginx", "tests/chaos")),
                *ROOT.glob("docs/*.md"), *ROOT.glob("runbooks/*.md")])


@pytest.mark.timeout(120)
def test_generated_documents_are_fresh():
    done = subprocess.run([ROOT / "viw", "docs", "--check"], env={**os.environ, "VIW_BIN": str(viwtest.BIN)},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def anchors(page):
    """What headings are called in links."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(page):
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            there = page.parent / target if target else page
            if not there.exists() or anchor and anchor not in anchors(there):
                missing.append(f"{target}#{anchor}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_named_in_documents_exist(page):
    """`lib/x/y.c`-like words in backquotes are files or folders of the tree."""
    missing = []
    for word in re.findall(r"`((?:lib|agent-bridge|workers|gateway-agent|host-helper|sql|tests|tools|viwctl|bench|"
                           r"compose|runbooks|docs|demo)/[\w./-]*[\w/])`", page.read_text()):
        if "NN" not in word and not (ROOT / word).exists():
            missing.append(word)
    assert not missing


def test_every_word_of_viw_is_in_help_and_every_quoted_word_exists():
    words = set(re.findall(r"^([a-z-]+) *\|word_", (ROOT / "viw").read_text(), re.M))
    shown = subprocess.run([ROOT / "viw", "help"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert words <= set(re.findall(r"^  ([a-z-]+) ", shown, re.M))
    for page in PAGES:
        for word in re.findall(r"\./viw ([a-z-]+)", page.read_text()):
            assert word in words, f"{page.name}: ./viw {word}"


def walk_steps():
    """(file, function) pairs of ARCHITECTURE.md's walks: a function belongs to the file named last
    before it, unless it is one of another file's (then that file is searched too)."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    walks = text[text.index("## The walk of one TELEMETRY"):text.index("## Why a command is exact")]
    names = []
    for step in re.split(r"^\d+\. |^\n", walks, flags=re.M):
        files = [w for w in re.findall(r"`([\w./-]+\.(?:c|lua))`", step)]
        for name in re.findall(r"`([a-z]\w*_\w+|route|take|judge|step|start|ack|finish|supervise)`", step):
            if not name.startswith(("os_gateway", "agent_command")):  # tables
                names.append((tuple(files), name))
    return names


def test_the_walks_lead_through_functions_that_exist():
    lost = []
    for files, name in walk_steps():
        here = [f for f in files if "/" in f]
        if not any(re.search(rf"\b{name}\b", (ROOT / f).read_text()) for f in here):
            lost.append(f"{name} is in none of {here}")
    assert len(walk_steps()) > 60 and not lost, "\n".join(lost)


def tree_files():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], stdout=subprocess.PIPE, text=True).stdout.split()
    return [f for f in listed or [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.*") if "build" not in p.parts]
            if (ROOT / f).is_file()]


@pytest.fixture(scope="module")
def tree():
    """Names of files, and every word of the sources (documents excepted)."""
    files = tree_files()
    words = set()
    for f in files:
        if not f.endswith((".md", ".json")) and "corpus/" not in f:
            words.update(re.findall(r"\w+", (ROOT / f).read_text("utf-8", "replace")))
    return {Path(f).name for f in files}, words


# Not of this tree: a constant of the kernel, a pattern, a file that viwctl enroll makes, words of nginx.
ELSEWHERE = {"SOCK_SEQPACKET", "module_verb_noun", "install.sh", "proxy_protocol", "ssl_preread"}


def quoted(page):
    """What stands in backquotes, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S))


# Not bench/: its profiles name functions of the kernel and of libraries.
@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "bench"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_names_in_documents_are_names_in_the_tree(page, tree):
    """A file name without a folder, a C function or column with an underscore, a setting, a key of Redis."""
    names, words = tree
    lost = []
    for text in set(quoted(page)) - ELSEWHERE:
        if re.fullmatch(r"[\w.-]+\.(?:c|h|def|py|sh|lua|sql|service|socket)", text):
            lost += [] if text in names else [text]
        elif re.fullmatch(r"[A-Za-z]\w*_\w+(?:\(.*\))?", text):
            word = text.split("(")[0]
            prefix = re.match(r"(?:AGENT_BRIDGE|VIW_AGENT|HOST_HELPER|TELEMETRY_WRITER|RESULTS_WRITER|VIWCTL)_", word)
            known = word in words or prefix and word[prefix.end():].removesuffix("_FILE") in words
            lost += [] if known or "SERVICE" in word else [text]
        elif key := re.fullmatch(r"viw\.(\w+)(?:\.<\w+>)?", text):
            lost += [] if key[1] in words else [text]
    assert not lost


def test_quoted_words_of_viwctl_exist():
    words = set(re.findall(r'^SUBCOMMAND\("([\w-]+)"', (ROOT / "viwctl" / "subcommands.def").read_text(), re.M)) | {"help"}
    for page in PAGES:
        for word in re.findall(r"\bviwctl ([a-z][a-z-]+)", "\n".join(quoted(page))):
            assert word in words, f"{page.name}: viwctl {word}"


def test_the_makefile_has_the_names_operators_know_each_one_line_over_viw():
    for program in ("agent-bridge", "telemetry-writer", "results-writer"):
        for what, line in (("build", f"./viw build release {program}"), ("up", f"./viw run {program}"),
                           ("logs", f"./viw logs {program}")):
            done = subprocess.run(["make", "-n", f"{program}-{what}"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)
            assert done.returncode == 0 and done.stdout.strip() == line, done.stdout
