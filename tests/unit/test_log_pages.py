"""Whoever is called at night finds every warning of bridge, writers and agent, and the metric beside it, in the runbooks."""
import re

import pytest
from viwtest import ROOT

# page, its program's folder and metrics
PAGES = [("bridge-log.md", "agent-bridge", "bridge_metrics.def"), ("writer-log.md", "workers", "worker_metrics.def"),
         ("agent-log.md", "gateway-agent", "agent_metrics.def")]


def sources(folder):
    return [path.read_text() for path in sorted((ROOT / folder).glob("*.c"))]


def warned(folder):
    for text in sources(folder):
        for call in re.findall(r"LOG_(?:WARN|ERROR|AT)\((.*?)\);", text, re.S):
            event = re.search(r"\.event = (.*?),\s*\.", call, re.S) or re.search(r"\.event = (.*?)\)", call, re.S)
            assert event, call
            yield from re.findall(r'"([a-z_]+)"', event[1])


@pytest.mark.parametrize("page,folder,metrics", PAGES)
def test_every_warning_is_explained(page, folder, metrics):
    events, text = set(warned(folder)), (ROOT / "runbooks" / page).read_text()
    assert len(events) > 10
    assert {e for e in events if f"`{e}`" not in text} == set()


def test_every_reason_for_which_a_bridge_ends_a_socket_is_explained():
    reasons = set(re.findall(r'"([a-z]+_[a-z]+)"', (ROOT / "agent-bridge" / "heartbeat.c").read_text()))
    for text in sources("agent-bridge"):
        reasons |= set(re.findall(r'\b(?:[A-Z_]*CLOSE_[A-Z_\d]+,|close_reason =)\s+"(\w+)"', text))
    page = (ROOT / "runbooks" / "bridge-log.md").read_text().split("**Why a socket ended**")[1]
    assert len(reasons) > 15 and {r for r in reasons if f"`{r}`" not in page} == set()


@pytest.mark.parametrize("page,folder,metrics", PAGES)
def test_what_is_explained_exists(page, folder, metrics):
    rows = [line.split("|")[1:] for line in (ROOT / "runbooks" / page).read_text().splitlines() if line.startswith("| `")]
    start = "".join((ROOT / "lib" / "base" / name).read_text() for name in ("program.c", "log.c"))  # of every program
    text, table = start + "".join(sources(folder)), (ROOT / folder / metrics).read_text()
    assert rows
    for row in rows:
        for event in re.findall(r"`(\w+)`", row[0]):
            assert f'"{event}"' in text, event
        for metric in re.findall(r"`(viw_\w+)`", row[2]):
            assert f'"{metric}"' in table, metric
