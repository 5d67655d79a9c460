"""The measurements themselves: one short run of each kind through the real generator."""
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("VIW_BIN", ROOT / "build/dev/bin"))


def bench(*args):
    r = subprocess.run([ROOT / "bench/run", "--no-results", *map(str, args)], capture_output=True, text=True, timeout=55,
                       env=os.environ | {"VIW_BIN": str(BIN)})
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


def test_fast_telemetry_from_many_sockets_is_stored_whole():
    """Pressure pauses sockets; it is no reason to shed while Redis answers."""
    out = bench("fanin", "--peers", "bridge", "--conns", 1000, "--rates", 0, "--scale", 0.2)
    assert re.search(r"frames 50,000  stored 50,000 ", out), out


def test_a_storm_of_mtls_clients_loses_none():
    out = bench("storm", "--conns", 300)
    assert re.search(r"clients 300  connected 300  failures {} ", out), out


@pytest.mark.timeout(50)
def test_agents_come_back_after_a_restart():
    assert out_of("back", 300) == 2


def out_of(name, conns):
    return len(re.findall(r"back_after_s", bench(name, "--conns", conns)))


def test_a_drain_tells_each_of_many_agents():
    """More than are closed at a time: every socket gets its 1001, and the bridge ends by itself."""
    sys.path.insert(0, str(ROOT / "bench"))
    os.environ.setdefault("VIW_BIN", str(BIN))
    from harness import Bench
    with Bench() as b:
        b.redis()
        server = b.bridge()
        load = b.load("bridge", "hold", 2500)
        assert load.event("ready", 40)["up"] == 2500
        server.stop(signal.SIGTERM, 20)
        assert server.popen.returncode == 0
        assert load.quit()["failures"] == {"closed 1001": 2500}
