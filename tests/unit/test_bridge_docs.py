"""docs/bridge-tests.md names tests that exist; what it says of comparing secrets is so."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bridge-tests.md").read_text()


def test_every_test_named_is_there():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    files = [*(ROOT / "tests").glob("*/test_*.py"), *(ROOT / "tests" / "unit").glob("test_*.c")]
    there = set().union(*(re.findall(r"^(?:def|static void) (test_\w+)", p.read_text(), re.M) for p in files))
    assert len(named) > 100 and named <= there, named - there


def test_every_promise_names_a_test():
    rows = [row for row in re.findall(r"^\| (.+) \|$", PAGE, re.M) if row != "promise | test"]
    assert len(rows) > 70
    for row in rows:
        promise, tests = row.rsplit(" | ", 1)
        assert promise and re.fullmatch(r"`test_\w+`(, `test_\w+`)*", tests), row


def test_secrets_are_compared_in_constant_time():
    for name, what in (("agent-bridge/handshake.c", "crypto_equal(want, got"), ("lib/http/route.c", "crypto_equal_str(authorization")):
        assert what in (ROOT / name).read_text(), name
    crypto = (ROOT / "lib/crypto/crypto.c").read_text()
    assert "CRYPTO_memcmp" in re.search(r"^bool crypto_equal.*?^}", crypto, re.M | re.S)[0]
