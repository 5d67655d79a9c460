"""The commands in runbooks that only look (blocks marked `sh run`) work as they stand."""
import os
import re
import subprocess

import pytest
import viwtest

PAGES = sorted((viwtest.ROOT / "runbooks").glob("*.md"))


def blocks(page):
    return re.findall(r"^ *```sh run\n(.*?)^ *```", page.read_text(), re.M | re.S)


@pytest.mark.timeout(120)
def test_commands_of_every_runbook_run(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-book"))
    ws.hello("gw-book")
    ws.send({"type": "TELEMETRY", "agent_id": "gw-book", "ts": viwtest.rfc3339(), "metrics": {"helper": "down"}})
    chain.pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-book'")
    chain.redis.xadd_command("gw-book", "ECHO")
    ws.expect("COMMAND")
    env = {"PATH": os.environ["PATH"], "REDIS_URL": chain.redis.url, "DATABASE_URL": chain.pg.uri,
           "BRIDGE": chain.http_url, "ADMIN": "/dev/null", "PAGER": "cat"}
    faults, ran = [], 0
    for page in PAGES:
        for block in blocks(page):
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], env=env, timeout=30,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            ran += 1
            if done.returncode or re.search(r"^\(error\)|^ERR ", done.stdout, re.M):
                faults.append(f"{page.name}: exit {done.returncode}\n{block}\n{done.stdout}")
    assert ran >= 12 and not faults, "\n".join(faults)
