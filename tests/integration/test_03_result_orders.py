"""Which word about a command wins, when a bridge's "expired" or "cancelled" and its agent's answer are both there:
whatever order, batches and writers they come in, one terminal state, and it is true."""
import random

import pytest

from viwtest import wait_for
from writers import add_command, add_command_event, add_result, start_writer, wait_drained

ANSWERS = {"done": {"rc": 0}, "failed": {"rc": 2}, "expired": {"status": "expired"}, "cancelled": {"status": "cancelled"},
           "unknown": {"status": "unknown"}}


def never_offered(client, cid, state):
    return client.xadd("viw.command_results", {"correlation_id": cid, "agent_id": "gw-1", "source": "bridge", "state": state})


def rows(pg):
    return {t: pg.query(f"SELECT correlation_id, status, entry_id, source FROM {t} ORDER BY 1, 3")
            for t in ("agent_command_results", "agent_command_late_results")}


def test_a_word_that_waits_for_another_writers_offer_is_disproved_by_it(redis, pg, start):
    """Both in a transaction at once: the offer's is not committed when the other one begins."""
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    for known in (True, False):
        cid = f"c-{known}"
        if known:
            add_command(c, cid)
            wait_drained(c, "results")
        other = pg.connect()
        other.autocommit = False
        other.cursor().execute("INSERT INTO agent_commands (correlation_id, agent_id, status, offered_at) VALUES (%s, 'gw-1', 'offered', now()) "
                               "ON CONFLICT (correlation_id) DO UPDATE SET status = 'offered', offered_at = now()", (cid,))
        never_offered(c, cid, "expired")
        wait_for(lambda: pg.query("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))
        other.commit()
        other.close()
        wait_for(lambda: [line for line in w.proc.find_logs("command_forgotten") if line["correlation_id"] == cid])
        wait_drained(c, "results")
        assert pg.query("SELECT status, completed_at, result_entry FROM agent_commands WHERE correlation_id = %s", cid) == [
            {"status": "offered", "completed_at": None, "result_entry": None}]
        add_result(c, cid, rc=0)
        pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s AND status = 'done'", cid)


class Tale:
    """What is told of one command: pairs of the step it is told in, and how. offered: no word of a bridge that it never
    was is told in a step before the offer is, for that one would be believed (and the answer then be late evidence)."""

    def __init__(self, rng, cid, steps, together):
        self.cid, self.told, self.state, self.words = cid, [], None, []
        self.ran = rng.random() < 0.7
        if rng.random() < 0.8:
            self.tell(rng.randrange(steps), add_command)
        first = steps - 1
        if self.ran:
            for event in rng.choice((("offered",), ("offered", "accepted"), ("accepted",))):
                step = rng.randrange(steps - 1)
                first = min(first, step if together else step + 1)
                self.tell(step, add_command_event, event=event)
        else:
            first = 0
        if not self.ran or rng.random() < 0.8:
            for state in rng.choice((("expired",), ("cancelled",), ("expired", "expired"), ("cancelled", "expired"))):
                self.words.append(state)
                self.tell(rng.randrange(first, steps), never_offered, state=state)
        if self.ran and rng.random() < 0.8:
            self.state = rng.choice(sorted(ANSWERS))
            for _ in range(rng.choice((1, 1, 2))):
                self.tell(rng.randrange(steps), add_result, **ANSWERS[self.state])

    def tell(self, step, how, **words):
        self.told.append((step, how, words))

    def may_be(self):
        if self.state:
            return {self.state}
        return {"offered", "accepted"} if self.ran else set(self.words)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("writers", ["one", "two"])
def test_any_order_and_any_batches_end_the_same(redis, pg, start, writers, seed):
    """One: each step is one batch, all of it together. Two: of a step either takes what it gets, alone or together."""
    c, rng, steps = redis.client, random.Random(f"{writers} {seed}"), 4
    tales = [Tale(rng, f"c-{n}", steps, writers == "one") for n in range(60)]
    answers = {}
    runs = []
    for step in range(steps):
        if writers == "two" and not runs:
            runs = [start_writer(start, "results", redis, pg.uri, CONSUMER=f"w-{n}", BATCH_MAX=most) for n, most in enumerate((1, 50))]
        now = [(t, how, words) for t in tales for at, how, words in t.told if at == step]
        rng.shuffle(now)
        for t, how, words in now:
            entry = how(c, t.cid, **words)
            if how is add_result:
                answers.setdefault(t.cid, set()).add(entry)
        if writers == "one":
            w = start_writer(start, "results", redis, pg.uri)
        wait_drained(c, "results")
        if writers == "one":
            assert w.metric("viw_batch_rows_count") == 1
            w.proc.stop()
    status = {r["correlation_id"]: r for r in pg.query("SELECT correlation_id, status, completed_at, result_entry FROM agent_commands")}
    end = rows(pg)
    stored = {}
    for r in end["agent_command_results"] + end["agent_command_late_results"]:
        stored.setdefault(r["correlation_id"], []).append(r["entry_id"])
    results = {r["correlation_id"]: r for r in end["agent_command_results"]}
    assert len(results) == len(end["agent_command_results"])
    for t in tales:
        if not t.told:
            continue
        got, r = status[t.cid], results.get(t.cid)
        assert got["status"] in t.may_be(), (t.cid, t.told)
        assert (r is not None) == (got["completed_at"] is not None) == (got["status"] not in ("offered", "accepted")), (t.cid, t.told)
        if r:
            assert (r["status"], r["entry_id"]) == (got["status"], got["result_entry"]), (t.cid, t.told)
        kept = stored.get(t.cid, [])
        assert len(set(kept)) == len(kept) and answers.get(t.cid, set()) <= set(kept), (t.cid, t.told)
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    # All of it again, as after a lost group: nothing that ended is another.
    for w in runs:
        w.proc.stop()
    for stream in ("commands", "command_events", "command_results"):
        c.xgroup_setid(f"viw.{stream}", "results-writer", "0")
    start_writer(start, "results", redis, pg.uri)
    wait_drained(c, "results")
    again = {r["correlation_id"]: r for r in pg.query("SELECT correlation_id, status, completed_at, result_entry FROM agent_commands")}
    assert again == status and rows(pg)["agent_command_results"] == end["agent_command_results"]
