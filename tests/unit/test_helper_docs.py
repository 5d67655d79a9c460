"""host-helper/README.md says what the code and the unit do: system calls, capabilities, environment of scripts."""
import json
import os
import re
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
    all_files = {p.stem for p in HELPER.iterdir() if p.suffix in helper_size.SUFFIXES}
    assert all_files == set(" ".join(stems for _, _, stems in helper_size.PARTS).split())


def test_lines_linked_from_the_libraries_are_right():
    binary = BIN / "host-helper"
    if not binary.exists():
        pytest.skip("host-helper is not built")
    told = int(re.search(r"^\| linked of `lib/`.* \| (\d+) \|$", README, re.M)[1])
    n = helper_size.linked(binary)
    if n == 0:
        pytest.skip("this build has no file names in its symbols")
    assert abs(told - n) <= 300, (told, n)


ATTACKS = (ROOT / "docs" / "helper-attacks.md").read_text()


def test_the_list_of_attacks_is_the_tests():
    told = set(re.findall(r"`(test_\w+)` \|$", ATTACKS, re.M))
    files = {p: set(re.findall(r"^(?:def|static void) (test_\w+)", p.read_text(), re.M))
             for p in [*(ROOT / "tests/integration").glob("test_05_helper*.py"), ROOT / "tests/unit/test_verbs.c", ROOT / "tests/unit/test_journal.c"]}
    assert told <= set().union(*files.values()), told - set().union(*files.values())
    for name in ("attacks", "boundary", "runs", "owner", "audit"):
        tests = files[ROOT / f"tests/integration/test_05_helper_{name}.py"]
        assert tests <= told, (name, tests - told)
