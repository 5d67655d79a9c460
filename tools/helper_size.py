#!/usr/bin/python3
"""Lines of host-helper's code, by what runs them: without blanks and comments, headers included.

    tools/helper_size.py [BINARY]     with a binary (not stripped, no LTO): also what it links of lib/
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELPER = ROOT / "host-helper"
SUFFIXES = (".c", ".h", ".def")

# part, who runs it, files below host-helper/ without their suffix
PARTS = [
    ("dispatcher", "root, all the time", "listen line conn request dispatch reply run run_private settle audit audit_counts helper loop health"),
    ("supervisor and child", "root, one process a run", "supervisor child verbs_program tree journal outcome sandbox"),
    ("start and subcommands", "root, out of the socket's reach", "main helper_main host_helper_settings verbs_settings audit_verify"),
    ("built-in verbs", "nobody, programs of their own", "verbs/verbs_main verbs/containers_main verbs/builtin verbs/services verbs/logs verbs/confine verbs/containers verbs/engine"),
]
# of lib/: what reads options, settings and manifests, which are root's own
START = "builtin manifest program settings settings_file settings_show".split()


def code_lines(path):
    return sum(not re.match(r"\s*($|/\*|\*|//)", line) for line in path.read_text().splitlines())


def files():
    """Every file of host-helper/ that is code, by its path there without the suffix."""
    return [(p.relative_to(HELPER).with_suffix("").as_posix(), p) for p in HELPER.rglob("*") if p.suffix in SUFFIXES]


def count(stems):
    stems = stems.split()
    return sum(code_lines(p) for stem, p in files() if stem in stems)


def linked(binary):
    """Lines of the files of lib/ that are in the binary, with their headers: in the socket's reach, at the start only."""
    out = subprocess.run(["readelf", "-sW", binary], stdout=subprocess.PIPE, text=True, check=True).stdout
    stems = {Path(name).stem for name in re.findall(r" FILE .* (\S+\.c)$", out, re.M)}
    found = [p for d in ("base", "crypto", "wire", "verbs") for p in (ROOT / "lib" / d).glob("*.[chd]*")
             if p.suffix in SUFFIXES and (p.stem in stems or p.suffix == ".def" and "wire_table" in stems and p.stem == "frames")]
    start = sum(code_lines(p) for p in found if p.stem in START)
    return sum(map(code_lines, found)) - start, start


def rows():
    return [(name, who, count(stems)) for name, who, stems in PARTS]


def main():
    print("| part | run by | lines |\n|---|---|---|")
    for name, who, n in rows():
        print(f"| {name} | {who} | {n} |")
    print(f"| **privileged and in the socket's reach** | | **{sum(n for _, _, n in rows()[:2])}** |")
    if len(sys.argv) > 1:
        reach, start = linked(sys.argv[1])
        print(f"| linked of `lib/` (base, crypto, wire, verbs), in its reach | root, with both | {reach} |")
        print(f"| linked of `lib/`, settings and manifests | root, out of the socket's reach | {start} |")


if __name__ == "__main__":
    main()
