"""lib/pg against a real PostgreSQL: the C test with a server, none of its cases skipped."""
import os
import subprocess

import viwtest


def test_lib_pg_against_a_server(pg):
    binary = viwtest.BIN.parent / "tests" / "test_pg"
    done = subprocess.run([binary], env={**os.environ, "VIW_TEST_PG_URI": pg.uri}, text=True, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and "SKIPPED" not in done.stdout, done.stdout
