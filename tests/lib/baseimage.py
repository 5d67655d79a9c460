"""A Debian base image out of this machine's own packages: the same files that debootstrap would unpack,
without fetching and unpacking them again. Stands in for docker.io's debian:12-slim where no registry is
reached; apt-get works in it, and finds installed what the list names.

    baseimage.write("base.tar", ["curl", "redis-server"])
"""
import io
import os
import re
import subprocess
import tarfile

# Nothing in an image of ours reads these; libLLVM and libz3 are loaded for PostgreSQL's JIT only.
LEAVE_OUT = re.compile(r"^/usr/share/(doc|man|info|locale|lintian|bug)/|/lib(LLVM|z3)|/postgresql/15/lib/bitcode/")
FRESH = ("/tmp", "/var/tmp", "/proc", "/sys", "/dev", "/run", "/var/lib/apt/lists", "/var/lib/apt/lists/partial",
         "/var/cache/apt/archives/partial", "/root", "/var/log", "/var/lib/dpkg", "/var/lib/dpkg/updates", "/home")


def installed():
    """{package: (its names of dependencies, essential, block of the status file)}, {virtual: package}"""
    packages, provides = {}, {}
    with open("/var/lib/dpkg/status") as f:
        for block in f.read().split("\n\n"):
            field = dict(re.findall(r"^(Package|Status|Depends|Pre-Depends|Provides|Essential): (.*)$", block, re.M))
            if not field.get("Status", "").endswith(" installed"):
                continue
            wants = [re.sub(r"\(.*?\)|:\w+|\s", "", d).split("|")
                     for k in ("Pre-Depends", "Depends") for d in field.get(k, "").split(",")]
            packages[field["Package"]] = (wants, "Essential" in field, block)
            for name in field.get("Provides", "").split(","):
                provides.setdefault(re.sub(r"\(.*?\)|\s", "", name), field["Package"])
    return packages, provides


def closure(names):
    packages, provides = installed()
    todo, seen = [p for p, (_, essential, _) in packages.items() if essential] + list(names), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        if name not in packages:
            raise LookupError(f"package {name} is not installed here")
        seen.add(name)
        for alternatives in packages[name][0]:
            found = [p for a in alternatives for p in ([a] if a in packages else [provides.get(a)]) if p]
            todo += found[:1]
    return seen, "\n\n".join(packages[p][2] for p in sorted(seen)) + "\n\n"


def place(path):
    """Where a packaged path lies on a merged /usr."""
    head, tail = os.path.split(path)
    return os.path.join(os.path.realpath(head), tail)


def write(tar_path, names):
    packages, status = closure(["apt", "base-files", *names])
    listed = subprocess.run(["dpkg-query", "-L", *sorted(packages)], stdout=subprocess.PIPE, text=True, check=True).stdout
    paths = {place(p) for p in listed.split("\n") if p.startswith("/") and p != "/."}
    # What maintainer scripts made.
    paths.update("/etc/" + n for n in ("passwd", "group", "ld.so.cache", "ca-certificates.conf", "debian_version"))
    for top in ("/etc/alternatives", "/etc/apt", "/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/lib/ssl",
                "/var/lib/dpkg/alternatives", "/var/lib/apt/lists"):
        for base, dirs, files in os.walk(top):
            paths.update(os.path.join(base, n) for n in dirs + files)
    for link in os.listdir("/etc/alternatives"):
        made = os.path.join("/usr/bin", link)
        if os.path.islink(made):
            paths.add(made)
    paths.update(os.path.join("/", n) for n in ("bin", "sbin", "lib", "lib32", "lib64", "libx32") if os.path.islink("/" + n))
    with tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(paths):
            if os.path.lexists(path) and not LEAVE_OUT.search(path) and path not in FRESH:
                tar.add(path, recursive=False)
        for path in FRESH:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if path.endswith("tmp") else 0o755
            tar.addfile(entry)
        for path, text in (("var/lib/dpkg/status", status), ("etc/hosts", "127.0.0.1 localhost\n"), ("etc/resolv.conf", "")):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
