"""The writers while PostgreSQL is slow: their entries stay theirs, systemd's watchdog is fed by the loop and by nothing
else, a batch that is too much for one statement is halved, and nobody else waits for retention."""
import ctypes
import os
import socket
import threading
import time

import pytest

import viwtest
import writers
from viwtest import wait_for
from writers import add_command, add_telemetry, start_writer, wait_drained


@pytest.fixture
def lock_table(pg):
    """Somebody who holds a table until told otherwise."""
    conn = pg.connect()
    conn.autocommit = False

    def hold(table):
        conn.cursor().execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        return conn.rollback
    yield hold
    conn.close()


def test_entries_of_a_slow_statement_are_not_taken_over(redis, pg, start, lock_table):
    """One statement waits longer than it takes another worker to call entries orphaned."""
    c = redis.client
    release = lock_table("agent_commands")
    for i in range(50):
        add_command(c, f"c-{i}")
    start_writer(start, "results", redis, pg.uri, CONSUMER="slow")

    def owners():
        return {x["consumer"] for x in c.xpending_range("viw.commands", "results-writer", "-", "+", 100)}
    wait_for(lambda: owners() == {"slow"})
    other = start_writer(start, "results", redis, pg.uri, CONSUMER="other")
    until = time.monotonic() + 4.7  # lock_timeout is 5 s
    while time.monotonic() < until:
        assert owners() == {"slow"}
        time.sleep(0.05)
    release()
    wait_drained(c, "results")
    assert pg.query("SELECT count(*) AS n FROM agent_commands") == [{"n": 50}]
    assert not other.metric("viw_entries_stored_total", stream="viw.commands")


def test_entries_read_ahead_stay_ours_too(redis, pg, start, lock_table):
    """While one batch waits for a lock the next is at hand already, and no more than the next."""
    c = redis.client
    release = lock_table("os_gateway_status")
    for i in range(150):
        add_telemetry(c, f"gw-{i:03}", seq=1, cpu_pct=i)
    start_writer(start, "telemetry", redis, pg.uri, BATCH_MAX=50)

    def idle_ms():
        return [x["time_since_delivered"] for x in
                c.xpending_range("viw.telemetry", "telemetry-writer", "-", "+", 200)]
    wait_for(lambda: len(idle_ms()) == 100)
    until = time.monotonic() + 4.7  # lock_timeout is 5 s; another worker takes over after 3 s idle
    while time.monotonic() < until:
        idle = idle_ms()
        assert len(idle) == 100 and max(idle) < 4000, idle
        time.sleep(0.1)
    release()
    wait_drained(c, "telemetry")
    assert pg.query("SELECT count(*) AS n, sum(samples) AS s FROM os_gateway_metrics") == [{"n": 150, "s": 150}]


def test_an_idle_consumer_of_another_worker_stays(redis, pg, start):
    c = redis.client
    start_writer(start, "results", redis, pg.uri, CONSUMER="a", CONSUMER_IDLE_S=3600)
    add_command(c, "c-1")
    wait_drained(c, "results")
    b = start_writer(start, "results", redis, pg.uri, CONSUMER="b", CONSUMER_IDLE_S=3600)
    add_command(c, "c-2")
    wait_drained(c, "results")
    wait_for(lambda: b.get("/_readyz")[0] == 200)
    time.sleep(1.2)  # b's first chores are over
    assert "a" in {x["name"] for x in c.xinfo_consumers("viw.commands", "results-writer")}


def test_a_batch_that_times_out_is_halved_until_it_passes(redis, pg, start):
    """Real cancellations (57014) of every statement over 20 rows; then of one row alone, which is never blamed."""
    c = redis.client
    pg.query("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
             "IF (SELECT count(*) FROM added) > 20 OR EXISTS (SELECT 1 FROM added WHERE correlation_id = 'slow') "
             "THEN PERFORM pg_sleep(20); END IF; RETURN NULL; END $$")
    pg.query("CREATE TRIGGER slow AFTER INSERT ON agent_commands REFERENCING NEW TABLE AS added "
             "FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    for i in range(40):
        add_command(c, f"c-{i:02}")
    stop, cancelled = threading.Event(), []
    canceller = pg.connect()

    def cancel():
        while not stop.wait(0.02):
            cur = canceller.cursor()
            cur.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
                        "AND datname = current_database()")
            cancelled.extend(cur.fetchall())
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        w = start_writer(start, "results", redis, pg.uri)
        wait_drained(c, "results", 20)
        assert pg.query("SELECT count(*) AS n FROM agent_commands") == [{"n": 40}]
        assert len(cancelled) == 3 and w.metric("viw_pg_retries_total", verdict="retry") == 3
        assert (w.metric("viw_batch_rows_count"), w.metric("viw_batch_rows_sum")) == (2, 40)
        # What was too much once is not tried again at once.
        w.proc.freeze()
        for i in range(40, 80):
            add_command(c, f"c-{i:02}")
        w.proc.thaw()
        wait_drained(c, "results", 20)
        assert len(cancelled) == 3
        add_command(c, "slow")
        wait_for(lambda: len(cancelled) >= 8, 20, "one row alone is tried again and again")
    finally:
        stop.set()
        thread.join()
        canceller.close()
    pg.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    pg.query("ALTER TABLE agent_commands DISABLE TRIGGER slow")
    pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = 'slow'", timeout=15)
    assert pg.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


# ---------------------------------------------------------------- watchdog


class Systemd:
    """What a service tells its manager, with the time it was told."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0.05)
        self.env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "60000000"}

    def wait_word(self, word, timeout=10):
        def got():
            try:
                return word in self.socket.recv(4096).decode()
            except socket.timeout:
                return False
        wait_for(got, timeout, f"{word} told to systemd", every=0)

    def pings(self, seconds):
        """How many watchdog messages came, and the longest time without one."""
        count, begin = 0, time.monotonic()
        last, gap = begin, 0.0
        while time.monotonic() < begin + seconds:
            try:
                if "WATCHDOG=1" in self.socket.recv(4096).decode():
                    gap, last, count = max(gap, time.monotonic() - last), time.monotonic(), count + 1
            except socket.timeout:
                pass
        return count, max(gap, time.monotonic() - last)

    def drain(self):
        try:
            while True:
                self.socket.recv(4096)
        except socket.timeout:
            pass


class StoppedThread:
    """Stops one thread of a program and no other."""

    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, tid):
        self.tid = tid

    def ptrace(self, request):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        if libc.ptrace(request, self.tid, None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def __enter__(self):
        try:
            self.ptrace(self.SEIZE)
        except PermissionError:
            pytest.skip("ptrace is not allowed here")
        self.ptrace(self.INTERRUPT)
        os.waitpid(self.tid, self.WALL)

    def __exit__(self, *why):
        self.ptrace(self.DETACH)


def test_watchdog_is_fed_through_an_outage_and_a_wait_but_not_by_a_hanging_loop(redis, pg_server, start, tmp):
    systemd = Systemd(tmp / "notify")
    db = pg_server.new_database()
    w = start_writer(start, "results", redis, db.uri, env=systemd.env)
    systemd.wait_word("READY=1")
    assert systemd.pings(2.5)[0] >= 1, "idle"
    # A statement that waits for a lock, which is one call of libpq.
    blocker = db.connect()
    blocker.autocommit = False
    blocker.cursor().execute("LOCK TABLE agent_commands IN EXCLUSIVE MODE")
    add_command(redis.client, "c-1")
    wait_for(lambda: db.query("SELECT 1 FROM pg_locks WHERE NOT granted"), 10)
    count, gap = systemd.pings(3)
    assert count >= 2 and gap < 2.5, ("in a statement", count, gap)
    blocker.close()
    db.wait_row("SELECT 1 FROM agent_commands")
    # PostgreSQL away, with a batch in hand.
    db._conn.close()
    pg_server.stop()
    add_command(redis.client, "c-2")
    wait_for(lambda: w.metric("viw_pg_up") == 0)
    systemd.drain()
    count, gap = systemd.pings(3)
    assert count >= 2 and gap < 2.5, ("PostgreSQL away", count, gap)
    # Redis away as well.
    redis.stop()
    wait_for(lambda: w.metric("viw_redis_up") == 0)
    count, gap = systemd.pings(3)
    assert count >= 2 and gap < 2.5, ("both away", count, gap)
    # The loop hangs; the thread of the endpoints does not, and must not speak for it.
    with StoppedThread(w.proc.pid):
        systemd.drain()
        assert systemd.pings(3)[0] == 0 and w.get("/_healthz")[0] == 200
    assert systemd.pings(2.5)[0] >= 1
    w.proc.signal(viwtest.signal.SIGTERM)
    systemd.wait_word("STOPPING=1")


# ---------------------------------------------------------------- retention


def test_retention_keeps_nobody_waiting(redis, pg, start):
    """A report reads the day that is to go. Others read and write the table meanwhile; the day goes when it is over."""
    c = redis.client
    pg.query("SELECT viw_make_partitions('os_gateway_metrics', CURRENT_DATE - 40, CURRENT_DATE - 40)")
    report = pg.connect()
    report.autocommit = False
    report.cursor().execute("SELECT count(*) FROM os_gateway_metrics")
    w = start_writer(start, "telemetry", redis, pg.uri, RETENTION_DAYS=30)
    wait_for(lambda: pg.query("SELECT 1 FROM viw_partition_days WHERE detach_pending"), 10, "the day is on its way out")
    other, waited, until = pg.connect(), 0.0, time.monotonic() + 3
    n = 0
    while time.monotonic() < until:
        began = time.monotonic()
        cur = other.cursor()
        cur.execute("SELECT count(*) FROM os_gateway_metrics")
        cur.execute("INSERT INTO os_gateway_metrics (agent_id, bucket, samples, cpu_sum, cpu_n, mem_sum, mem_n, disk_sum,"
                    " disk_n, load1_sum, load1_n, seen) VALUES (%s, date_trunc('minute', now()), 1,0,0,0,0,0,0,0,0,'{}')",
                    (f"other-{n}",))
        waited, n = max(waited, time.monotonic() - began), n + 1
    other.close()
    assert waited < 1, waited
    add_telemetry(c, "gw-1", cpu_pct=1)
    began = time.monotonic()
    pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-1'")
    assert time.monotonic() - began < 4
    report.rollback()
    report.close()
    w.proc.stop()
    start_writer(start, "telemetry", redis, pg.uri, RETENTION_DAYS=30)
    wait_for(lambda: not pg.query("SELECT 1 FROM viw_partition_days WHERE day < CURRENT_DATE - 30"), 10)
