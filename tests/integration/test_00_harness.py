"""The harness itself: its servers are real and private, and it notices what it must notice."""
import os
import re
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


def test_both_kinds_of_test_report_are_counted(tmp):
    """ctest puts each attribute on a line of its own, behind a tab; pytest all on one."""
    ctest = tmp / "ctest.xml"
    ctest.write_text('<testsuite name="x"\n\ttests="5"\n\tfailures="2"\n\tdisabled="0"\n\tskipped="1"\n\t>\n</testsuite>\n')
    pytest_xml = tmp / "pytest.xml"
    pytest_xml.write_text('<testsuites><testsuite name="p" errors="1" failures="1" skipped="0" tests="10"></testsuite></testsuites>')
    script = (f"set -eu; source tools/test.sh; test_count {ctest}; test_count {pytest_xml}; test_count {tmp}/none; "
              "echo $TEST_PASSED $TEST_FAILED")
    done = subprocess.run(["bash", "-c", script], cwd=viwtest.ROOT, text=True, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == [str(2 + 8), str(2 + 2 + 1)]


def test_every_lane_is_run_and_counted(request):
    """What conftest.py divides, tools/test.sh puts together again."""
    conftest = next(p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "LANES"))
    lanes = {lane for lane, _ in conftest.LANES}
    assert {conftest.lane_of(path) for path in (viwtest.ROOT / "tests").rglob("test_*.py")} == lanes
    shell = (viwtest.ROOT / "tools" / "test.sh").read_text()
    assert set(re.findall(r"test_pytest ([a-z]+) ", shell)) == lanes
    assert set(re.search(r"for lane in ([\w ]+);", shell)[1].split()) == lanes
