"""A short seeded round of chaos, and the proof that the harness would notice broken promises."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHAOS_BIN = HERE.parents[1] / "build" / "chaos" / "bin"
PROGRAMS = ("agent-bridge", "results-writer", "telemetry-writer", "gateway-agent", "host-helper", "viw-migrate")


def chaos(*args, timeout):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [p for p in PROGRAMS if not (CHAOS_BIN / p).exists()]
    if missing:
        pytest.skip(f"not built: {', '.join(missing)} (cmake --build --preset chaos)")
    done = subprocess.run([sys.executable, str(HERE / "chaos.py"), *args], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=timeout,
                          env={**os.environ, "VIW_BIN": str(CHAOS_BIN), "PYTHONDONTWRITEBYTECODE": "1"})
    print(done.stdout)
    return done


@pytest.mark.timeout(180)
def test_two_rounds_of_chaos_end_without_a_violation():
    done = chaos("--seed", os.environ.get("VIW_CHAOS_SEED", "20261120"), "--rounds", "2", "--seconds", "12",
                 "--rate", "40", "--bound", "60", "--verbose", timeout=170)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(60)
def test_nothing_comes_on_a_connection_that_was_superseded():
    """The same as the fencing control below, with fencing on."""
    done = chaos("--seed", "7", "--rounds", "1", "--seconds", "8", "--faults", "two_faced", "--bound", "20",
                 timeout=55)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize("promise", ["fencing", "journal", "dedupe"])
def test_a_broken_promise_is_noticed(promise):
    done = chaos("--seed", "7", "--rounds", "1", "--seconds", "8", "--off", promise, "--bound", "20",
                 timeout=115)
    assert done.returncode == 0, done.stdout
