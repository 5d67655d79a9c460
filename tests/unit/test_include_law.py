"""Who may include whom (ARCHITECTURE.md, "Folder law"). CMake gives every library the same include
path, so the law stands here: one table, every #include in the tree checked against it."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)

# folder of lib/ -> folders of lib/ it may include
LIBS = {
    "base": set(),
    "crypto": {"base"},
    "wire": {"base"},
    "verbs": {"base", "crypto", "wire"},
    "loop": {"base"},
    "redis": {"base", "loop", "wire"},
    "pg": {"base", "wire"},
    "http": {"base", "crypto", "loop", "wire"},
}
ALL = set(LIBS)
# program folder -> folders of lib/ it may include. host-helper is privileged: no Redis, HTTP, loop.
PROGRAMS = {
    "agent-bridge": ALL - {"pg"},
    "workers": ALL,
    "gateway-agent": ALL - {"pg", "redis"},
    "host-helper": {"base", "crypto", "wire", "verbs"},
    "sql": {"base", "crypto", "wire", "pg"},
    "viwctl": ALL,
    "bench": ALL,
}
# third-party header -> where its types may appear (prefix of the path)
THIRD = {
    "libwebsockets.h": ["lib/http/", "agent-bridge/ws_server", "gateway-agent/uplink", "bench/"],
    "uv.h": ["lib/loop/", "lib/redis/", "lib/http/", "agent-bridge/ws_server", "gateway-agent/uplink", "bench/"],
    "hiredis/": ["lib/redis/"],
    "libpq-fe.h": ["lib/pg/"],
    "postgresql/": ["lib/pg/"],
    "openssl/": ["lib/crypto/", "lib/http/", "agent-bridge/ws_server", "agent-bridge/tls", "gateway-agent/uplink",
                 "gateway-agent/trust", "bench/", "viwctl/"],
    "jansson.h": ["lib/verbs/", "host-helper/verbs/", "viwctl/", "tests/"],
    "systemd/": ["host-helper/verbs/"],
    "seccomp.h": ["host-helper/sandbox"],
    "curl/": ["host-helper/verbs/", "viwctl/"],
}


def c_files(folder):
    return sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".c", ".h", ".def"))


def includes(path):
    text = path.read_text()
    return [(m.group(1), m.group(2), text[:m.start()].count("\n") + 1) for m in INCLUDE.finditer(text)]


def faults_of(path):
    rel = path.relative_to(ROOT).as_posix()
    top, *rest = rel.split("/")
    if top == "lib":
        me, allowed = rest[0], LIBS[rest[0]] | {rest[0]}
    else:
        me, allowed = top, PROGRAMS.get(top)
    out = []
    for quote, name, line in includes(path):
        where = f"{rel}:{line}: {name}"
        head = name.split("/")[0]
        if quote == '"' and head in LIBS and "/" in name:
            if allowed is not None and head not in allowed:
                out.append(f"{where}: {me} may not include lib/{head}")
        elif quote == '"' and (name.startswith("..") or head in PROGRAMS) and head != me:
            if top != "tests" and top != "tools":
                out.append(f"{where}: programs never include each other, nor anything by ../")
        for third, places in THIRD.items():
            if name == third or (third.endswith("/") and name.startswith(third)):
                if not any(rel.startswith(p) for p in places):
                    out.append(f"{where}: {third} stops at its wrapper ({', '.join(places)})")
    return out


def test_every_library_has_a_line_in_the_law():
    assert {p.name for p in (ROOT / "lib").iterdir() if p.is_dir()} == set(LIBS)


@pytest.mark.parametrize("folder", ["lib", *PROGRAMS])
def test_includes_keep_the_law(folder):
    faults = [f for path in c_files(folder) for f in faults_of(path)]
    assert not faults, "\n".join(faults)


def test_cmake_links_what_the_law_says():
    """lib/CMakeLists.txt gives no library a dependency the law does not know."""
    for line in (ROOT / "lib" / "CMakeLists.txt").read_text().splitlines():
        m = re.match(r"viw_lib\((\w+)(?: DEPS ([\w ]*?))?(?: LINKS .*)?\)$", line.strip())
        if m:
            assert set((m.group(2) or "").split()) <= LIBS[m.group(1)], line


def test_the_law_sees_a_breach(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "lib" / "base").mkdir(parents=True)
    bad = tmp_path / "lib" / "base" / "x.c"
    bad.write_text('#include "redis/redis.h"\n#include <hiredis/hiredis.h>\n')
    assert len(faults_of(bad)) == 2


BANNED = re.compile(r"(?<![\w.>])(strcpy|strcat|sprintf|strtok|gets|atoi|system|popen|alloca)\s*\(")


@pytest.mark.parametrize("folder", ["lib", *PROGRAMS])
def test_banned_functions_are_not_called(folder):
    faults = []
    for path in c_files(folder):
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), path.read_text(), flags=re.S)
        text = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', re.sub(r"//.*", "", text))
        for m in BANNED.finditer(text):
            faults.append(f"{path.relative_to(ROOT)}:{text[:m.start()].count(chr(10)) + 1}: {m.group(1)}")
    assert not faults, "\n".join(faults)
