"""PostgreSQL failover with a multi-host URI: a real standby is promoted while entries keep coming."""
import threading

import pytest

import viwtest
import writers
from viwtest import wait_for
from writers import add_command, add_result, start_writer, wait_drained


class Standby(viwtest.PgServer):
    """A copy of `primary` that follows it."""

    def copy_of(self, primary):
        data = self.dir / "data"
        self._run([viwtest.pg_bindir() / "pg_basebackup", "-D", data, "-h", primary.dir, "-p",
                   str(primary.port), "-U", "viw", "-R", "-X", "stream", "--no-sync", "-c", "fast"])
        return self

    def follow(self):
        self.proc = viwtest.Proc([viwtest.pg_bindir() / "postgres", "-D", self.dir / "data", "-k", self.dir,
                                  "-p", self.port, "-h", "127.0.0.1", "-c", "hot_standby=on"],
                                 name="postgres", dir=self.dir, user=self.user)
        return self

    def promote(self):
        self._run([viwtest.pg_bindir() / "pg_ctl", "-D", self.dir / "data", "-w", "promote"])


@pytest.fixture
def pair(pg_server):
    """A primary that commits only what its standby has, and that standby."""
    primary = pg_server
    primary.stop()
    # A standby has the primary's settings in its command line, not in the copied files.
    primary.start("-c", "synchronous_commit=on", "-c", "wal_level=replica", "-c", "max_wal_senders=4")
    standby = Standby().copy_of(primary).follow()
    wait_for(lambda: query(primary, "SELECT state FROM pg_stat_replication") == [("streaming",)], 20)
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.sql("postgres", "SELECT pg_reload_conf()")
    wait_for(lambda: query(primary, "SELECT sync_state FROM pg_stat_replication") == [("sync",)], 20)
    yield primary, standby
    standby.close()


def query(server, sql, database="postgres"):
    conn = server.connect(database)
    try:
        with conn.cursor() as cur:
            cur.execute(sql)
            return cur.fetchall()
    finally:
        conn.close()


@pytest.mark.timeout(90)
def test_writers_follow_a_promoted_standby_and_lose_nothing(redis, pair, start):
    primary, standby = pair
    db = primary.new_database()
    uri = (f"postgresql://viw@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{db.name}")
    w = start_writer(start, "results", redis, uri)
    c = redis.client
    stop = threading.Event()
    sent = []

    def feed():
        while not stop.is_set():
            cid = f"c-{len(sent)}"
            add_command(c, cid)
            add_result(c, cid, rc=0)
            sent.append(cid)
            stop.wait(0.005)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        wait_for(lambda: len(sent) > 100)
        primary.proc.signal(viwtest.signal.SIGQUIT)
        primary.proc.wait_exit(20)
        before = len(sent)
        standby.promote()
        wait_for(lambda: query(standby, "SELECT count(*) FROM agent_command_results", db.name)[0][0] > before, 30)
    finally:
        stop.set()
        feeder.join()
    wait_drained(c, "results", 20)
    got = query(standby, "SELECT count(*), count(DISTINCT correlation_id) FROM agent_command_results "
                "WHERE status = 'done'", db.name)
    assert got == [(len(sent), len(sent))]
    assert query(standby, "SELECT count(*) FROM agent_commands WHERE status = 'done' AND command = 'ECHO'",
                 db.name) == [(len(sent),)]
    assert query(standby, "SELECT count(*) FROM agent_command_late_results", db.name) == [(0,)]
    assert query(standby, "SELECT count(*) FROM dead_letters", db.name) == [(0,)]
    assert w.proc.alive
