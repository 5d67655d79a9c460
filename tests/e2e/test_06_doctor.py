"""viwctl doctor finds each fault it promises to find, says what to do, and nothing else changes."""
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import redis
import viwtest
from viwtest import wait_for

LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.fixture
def doctor(ctl, chain):
    """doctor(**settings) -> {check: row}; the exit code must agree."""
    def look(**env):
        done = ctl("doctor", "--json", env={"VIWCTL_BRIDGE_URL": chain.http_url, **env})
        rows = {row["check"]: row for row in json.loads(done.stdout)}
        assert done.returncode == (1 if any(r["grade"] == "bad" for r in rows.values()) else 0), done.stdout
        return rows
    return look


def set_redis(chain, name, value, normal):
    return (lambda: chain.redis.client.config_set(name, value)), (lambda: chain.redis.client.config_set(name, normal))


def sql(chain, broken, mended):
    return (lambda: chain.pg.query(broken)), (lambda: chain.pg.query(mended))


def faults(chain):
    """name of the check -> (grade, part of the remedy, break it, mend it)"""
    client = chain.redis.client

    def shadow(thing, body):
        """Something of ours is found before PostgreSQL's own of that name."""
        return sql(chain, f"CREATE {thing} {body}; ALTER ROLE viw SET search_path = public, pg_catalog",
                   f"ALTER ROLE viw RESET search_path; DROP {thing}")
    return {
        "redis maxmemory-policy": ("bad", "noeviction", *set_redis(chain, "maxmemory-policy", "allkeys-lru", "noeviction")),
        "redis appendonly": ("bad", "appendonly yes", *set_redis(chain, "appendonly", "no", "yes")),
        "redis memory": ("warn", "redis-away.md", *set_redis(chain, "maxmemory", client.info("memory")["used_memory"] + 50000, "0")),
        "viw.telemetry ← telemetry-writer": ("warn", "start the program", lambda: (
            chain.telemetry_writer.freeze(), client.xgroup_destroy("viw.telemetry", "telemetry-writer")), lambda: (
            client.xgroup_create("viw.telemetry", "telemetry-writer", "0", mkstream=True), chain.telemetry_writer.thaw())),
        "viw.command_events ← results-writer": ("bad", "lag-grows.md", lambda: (
            chain.results_writer.freeze(), client.xadd("viw.command_events", {"correlation_id": "x"}, id="1000-1")), lambda: (
            chain.results_writer.thaw(), chain.pg.wait_row("SELECT 1 FROM dead_letters"), chain.pg.query("DELETE FROM dead_letters"))),
        "postgresql schema": ("bad", "viw-migrate", *sql(
            chain, "CREATE TABLE kept AS SELECT * FROM schema_migrations; DELETE FROM schema_migrations WHERE version > 3",
            "INSERT INTO schema_migrations SELECT * FROM kept WHERE version > 3; DROP TABLE kept")),
        "postgresql roles": ("bad", "viw-migrate", *sql(
            chain, "ALTER ROLE viw_reader RENAME TO viw_reader_away", "ALTER ROLE viw_reader_away RENAME TO viw_reader")),
        "day partitions": ("bad", "telemetry-writer", *sql(
            chain, "DO $$ DECLARE t record; BEGIN FOR t IN SELECT inhrelid::regclass AS name FROM pg_inherits WHERE "
            "inhparent = 'agent_events'::regclass AND inhrelid::regclass::text > 'viw_partitions.agent_events_' || "
            "to_char(now() at time zone 'UTC', 'YYYYMMDD') LOOP EXECUTE 'DROP TABLE ' || t.name; END LOOP; END $$",
            "SELECT viw_make_partitions('agent_events', current_date, current_date + 3)")),
        "postgresql clock": ("warn", "chrony", *shadow(
            "FUNCTION public.clock_timestamp()", "RETURNS timestamptz LANGUAGE sql AS "
            "$$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$")),
        "postgresql role": ("bad", "point the URI at the primary", *shadow(
            "FUNCTION public.pg_is_in_recovery()", "RETURNS boolean LANGUAGE sql AS 'SELECT true'")),
        "postgresql standby": ("warn", "too slow", *shadow(
            "VIEW public.pg_stat_replication", "AS SELECT interval '1 minute' AS replay_lag")),
        "dead letters": ("warn", "viwctl dead-letters", *sql(
            chain, "INSERT INTO dead_letters (stream, entry_id, reason, payload) VALUES ('viw.commands', '1-1', 'x', '')",
            "DELETE FROM dead_letters")),
        "commands past their time, open": ("warn", "viwctl lost", *sql(
            chain, "INSERT INTO agent_commands (correlation_id, agent_id, command, status, issued_at, expires_at, queued_at) "
            "VALUES ('old-1', 'gw-x', 'ECHO', 'offered', now() - interval '1 hour', now() - interval '30 minutes', now())",
            "DELETE FROM agent_commands WHERE correlation_id = 'old-1'")),
        "gateways with a clock that is ahead": ("warn", "chrony", *sql(
            chain, "INSERT INTO os_gateways (agent_id, status) VALUES ('gw-x', 'offline'); "
            "INSERT INTO os_gateway_status (agent_id, metrics, epoch, seq, ts, updated_at) VALUES ('gw-x', '{}', 1, 1, now() + interval '1 hour', now())",
            "DELETE FROM os_gateway_status WHERE agent_id = 'gw-x'; DELETE FROM os_gateways WHERE agent_id = 'gw-x'")),
        "gateways whose helper is down": ("bad", "helper-down.md", *sql(
            chain, "INSERT INTO os_gateways (agent_id, status) VALUES ('gw-x', 'online'); INSERT INTO os_gateway_status "
            "(agent_id, metrics, epoch, seq, ts, updated_at) VALUES ('gw-x', '{\"helper\": \"down\"}', 1, 1, now(), now())",
            "DELETE FROM os_gateway_status WHERE agent_id = 'gw-x'; DELETE FROM os_gateways WHERE agent_id = 'gw-x'")),
        "certificates that end in 30 days": ("warn", "rotation-check", *sql(
            chain, "INSERT INTO os_gateways (agent_id, status) VALUES ('gw-x', 'offline'); INSERT INTO os_gateway_status "
            "(agent_id, metrics, epoch, seq, ts, updated_at) VALUES ('gw-x', '{\"cert_days_left\": {\"client\": 12}}', 1, 1, now(), now())",
            "DELETE FROM os_gateway_status WHERE agent_id = 'gw-x'; DELETE FROM os_gateways WHERE agent_id = 'gw-x'")),
    }


@pytest.mark.timeout(120)
def test_each_fault_is_found_and_only_it(chain, doctor):
    def well():
        rows = doctor()
        return {c: r for c, r in rows.items() if r["grade"] != "ok"}
    wait_for(lambda: not well(), 20, "all is well", every=0.3)
    wrong = []
    for check, (grade, remedy, breaks, mends) in faults(chain).items():
        breaks()
        try:
            found = wait_for(lambda: well(), 10, f"{check} is noticed", every=0.2)
        finally:
            mends()
        row = found.get(check, {})
        if set(found) != {check} or row["grade"] != grade or remedy not in row["remedy"]:
            wrong.append((check, found))
        wait_for(lambda: not well(), 10, f"{check} is mended", every=0.2)
    assert not wrong, wrong


def test_who_does_not_answer_is_named(doctor, chain):
    closed = viwtest.free_port()
    rows = doctor(VIWCTL_REDIS_URL=f"redis://127.0.0.1:{closed}/0")
    assert rows["redis"]["grade"] == "bad" and "redis-away.md" in rows["redis"]["remedy"]
    rows = doctor(VIWCTL_DATABASE_URL=f"postgresql://viw@127.0.0.1:{closed}/viw")
    assert rows["postgresql"]["grade"] == "bad" and "postgresql-away.md" in rows["postgresql"]["remedy"]
    rows = doctor(VIWCTL_BRIDGE_URL=f"http://127.0.0.1:{closed}")
    assert rows["bridge"]["grade"] == "bad" and "bridge-not-ready.md" in rows["bridge"]["remedy"]
    rows = doctor(VIWCTL_BRIDGE_URL="")
    assert rows["bridge"]["grade"] == "warn" and "VIWCTL_BRIDGE_URL" in rows["bridge"]["remedy"]


def test_a_store_that_refuses_is_not_said_to_be_silent(doctor, chain):
    """A wrong password, a name that is none, a server that takes no writes: none of them is mended by a start."""
    chain.redis.client.config_set("requirepass", "not-this-one")
    try:
        row = doctor()["redis"]
    finally:
        redis.Redis.from_url(chain.redis.url, password="not-this-one").config_set("requirepass", "")
    assert row["grade"] == "bad" and "NOAUTH" in row["seen"] and "VIWCTL_REDIS_URL" in row["seen"], row
    row = doctor(VIWCTL_DATABASE_URL=chain.pg.uri_as("nobody_there"))["postgresql"]
    assert row["grade"] == "bad" and "nobody_there" in row["seen"] and "the error names" in row["remedy"], row
    row = doctor(PGOPTIONS="-c default_transaction_read_only=on")["postgresql"]
    assert "read-only" in row["seen"] and "primary" in row["remedy"], row
    row = doctor(VIWCTL_DATABASE_URL="")["postgresql"]
    assert "VIWCTL_DATABASE_URL is not set" in row["seen"], row


def test_a_replica_is_not_taken_for_the_primary(doctor, chain, tmp):
    (tmp / "replica").mkdir()
    replica = viwtest.RedisServer(tmp / "replica").start(
        "--replicaof", "127.0.0.1", str(chain.redis.port))
    try:
        rows = doctor(VIWCTL_REDIS_URL=replica.url)
        assert rows["redis role"]["grade"] == "bad" and "primary" in rows["redis role"]["remedy"]
    finally:
        replica.close()


@pytest.mark.skipif(not LIBFAKETIME.exists(), reason="needs libfaketime")
def test_clocks_that_differ_from_the_stores_are_seen(doctor, monkeypatch):
    """Only viwctl's own clock can be moved on Debian 13, whose redis-server ends under libfaketime."""
    plain = viwtest.plain_build()
    if plain is None:
        pytest.skip("no build without AddressSanitizer, which libfaketime waits for for ever: ./viw build release")
    monkeypatch.setattr(viwtest, "BIN", plain)
    rows = doctor(LD_PRELOAD=str(LIBFAKETIME), FAKETIME="-1h", FAKETIME_DONT_FAKE_MONOTONIC="1")
    for check in ("redis clock", "postgresql clock"):
        row = rows[check]
        assert row["grade"] == "warn" and "chrony" in row["remedy"] and re.match(r"\+3[56]\d{5} ms", row["seen"]), row


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_redis_that_cannot_write_to_its_disk_is_seen(doctor, tmp):
    small = tmp / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0777", "tmpfs", small], check=True)
    full = viwtest.RedisServer(small)
    try:
        full.start()
        with pytest.raises(redis.RedisError):
            for _ in range(100):
                full.client.set("x", "x" * 100000)
        wait_for(lambda: doctor(VIWCTL_REDIS_URL=full.url)["redis last write to disk"]["grade"] == "bad", 10,
                 "the disk is full", every=0.2)
    finally:
        full.close()
        subprocess.run(["umount", small], check=True)


def test_a_ca_and_its_crl_are_watched(doctor, ctl, tmp, pki):
    assert ctl("enroll", "--init-ca").returncode == 0
    rows = doctor()
    assert rows["client CA"]["grade"] == rows["CRL of the client CA"]["grade"] == "ok"
    for file in ("ca.crt", "crl.pem"):
        (tmp / "ca" / file).chmod(0o600)
    (tmp / "ca" / "crl.pem").write_text(open(pki.crl).read())  # 30 days
    (tmp / "ca" / "ca.crt").write_text(open(pki.agent("gw-1", days=-1)[0]).read())
    rows = doctor()
    assert rows["client CA"]["grade"] == "bad" and "until" in rows["client CA"]["seen"]
    crl = rows["CRL of the client CA"]
    assert crl["grade"] == "warn" and "--renew-crl" in crl["remedy"]
    (tmp / "ca" / "crl.pem").write_text("nothing")
    assert doctor()["CRL of the client CA"]["grade"] == "bad"
