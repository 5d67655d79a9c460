"""sql/migrate: forward-only, checksummed, idempotent, safe to run twice at once and on a live system."""
import re
import shutil
import subprocess
import threading
import time

import psycopg2
import pytest

import viwtest
from viwtest import ROOT, wait_for


def migrate(uri, *args, env=None):
    done = subprocess.run([viwtest.BIN / "viw-migrate", *args, *([uri] if uri else [])],
                          env={"PATH": "/usr/bin:/bin", **(env or {})},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


@pytest.fixture
def empty(pg):
    """A database of its own without anything in it."""
    name = pg.name + "_empty"
    pg.server.sql("postgres", f"CREATE DATABASE {name}")
    db = viwtest.Database(pg.server, name)
    yield db
    db.close()


def test_applies_once_and_says_so(empty):
    assert migrate(empty.uri, "--status")[0] == 1
    code, out = migrate(empty.uri)
    assert code == 0 and "applied 0001_roles" in out
    code, out = migrate(empty.uri)
    assert code == 0 and "applied" not in out
    code, out = migrate(None, "--status", env={"VIW_DATABASE_URL": empty.uri})
    assert code == 0 and "pending" not in out
    names = sorted(p.stem for p in (ROOT / "sql").glob("[0-9]*.sql"))
    rows = empty.query("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    assert [r["name"] for r in rows] == names and all(len(r["checksum"]) == 64 for r in rows)
    # The wrapper of the tree and the texts built in are the same migrations.
    done = subprocess.run([ROOT / "sql" / "migrate", empty.uri, "--status"], text=True,
                          env={"PATH": "/usr/bin:/bin", "VIW_BIN": str(viwtest.BIN)}, stdout=subprocess.PIPE)
    assert done.returncode == 0 and "CHANGED" not in done.stdout


def test_many_at_once_apply_each_once(empty):
    results = []
    threads = [threading.Thread(target=lambda: results.append(migrate(empty.uri))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [code for code, _ in results] == [0] * 4
    assert sum("applied 0002_gateways" in out for _, out in results) == 1


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_utf8_is_refused_before_anything_is_made(empty, encoding):
    """What initdb makes without a locale: telemetry with one \\u escape would stop telemetry-writer there, for good."""
    admin, name = viwtest.Database(empty.server, "postgres"), f"{empty.name}_{encoding.lower()}"
    admin.query(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    wrong = viwtest.Database(empty.server, name)
    try:
        code, out = migrate(wrong.uri)
        assert code == 78 and "not UTF8" in out and wrong.query("SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
        # Set up by an earlier build: it is not stopped by a restart.
        assert migrate(empty.uri)[0] == 0
        wrong.query("CREATE TABLE schema_migrations (version integer, checksum text, applied_at timestamptz DEFAULT now())")
        for r in empty.query("SELECT version, checksum FROM schema_migrations"):
            wrong.query("INSERT INTO schema_migrations VALUES (%s, %s)", r["version"], r["checksum"])
        assert migrate(wrong.uri)[0] == 0
        wrong._conn.close()
        admin.query(f"DROP DATABASE {name}")
        admin.query(re.search("CREATE DATABASE .*", out)[0].replace("…", name))
        assert migrate(wrong.uri)[0] == 0
    finally:
        wrong.close()
        admin._conn.close()


def test_refuses_changed_and_misnumbered_files(empty, tmp):
    sql = tmp / "sql"
    shutil.copytree(ROOT / "sql", sql)
    assert migrate(empty.uri, "--dir", sql)[0] == 0
    first = sorted(sql.glob("0002*.sql"))[0]
    text = first.read_text()
    first.write_text(text + "\n-- edited\n")
    code, out = migrate(empty.uri, "--dir", sql)
    assert code == 78 and "0002_gateways was changed after it had been applied" in out
    assert migrate(empty.uri, "--dir", sql, "--status")[0] == 78
    first.write_text(text)
    (sql / "0002_again.sql").write_text("SELECT 1")
    code, out = migrate(empty.uri, "--dir", sql)
    assert code == 78 and "two migrations have number 0002" in out


def test_a_failing_migration_leaves_nothing_behind(empty, tmp):
    sql = tmp / "sql"
    shutil.copytree(ROOT / "sql", sql)
    (sql / "9000_broken.sql").write_text("CREATE TABLE half (a int);\nSELECT 1/0;\n")
    code, out = migrate(empty.uri, "--dir", sql)
    assert code == 69 and "9000_broken" in out and "22012" in out
    assert empty.query("SELECT to_regclass('half') AS t") == [{"t": None}]
    (sql / "9000_broken.sql").write_text("-- viw: no transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS "
                                         "late_idx ON dead_letters (reason)")
    assert migrate(empty.uri, "--dir", sql)[0] == 0
    # A build that knows less than the database leaves it alone.
    code, out = migrate(empty.uri)
    assert code == 0 and "newer" in out


def test_never_holds_others_up_while_it_waits_for_a_lock(empty, tmp):
    """A long reader blocks the migration; queries behind it must not wait long for the migration."""
    sql = tmp / "sql"
    shutil.copytree(ROOT / "sql", sql)
    assert migrate(empty.uri, "--dir", sql)[0] == 0
    (sql / "9000_alter.sql").write_text("ALTER TABLE dead_letters ADD COLUMN extra text")
    reader = psycopg2.connect(empty.uri)
    reader.cursor().execute("SELECT count(*) FROM dead_letters")  # its transaction stays open
    results = []
    t = threading.Thread(target=lambda: results.append(migrate(empty.uri, "--dir", sql)))
    t.start()
    wait_for(lambda: empty.query("SELECT 1 FROM pg_locks WHERE NOT granted"), what="the migration waits")
    began = time.monotonic()
    empty.query("SELECT count(*) FROM dead_letters")
    assert time.monotonic() - began < 4
    reader.rollback()
    t.join(20)
    assert results[0][0] == 0
    reader.close()


def test_new_ones_are_applied_under_a_running_writer(empty, tmp, redis, start):
    """A database of the version before gets what is new while commands and results keep coming."""
    import writers
    old = tmp / "sql"
    old.mkdir()
    for path in sorted((ROOT / "sql").glob("000[1-6]_*.sql")):
        shutil.copy(path, old)
    assert migrate(empty.uri, "--dir", old)[0] == 0
    w = writers.start_writer(start, "results", redis, empty.uri)
    stop, sent = threading.Event(), []

    def feed():
        while not stop.wait(0.002):
            cid = f"c-{len(sent)}"
            writers.add_command(redis.client, cid)
            writers.add_result(redis.client, cid, rc=0)
            sent.append(cid)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        empty.wait_row("SELECT 1 FROM agent_command_results OFFSET 100")
        code, out = migrate(empty.uri)
        assert code == 0 and "applied 0007" in out, out
        n = len(sent)
        wait_for(lambda: len(sent) > n + 100)
    finally:
        stop.set()
        feeder.join()
    writers.wait_drained(redis.client, "results")
    assert empty.query("SELECT count(*) AS n FROM agent_command_results WHERE status = 'done'") == [{"n": len(sent)}]
    assert empty.query("SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]
    assert empty.query("SELECT 1 FROM pg_index WHERE NOT indisvalid") == []
    assert w.metric("viw_pg_up") == 1


def test_errors_hold_no_password(empty):
    code, out = migrate("postgresql://u:s3cret-canary@127.0.0.1:1/x")
    assert code == 69 and "canary" not in out
    code, out = migrate("postgresql://u:s3cret-canary@[::/x", "--status")
    assert code == 78 and "canary" not in out
