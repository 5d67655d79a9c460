"""Whoever is called at night finds every warning of the writers, and the metric beside it, in the runbooks."""
import re

from viwtest import ROOT

PAGE = (ROOT / "runbooks" / "writer-log.md").read_text()
SOURCES = sorted((ROOT / "workers").glob("*.c"))


def warned():
    for path in SOURCES:
        for call in re.findall(r"LOG_(?:WARN|ERROR)\((.*?)\);", path.read_text(), re.S):
            event = re.search(r"\.event = (.*?),\s*\.", call, re.S) or re.search(r"\.event = (.*?)\)", call, re.S)
            assert event, call
            yield from re.findall(r'"([a-z_]+)"', event[1])


def test_every_warning_of_the_writers_is_explained():
    events = set(warned())
    assert len(events) > 10
    assert {e for e in events if f"`{e}`" not in PAGE} == set()


def test_what_is_explained_exists():
    rows = [line.split("|")[1:] for line in PAGE.splitlines() if line.startswith("| `")]
    text = "".join(p.read_text() for p in SOURCES)
    metrics = (ROOT / "workers" / "worker_metrics.def").read_text()
    for row in rows:
        for event in re.findall(r"`(\w+)`", row[0]):
            assert f'"{event}"' in text, event
        for metric in re.findall(r"`(viw_\w+)`", row[2]):
            assert f'"{metric}"' in metrics, metric
