"""Alert rules and runbooks agree with each other, with the metrics, and with promtool."""
import json
import re
import subprocess

import pytest
import viwtest

RULES = viwtest.ROOT / "compose" / "prometheus"
TEXT = (RULES / "alerts.yml").read_text()


@pytest.mark.parametrize("words", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"],
                                   ["check", "config", "--syntax-only", "prometheus.yml"]], ids=["check", "test", "config"])
def test_promtool_is_content(words):
    done = subprocess.run(["promtool", *words], cwd=RULES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_every_alarm_has_a_page_and_is_in_the_index():
    index = (viwtest.ROOT / "runbooks" / "README.md").read_text()
    alarms = re.findall(r"alert: (\w+)", TEXT)
    pages = re.findall(r"runbook: (\S+)", TEXT)
    assert len(alarms) == len(pages) > 10
    assert [a for a in alarms if a not in index] == []
    for alarm, page in zip(alarms, pages, strict=True):
        assert alarm in (viwtest.ROOT / page).read_text(), f"{page} does not name {alarm}"
        assert re.search(rf"^\| .*\b{alarm}\b.* \| \[{page.removeprefix('runbooks/')}\]", index, re.M), f"README.md: {alarm}"


def test_every_alarm_is_tried_by_the_rule_tests():
    tried = (RULES / "alerts_test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tried))
    assert set(re.findall(r"alert: (\w+)", TEXT)) == fired


def test_rules_use_metrics_that_exist():
    known = set(re.findall(r"`(viw_\w+)", (viwtest.ROOT / "docs" / "metrics.md").read_text()))
    used = {re.sub(r"_bucket$", "", m) for m in re.findall(r"\b(viw_\w+)", TEXT)}
    assert used <= known, used - known


def test_the_dashboard_asks_for_metrics_and_records_that_exist(tmp):
    board = json.loads((viwtest.ROOT / "compose" / "grafana" / "viworks.json").read_text())
    asked = [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
    known = set(re.findall(r"`(viw_\w+)", (viwtest.ROOT / "docs" / "metrics.md").read_text()))
    records = set(re.findall(r"record: (\S+)", TEXT))
    for expr in asked:
        names = re.findall(r"\bviw[_:][\w:]+", expr)
        assert names and all(re.sub(r"_bucket$", "", n) in known | records for n in names), expr
    # Prometheus itself parses every one of them.
    rules = {"groups": [{"name": "x", "rules": [{"record": f"r{i}", "expr": e} for i, e in enumerate(asked)]}]}
    (tmp / "rules.json").write_text(json.dumps(rules))
    done = subprocess.run(["promtool", "check", "rules", tmp / "rules.json"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert len(asked) > 15 and done.returncode == 0, done.stdout
