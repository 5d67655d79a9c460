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

# part, who runs it, files by stem
PARTS = [
    ("dispatcher", "root, all the time", "listen line conn request dispatch reply run run_private settle audit audit_counts helper loop health builtin"),
    ("supervisor and child", "root, one process a run", "supervisor child tree journal outcome sandbox"),
    ("built-in verbs", "nobody, one process a request", "services logs containers engine"),
    ("start and subcommands", "root, out of the socket's reach", "main helper_main host_helper_settings audit_verify"),
]


def code_lines(path):
    return sum(not re.match(r"\s*($|/\*|\*|//)", line) for line in path.read_text().splitlines())


def count(stems):
    stems = stems.split()
    return sum(code_lines(p) for p in HELPER.iterdir() if p.stem in stems and p.suffix in SUFFIXES)


def linked(binary):
    """Lines of the files of lib/ that are in the binary, with their headers."""
    out = subprocess.run(["readelf", "-sW", binary], stdout=subprocess.PIPE, text=True, check=True).stdout
    stems = {Path(name).stem for name in re.findall(r" FILE .* (\S+\.c)$", out, re.M)}
    return sum(code_lines(p) for d in ("base", "crypto", "wire", "verbs") for p in (ROOT / "lib" / d).glob("*.[chd]*")
               if p.suffix in SUFFIXES and (p.stem in stems or p.suffix == ".def" and "wire_table" in stems and p.stem == "frames"))


def rows():
    return [(name, who, count(stems)) for name, who, stems in PARTS]


def main():
    print("| part | run by | lines |\n|---|---|---|")
    for name, who, n in rows():
        print(f"| {name} | {who} | {n} |")
    print(f"| **privileged and in the socket's reach** | | **{sum(n for _, _, n in rows()[:2])}** |")
    if len(sys.argv) > 1:
        print(f"| linked of `lib/` (base, crypto, wire, verbs) | all of them | {linked(sys.argv[1])} |")


if __name__ == "__main__":
    main()
