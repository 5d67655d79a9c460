#!/usr/bin/python3
"""The first and only process of a kernel of its own (test_02_agent_cgroups.py), which has the unified hierarchy alone:
starts an agent in groups with limits and prints what each tells of them as one line of JSON."""
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
CGROUP = Path("/sys/fs/cgroup")
MIB = 2 ** 20
# name: the groups downwards, with their limits
GROUPS = {
    "free": [("free.slice", {}), ("free.service", {})],
    "unit": [("unit.slice", {}), ("unit.service", {"memory.max": 64 * MIB, "cpu.max": "50000 100000"})],
    "slice": [("slice.slice", {"memory.max": 96 * MIB, "cpu.max": "150000 100000"}), ("slice.service", {})],
    "both": [("both.slice", {"memory.max": 96 * MIB, "cpu.max": "25000 100000"}),
             ("both.service", {"memory.max": 48 * MIB, "cpu.max": "200000 100000"})],
    "container": [("kubepods", {}), ("c1", {"memory.max": 80 * MIB, "cpu.max": "75000 100000"})],
}


def sh(*argv):
    subprocess.run(argv, check=True)


def make(levels):
    at = CGROUP
    for name, limits in levels:
        (at / "cgroup.subtree_control").write_text("+memory +cpu")
        at /= name
        at.mkdir()
        for file, value in limits.items():
            (at / file).write_text(str(value))
    return at


def start(agent, name, group, url):
    env = dict(os.environ, VIW_AGENT_BACKEND_URL=url, VIW_AGENT_ID=name, VIW_AGENT_STATE_DIR="/run",
               VIW_AGENT_TELEMETRY_INTERVAL_S="3600")
    argv = [agent]
    if name == "container":  # as engines do it: a namespace, and a mount that shows nothing above
        argv = ["unshare", "-C", "-m", "sh", "-c", f"umount {CGROUP} && mount -t cgroup2 cgroup2 {CGROUP} && exec {agent}"]
    return subprocess.Popen(argv, env=env, preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))


def main(agent):
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp"), ("cgroup2", CGROUP)):
        sh("mount", "-t", kind, kind, where)
    print("up", flush=True)
    sh("ip", "link", "set", "lo", "up")
    import json
    import peers
    import viwtest
    bridge = peers.PeerBridge(viwtest.WsLoop()).start()
    url = f"ws://127.0.0.1:{bridge.port}/agent/ws"
    for name, levels in GROUPS.items():
        start(agent, name, make(levels), url)
    told = {name: bridge.wait_frame("TELEMETRY", agent_id=name, timeout=20)["metrics"] for name in GROUPS}
    print("told", json.dumps({name: m.get("agent_cgroup") for name, m in told.items()}), flush=True)


try:
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    main(sys.argv[1])
except BaseException as e:  # noqa: B036  the first process must not end: the kernel would panic
    print("failed", repr(e), flush=True)
time.sleep(0.1)
Path("/proc/sysrq-trigger").write_text("o")
time.sleep(60)
