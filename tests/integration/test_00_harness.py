"""The harness itself: its servers are real and private, and it notices what it must notice."""
import os
import subprocess

import pytest
import viwtest


def test_redis_has_the_settings_the_contract_asks_for(redis):
    assert redis.client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert redis.client.config_get("appendonly")["appendonly"] == "yes"
    cid = redis.xadd_command("a1", "ECHO", params={"message": "hi"})
    entry = redis.client.xrange("viw.commands")[0][1]
    assert entry == {"correlation_id": cid, "agent_id": "a1", "command": "ECHO", "params": '{"message": "hi"}'}


def test_redis_keeps_its_data_over_a_restart(redis):
    redis.client.set("k", "v")
    redis.stop()
    redis.start()
    assert redis.client.get("k") == "v"


def test_every_test_has_a_database_of_its_own(pg, pg_cluster):
    pg.query("CREATE TABLE only_here (x int)")
    other = pg_cluster.new_database()
    try:
        assert other.query("SELECT to_regclass('only_here') AS t")[0]["t"] is None
    finally:
        other.close()


def test_start_ends_its_processes_by_pid(tmp):
    starter = viwtest.Starter(tmp)
    proc = starter("/bin/sleep", args=["600"])
    assert proc.alive
    assert starter.close() == []
    assert not proc.alive


@pytest.mark.parametrize("report", [
    "==1==ERROR: AddressSanitizer: heap-use-after-free",
    "x.c:1:2: runtime error: signed integer overflow",
])
def test_a_sanitizer_report_is_a_fault(tmp, report):
    starter = viwtest.Starter(tmp)
    starter("/bin/sh", args=["-c", f"echo '{report}' >&2"]).wait_exit()
    assert len(starter.close()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_start_can_drop_to_another_user(start):
    proc = start("/usr/bin/id", args=["-un"], user="nobody")
    assert proc.wait_exit() == 0
    assert proc.stdout == "nobody\n"


def test_pki_chains_and_revokes(pki):
    cert, _ = pki.agent("gw-1")
    rogue, _ = pki.rogue("gw-1")
    verify = ["openssl", "verify", "-CAfile", pki.path("client_ca.pem"), "-CRLfile", pki.crl, "-crl_check"]
    assert subprocess.run([*verify, cert], capture_output=True).returncode == 0
    assert subprocess.run([*verify, rogue], capture_output=True).returncode != 0
    pki.revoke(cert)
    assert subprocess.run([*verify, cert], capture_output=True).returncode != 0
