"""What is generated or quoted in the documents agrees with the tree."""
import os
import re
import subprocess
from pathlib import Path

import pytest
import viwtest

ROOT = viwtest.ROOT
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("runbooks/*.md")])


@pytest.mark.timeout(120)
def test_generated_documents_are_fresh():
    done = subprocess.run([ROOT / "viw", "docs", "--check"], env={**os.environ, "VIW_BIN": str(viwtest.BIN)},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(page):
    missing = []
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
            missing.append(target)
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
