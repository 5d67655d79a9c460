"""A real systemd and a real podman for tests, in namespaces of their own: nothing of this machine's
is touched. Need root.

    with Systemd(dir) as s:         # PID 1 of its own pid, mount, net, … namespace
        s.put("/etc/x", "text"); s.run("systemctl", "start", "x")
    with Podman(dir) as p:          # own storage; the host's network
        p.run("run", "--rm", image, …)
    with Docker(dir) as d:          # a dockerd with own storage and network; d.socket
        d.call("GET", "/version")
"""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from viwtest import wait_for


def user_namespaces_work():
    """user_namespaces(7): not inside a chroot. Units run there without PrivateUsers."""
    return subprocess.run(["unshare", "--user", "true"], stderr=subprocess.DEVNULL).returncode == 0


def needs_podman_exec():
    """Inside a chroot podman cannot pivot_root, so what it executes in a container later, health checks too, is looked for
    outside of it."""
    if not user_namespaces_work():
        pytest.skip("podman cannot execute in a container that runs inside a chroot")


CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")

SYSTEMD_INIT = r"""
set -e
B=$1; R=$B/root
mount -t overlay overlay -o "lowerdir=${2:-/},upperdir=$B/upper,workdir=$B/work" "$R"
mount -t proc proc "$R/proc"
mount --rbind /sys "$R/sys"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$R/run"
mount -t tmpfs tmpfs "$R/tmp"
mkdir -p "$R$B"; mount --bind "$B" "$R$B"
[ "${2:-/}" != / ] || [ -e "$R$4" ] || { mkdir -p "$R$4"; mount --bind "$4" "$R$4"; }   # a tree in /tmp
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for d in null zero full random urandom tty; do : > "$R/dev/$d"; mount --bind "/dev/$d" "$R/dev/$d"; done
mkdir "$R/dev/pts" "$R/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$R/dev/pts"; ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs tmpfs "$R/dev/shm"
ln -s /proc/self/fd "$R/dev/fd"; ln -s null "$R/dev/console"
umount -l "$R/sys/fs/cgroup" 2>/dev/null || true
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
else
mount -t tmpfs -o mode=755 cgroup "$R/sys/fs/cgroup"
for h in cpu cpuacct cpuset memory devices freezer blkio pids; do
	mkdir "$R/sys/fs/cgroup/$h"; mount -t cgroup -o "$h" "$h" "$R/sys/fs/cgroup/$h" || rmdir "$R/sys/fs/cgroup/$h"
done
mkdir "$R/sys/fs/cgroup/systemd" "$R/sys/fs/cgroup/unified"
mount -t cgroup -o none,name=systemd systemd "$R/sys/fs/cgroup/systemd"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup/unified"
fi
ip link set lo up
hostname "${3:-viwtest}"; hostname > "$R/etc/hostname"
echo 0123456789abcdef0123456789abcde0 > "$R/etc/machine-id"
S=$R/etc/systemd/system; mkdir -p "$S"; rm -rf "$S"/*.wants "$S"/*.requires
printf '[Unit]\nRequires=basic.target dbus.socket\nAfter=basic.target\nAllowIsolate=yes\n' > "$S/viwtest.target"
for u in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
	systemd-modules-load.service systemd-sysctl.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
	sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
	systemd-random-seed.service systemd-hwdb-update.service systemd-pcrphase.service systemd-firstboot.service \
	systemd-pcrphase-sysinit.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
	systemd-remount-fs.service fstrim.timer e2scrub_all.timer dpkg-db-backup.timer logrotate.timer; do
	ln -sf /dev/null "$S/$u"
done
: > "$R/etc/fstab"
cd "$R"; mkdir -p old; pivot_root . old; cd /; umount -l old
mount --make-rshared /  # as container managers do: credentials reach a unit by propagation
exec env -i container=viwtest PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --system --unit=viwtest.target --log-target=null
"""


class Systemd:
    """systemd as PID 1 on a copy-on-write view of this machine's root, or of another. `beside` is a machine whose
    network it shares."""

    def __init__(self, dir, root="/", name="viwtest", size="512m", beside=None):
        self.dir = Path(dir) / "sd"
        self.root, self.name, self.size, self.beside = root, name, size, beside
        self.group = f"viw-{os.getpid()}-{id(self) & 0xffff:x}"
        self.shell = self.init = None

    def __enter__(self):
        for d in ("upper", "work", "root"):
            (self.dir / d).mkdir(parents=True)
        # overlay's upper and work must not lie on an overlay themselves: a tmpfs always does
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.dir], check=True)
        for d in ("upper", "work", "root"):
            (self.dir / d).mkdir()
        self.groups = []
        top = Path("/sys/fs/cgroup")
        unified = (top / "cgroup.controllers").exists()
        for base in [top] if unified else [top / h for h in (*CONTROLLERS, "systemd", "unified")]:
            if not base.is_dir():
                continue
            if unified:
                (base / "cgroup.subtree_control").write_text("+memory +pids +cpu")
            g = base / self.group
            g.mkdir()
            if base.name == "cpuset":
                for f in ("cpuset.cpus", "cpuset.mems"):
                    (g / f).write_text((base / f).read_text())
            self.groups.append(g)
        script = self.dir / "init.sh"
        script.write_text(SYSTEMD_INIT)

        def enter_groups():
            for g in self.groups:
                (g / "cgroup.procs").write_text(str(os.getpid()))
        self.log = open(self.dir / "boot.log", "wb")
        self.shell = subprocess.Popen(
            [*(["nsenter", "-t", self.beside.init, "-n"] if self.beside else []),
             "unshare", "-m", "-p", *([] if self.beside else ["-n"]), "-u", "-i", "-C", "--fork", "--kill-child",
             "--propagation", "private", "bash", script, self.dir, self.root, self.name,
             Path(__file__).resolve().parents[2]], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            preexec_fn=enter_groups, start_new_session=True)
        deadline = time.monotonic() + 20
        while True:
            kids = Path(f"/proc/{self.shell.pid}/task/{self.shell.pid}/children").read_text().split()
            if kids:
                self.init = kids[0]
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return self
            if time.monotonic() > deadline or self.shell.poll() is not None:
                text = (self.dir / "boot.log").read_text()
                self.__exit__()
                raise AssertionError(f"systemd did not come up: {text}")
            time.sleep(0.05)

    def run(self, *argv, check=True, input=None, timeout=30):
        done = subprocess.run(
            ["nsenter", "-t", self.init, "-m", "-p", "-n", "-u", "-i", "-C", "-r", "--", "env", "-i",
             "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *map(str, argv)], input=input,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, stdin=None if input else subprocess.DEVNULL)
        if check and done.returncode:
            why = self.journal(argv[2])[-3000:] if argv[:2] == ("systemctl", "start") else ""
            raise AssertionError(f"{argv} failed ({done.returncode}):\n{done.stdout}{why}")
        return done

    def put(self, path, text_or_file, mode=0o644, owner="root:root"):
        """A file inside; its folders are made."""
        if isinstance(text_or_file, Path):
            text_or_file = text_or_file.read_bytes()
        data = text_or_file if isinstance(text_or_file, bytes) else text_or_file.encode()
        tmp = self.dir / "put"
        tmp.write_bytes(data)
        user, group = owner.split(":")
        self.run("install", "-D", "-m", f"{mode:o}", "-o", user, "-g", group, tmp, path)
        tmp.unlink()

    def journal(self, unit):
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager", check=False).stdout

    def spawn(self, argv, **kwargs):
        """A program of the test inside its network and mounts; the caller ends it."""
        return subprocess.Popen(["nsenter", "-t", self.init, "-m", "-n", "-p", "-r", "--", *map(str, argv)], **kwargs)

    def __exit__(self, *_):
        if self.init:
            try:
                os.kill(int(self.init), signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.shell:
            self.shell.kill()
            self.shell.wait()
        self.log.close()
        for g in self.groups:
            for path, _, _ in list(os.walk(g, topdown=False)):
                for _ in range(40):
                    try:
                        os.rmdir(path)
                        break
                    except OSError:
                        time.sleep(0.05)
        subprocess.run(["umount", "-l", self.dir], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)


PODMAN_INIT = r"""
set -e
B=$1
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi   # crun refuses hybrid cgroups
mkdir -p /run/containers /var/lib/containers /run/libpod
mount --bind "$B/lib" /var/lib/containers
for d in /run/containers /run/libpod /dev/shm; do mount -t tmpfs tmpfs $d; done   # its locks are in /dev/shm
if [ "$2" = net ]; then
	mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; mount --make-shared /run/netns
	ip link set lo up
fi
echo ready; exec sleep infinity
"""

CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""


class Podman:
    """podman with storage of its own in a private mount namespace; containers share the host's net, or
    with own_net=True find a machine without any network but what they make."""

    def __init__(self, dir, own_net=False, driver="vfs"):
        self.dir = Path(dir) / "pod"
        self.own_net, self.driver = own_net, driver
        self.shell = self.api = None

    def __enter__(self):
        (self.dir / "lib").mkdir(parents=True)
        (self.dir / "containers.conf").write_text(
            CONTAINERS_CONF + (f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{self.dir}/networks"\n'
                               if self.own_net else ""))
        (self.dir / "storage.conf").write_text(
            f'[storage]\ndriver = "{self.driver}"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n')
        (self.dir / "init.sh").write_text(PODMAN_INIT)
        self.shell = subprocess.Popen(["unshare", "-m", *["-n"] * self.own_net, "--propagation", "private", "bash",
                                       self.dir / "init.sh", self.dir, "net" if self.own_net else ""],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      text=True, start_new_session=True)
        line = self.shell.stdout.readline()
        if line.strip() != "ready":
            raise AssertionError(f"no namespace for podman: {line}")
        return self

    def inside(self, *argv, host_net=False):
        """Any program, seeing this podman. host_net: with the machine's network, for fetching packages."""
        net = ["-n"] * (self.own_net and not host_net)
        return ["nsenter", "-t", str(self.shell.pid), "-m", *net, "-r", f"-w{Path.cwd()}", "--", "env",
                "PODMAN_IGNORE_CGROUPSV1_WARNING=1",  # podman 5 says it on every call, among the answers
                f"CONTAINERS_CONF={self.dir}/containers.conf", f"CONTAINERS_STORAGE_CONF={self.dir}/storage.conf",
                *map(str, argv)]

    def argv(self, *argv):
        return self.inside("podman", *argv)

    def serve(self, sock):
        """Its Docker API there, until the end."""
        self.api = subprocess.Popen(self.inside("env", "DISABLE_HC_SYSTEMD=true", "podman", "system", "service", "--time=0", f"unix://{sock}"),
                                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(sock.exists, 10, "podman's Docker API")

    def run(self, *argv, check=True, timeout=60, input=None):
        done = subprocess.run(self.argv(*argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=timeout, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise AssertionError(f"podman {argv} failed ({done.returncode}):\n{done.stdout}")
        return done

    def __exit__(self, *_):
        if self.api:
            self.api.terminate()
            self.api.wait()
        self.run("rm", "-fa", "-t", "0", check=False)
        self.shell.kill()
        self.shell.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


DOCKER_INIT = r"""
set -e
B=$1
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
mkdir -p /run/docker /run/containerd /run/netns
mkdir -p "$B/data"
for d in /run/docker /run/containerd /run/netns "$B/data"; do mountpoint -q $d || mount -t tmpfs tmpfs $d; done
ip link set lo up
exec dockerd -H "unix://$B/engine.sock" --data-root "$B/data" --exec-root "$B/exec" -p "$B/pid" --storage-driver vfs --shutdown-timeout 1
"""


class Docker:
    """dockerd in mount and network namespaces of its own, with its usual bridge; start() again after stop()."""

    def __init__(self, dir):
        self.dir = Path(dir) / "docker"
        self.socket = self.dir / "engine.sock"
        self.proc = None

    def __enter__(self):
        self.dir.mkdir(parents=True)
        (self.dir / "init.sh").write_text(DOCKER_INIT)
        # A namespace that outlives the daemon, so that a restart finds its bridge again.
        self.net = subprocess.Popen(["unshare", "-m", "-n", "--propagation", "private", "sleep", "infinity"], start_new_session=True)
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def start(self):
        deadline = time.monotonic() + 30
        while os.readlink(f"/proc/{self.net.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with open(self.dir / "log", "ab") as log:
            self.proc = subprocess.Popen(self.enter("bash", self.dir / "init.sh", self.dir), stdin=subprocess.DEVNULL,
                                         stdout=log, stderr=log, start_new_session=True)
        while True:
            try:
                if self.call("GET", "/_ping")[0] == 200:
                    return self
            except OSError:
                pass
            if self.proc.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("dockerd did not come up:\n" + (self.dir / "log").read_text()[-3000:])
            time.sleep(0.05)

    def enter(self, *argv):
        return ["nsenter", "-t", str(self.net.pid), "-m", "-n", "--", *map(str, argv)]

    def call(self, method, path, body=None):
        """(status, decoded answer) of the engine's API; a file or bytes is sent as a tar archive."""
        c = http.client.HTTPConnection("engine", timeout=60)
        c.sock = socket.socket(socket.AF_UNIX)
        c.sock.settimeout(60)
        c.sock.connect(str(self.socket))
        raw = isinstance(body, bytes)
        c.request(method, path, body if raw or body is None else json.dumps(body),
                  {"Content-Type": "application/x-tar" if raw else "application/json"})
        reply = c.getresponse()
        text = reply.read()
        c.close()
        try:
            return reply.status, json.loads(text) if text else None
        except ValueError:
            return reply.status, text

    def stop(self):
        self.proc.terminate()
        try:
            self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()

    def __exit__(self, *_):
        if self.proc and self.proc.poll() is None:
            for c in self.call("GET", "/containers/json?all=true")[1]:
                self.call("DELETE", f"/containers/{c['Id']}?force=true&v=true")
            self.stop()
        self.net.kill()
        self.net.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
