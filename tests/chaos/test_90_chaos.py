"""A short seeded round of chaos, and the proof that the harness would notice broken promises."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[0] / "lib")]

from faults import TABLE  # noqa: E402
from load import Sent  # noqa: E402
from watch import misplaced  # noqa: E402

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


# All faults but `twin`: the agent that was superseded comes back only after its longest pause.
CI_FAULTS = ",".join(n for n in TABLE if n != "twin")


@pytest.mark.timeout(170)
def test_a_round_of_chaos_ends_without_a_violation():
    done = chaos("--seed", os.environ.get("VIW_CHAOS_SEED", "20261120"), "--rounds", "1", "--seconds", "15",
                 "--rate", "30", "--faults", CI_FAULTS, "--bound", "90", "--verbose", timeout=165)
    assert done.returncode == 0, done.stdout


SMALL = ("--rounds", "1", "--seconds", "6", "--hosts", "2", "--bridges", "2", "--plain", "4", "--rate", "30")


@pytest.mark.timeout(90)
def test_nothing_comes_on_a_connection_that_was_superseded():
    """The same as the fencing control below, with fencing on."""
    done = chaos("--seed", "7", *SMALL, "--faults", "two_faced", "--bound", "40", timeout=85)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(90)
@pytest.mark.parametrize("promise", ["fencing", "journal", "dedupe"])
def test_a_broken_promise_is_noticed(promise):
    done = chaos("--seed", "7", *SMALL, "--off", promise, "--bound", "10", timeout=85)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("seen,word", [
    ("o1 o2 e1 o3 e3 e2", None),
    ("o1 o2 o3 o4 e2 o5", None),
    ("o2 o1", "which was sent later"),
    ("o1 o2 o3 o4 o5", "5 commands are open"),
    ("o1 e1 o1", "a second time"),
])
def test_offers_out_of_order_or_beyond_the_window_are_noticed(seen, word):
    seen = {(ms, w[0] == "o", 0, w[1:], "a1") for ms, w in enumerate(seen.split())}
    sent = [Sent(str(i), "a1", "mark", 0) for i in range(6)]
    for s in sent:
        s.sure = True
    wrong = list(misplaced(seen, sent))
    assert [word] * len(wrong) == [word for w in wrong if word and word in w] and bool(wrong) == bool(word)
