"""The rules of time, in real time, through the real program (contract 1.2): 20 s pings, 40 s of
silence, a minute of half a frame or of not reading, two minutes of a Redis that stands still.
tests/lib/minutes.py begins them when the session begins; this file is looked at late."""
import time

import minutes
import pytest

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def run():
    return minutes.get()


def test_silent_for_40_s_is_closed(run):
    line = run.disconnected(run.a, "silent", 60)
    assert line["detail"] == "heartbeat_missed" and 39_900 <= line["duration_ms"] <= 55_000
    assert run.closed["silent"] == 1008
    assert run.a.metric("viw_heartbeats_missed_total") == 1


def test_half_a_frame_for_a_minute_is_closed(run):
    line = run.disconnected(run.a, "trickle", 80)
    assert line["detail"] == "slow_sender" and 59_900 <= line["duration_ms"] <= 75_000
    assert run.closed["trickle"] == 1008


def test_not_reading_for_a_minute_is_closed(run):
    line = run.disconnected(run.a, "stuck", 100)
    assert line["detail"] == "slow_reader" and line["duration_ms"] >= 59_900


def test_a_bridge_that_stood_still_blames_nobody(run):
    """44 s without a turn are its own silence: whoever is still there stays."""
    assert run.woken.wait(60)
    run.c.wait_ready()
    run.patient.send({"type": "PING"})
    run.patient.expect("PONG")
    time.sleep(2.5)  # ticks of one second that close who was silent
    assert not run.c.proc.find_logs("disconnected")


def test_redis_that_stands_still_closes_4013_after_two_minutes(run):
    line = run.disconnected(run.b, "behind", 170)
    assert run.closed.get("behind", 4013) == 4013
    assert line["detail"] == "redis_behind" and line["rc"] == 4013 and line["duration_ms"] >= 119_000


def test_who_answers_pings_stays(run):
    """Several pings, no frame of its own, and its socket is as good as new."""
    run.disconnected(run.a, "stuck", 100)
    assert not run.a.proc.find_logs("disconnected", agent_id="calm")
    run.calm.send({"type": "PING"})
    run.calm.expect("PONG")
