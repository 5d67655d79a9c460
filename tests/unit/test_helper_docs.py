"""host-helper/README.md says what the code and the unit do: system calls, capabilities, environment of scripts."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPER = ROOT / "host-helper"
BIN = Path(os.environ.get("VIW_BIN", ROOT / "build" / "dev" / "bin"))
README = (HELPER / "README.md").read_text()
UNIT = (ROOT / "compose" / "systemd" / "viworks-host-helper.service").read_text()


def test_denied_system_calls_are_listed_with_their_reasons():
    code = re.findall(r'DENY\((\w+), "([^"]+)"\)', (HELPER / "sandbox.c").read_text())
    section = README.split("| system call |")[1].split("\n\n")[0]
    assert code == re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M)


def unit_capabilities():
    return set(re.search(r"^CapabilityBoundingSet=(.+)$", UNIT, re.M)[1].split())


def test_capabilities_of_the_unit_are_listed():
    section = README.split("| capability | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(CAP_\w+)`", section)) == unit_capabilities()


def test_the_unit_grants_what_shipped_manifests_declare_and_no_more():
    declared = set()
    for p in (HELPER / "verbs.d").glob("*.json"):
        declared |= set(json.loads(p.read_text()).get("capabilities", []))
    own = {"CAP_KILL", "CAP_SETUID", "CAP_SETGID"}  # the helper's: ending runs and run_as
    assert unit_capabilities() - own == declared - {"CAP_SYS_CHROOT"}


sys.path.insert(0, str(ROOT / "tools"))
import helper_size  # noqa: E402


def test_sizes_of_the_privileged_code_are_right():
    told = {part: int(n) for part, n in re.findall(r"^\| ([a-z -]+) \| [^|]+ \| (\d+) \|$", README, re.M)}
    for part, _, n in helper_size.rows():
        assert abs(told[part] - n) <= 50, (part, told[part], n)
    assert {stem for stem, _ in helper_size.files()} == set(" ".join(stems for _, _, stems in helper_size.PARTS).split())


def test_the_order_of_reading_names_every_privileged_file():
    section = README.split("| read | lines |")[1].split("\n\n")[0]
    rows = [(re.findall(r"`(\w+)`", stems), int(n)) for stems, n in re.findall(r"^\| (`[^|]+) \| (\d+) \|", section, re.M)]
    for stems, n in rows:
        assert abs(helper_size.count(" ".join(stems)) - n) <= 20, (stems, n)
    privileged = " ".join(stems for _, _, stems in helper_size.PARTS[:2]).split()
    assert sorted(sum((stems for stems, _ in rows), [])) == sorted(privileged)


def test_lines_linked_from_the_libraries_are_right():
    binary = BIN / "host-helper"
    if not binary.exists():
        pytest.skip("host-helper is not built")
    told = [int(n) for n in re.findall(r"^\| linked of `lib/`.* \| (\d+) \|$", README, re.M)]
    reach, start = helper_size.linked(binary)
    if reach == 0:
        pytest.skip("this build has no file names in its symbols")
    assert abs(told[0] - reach) <= 100 and abs(told[1] - start) <= 100, (told, reach, start)


def test_the_helper_loads_no_library_that_its_programs_are_there_for():
    if not (BIN / "host-helper-verbs").exists():
        pytest.skip("host-helper is not built")
    needed = {p: re.findall(r"NEEDED.*\[lib(\w+)", subprocess.run(["readelf", "-d", BIN / p], stdout=subprocess.PIPE, text=True).stdout)
              for p in ("host-helper", "host-helper-verbs", "host-helper-containers")}
    assert "seccomp" in needed["host-helper"] and not {"curl", "systemd"} & set(needed["host-helper"])
    assert "systemd" in needed["host-helper-verbs"] and "crypto" not in needed["host-helper-verbs"]
    assert "curl" in needed["host-helper-containers"] and "systemd" not in needed["host-helper-containers"]


def test_hours_of_reading_are_those_of_the_lines():
    lines = {words: int(n) for words, n in re.findall(r"^\| (.+?) \| [^|]*\| \**(\d+)\** \|$", README, re.M)}
    own = lines["**privileged and in the socket's reach**"]
    lib = next(n for words, n in lines.items() if "in its reach" in words)
    assert abs(own - sum(n for _, _, n in helper_size.rows()[:2])) <= 50
    rate, own_h, lib_h = re.search(r"At ([\d,]+) lines an hour.*?([\d.]+) hours.*?([\d.]+) hours", README, re.S).groups()
    rate = int(rate.replace(",", ""))
    assert abs(own / rate - float(own_h)) <= 0.2 and abs(lib / rate - float(lib_h)) <= 0.2


ATTACKS = (ROOT / "docs" / "helper-attacks.md").read_text()


def test_the_list_of_attacks_is_the_tests():
    told = set(re.findall(r"`(test_\w+)` \|$", ATTACKS, re.M))
    files = {p: set(re.findall(r"^(?:def|static void) (test_\w+)", p.read_text(), re.M))
             for p in [*(ROOT / "tests/integration").glob("test_05_helper*.py"), ROOT / "tests/unit/test_verbs.c", ROOT / "tests/unit/test_journal.c"]}
    assert told <= set().union(*files.values()), told - set().union(*files.values())
    for name in ("attacks", "boundary", "runs", "owner", "audit", "verbs", "clock", "blind"):
        tests = files[ROOT / f"tests/integration/test_05_helper_{name}.py"]
        assert tests <= told, (name, tests - told)


def calls(word):
    """Files of the helper in which this function is called."""
    return {p.name for p in HELPER.glob("*.c") if re.search(rf"^\t.*\b{word}\(", p.read_text(), re.M)}


def test_the_seam_between_parser_and_executor_is_where_it_is_said_to_be():
    """ARCHITECTURE.md, "where it can be cut": peers' bytes are decoded in one file, and one call leads out of it."""
    assert calls("wire_decode_as") == {"request.c"} and calls("dispatch_request") == {"request.c"}
    assert calls("line_open") == {"request.c"} and calls("conn_send") == {"reply.c"}
    request = (HELPER / "request.c").read_text()
    handle = request[request.index("void request_handle"):]
    order = [handle.index(word) for word in ("line_open(", "wire_decode_as(", "check_time(", "take_nonce(", "rate_allows(", "dispatch_request(")]
    assert order == sorted(order), "MAC, then JSON, then time, then nonce"


def test_macs_are_compared_in_constant_time():
    assert "crypto_equal(want, got" in (HELPER / "line.c").read_text() and "memcmp" not in (HELPER / "line.c").read_text()
    crypto = (ROOT / "lib/crypto/crypto.c").read_text()
    assert "CRYPTO_memcmp" in re.search(r"^bool crypto_equal.*?^}", crypto, re.M | re.S)[0]


def test_the_runbook_says_why_sudo_is_not_used():
    page = (ROOT / "runbooks/helper-down.md").read_text()
    assert re.search(r"sudo.*NoNewPrivileges.*run_as", page, re.S)
