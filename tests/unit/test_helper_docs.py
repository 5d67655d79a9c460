"""host-helper/README.md says what the code and the unit do: system calls, capabilities, environment of scripts."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPER = ROOT / "host-helper"
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


PARTS = {
    "dispatcher": "listen conn request dispatch reply loop helper helper_main main host_helper_settings",
    "runs": "run supervisor child tree journal outcome sandbox",
    "built-in verbs": "builtin health services logs containers engine",
    "audit log": "audit audit_counts",
}


def lines_of_code(names):
    paths = [p for p in HELPER.iterdir() if p.stem in names.split() and p.suffix in (".c", ".h", ".def")]
    return sum(not re.match(r"\s*($|/\*|\*|//)", line) for p in paths for line in p.read_text().splitlines())


def test_sizes_of_the_privileged_code_are_right():
    told = {part: int(n) for part, n in re.findall(r"^\| ([a-z -]+?)(?:: .*| \(.*\))? \| (\d+) \|$", README, re.M)}
    for part, names in PARTS.items():
        assert abs(told[part] - lines_of_code(names)) <= 50, (part, told[part], lines_of_code(names))
    all_files = {p.stem for p in HELPER.iterdir() if p.suffix in (".c", ".h", ".def")}
    assert all_files == set(" ".join(PARTS.values()).split())
