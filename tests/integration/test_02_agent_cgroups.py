"""02 telemetry: the limits of the agent's own cgroup, under a kernel that has the unified hierarchy (v2) alone, as
Debian does by default.

This machine may have another hierarchy, and its controllers cannot be moved: the kernel is user-mode-linux, a program.
v1 and v2 of the machine itself are in test_06_agent_deploy.py.
"""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASE = Path(os.environ.get("VIW_RELEASE_BIN", ROOT / "build" / "release" / "bin"))
KERNEL = shutil.which("linux.uml")
MIB = 2 ** 20


@pytest.mark.skipif(not KERNEL, reason="needs user-mode-linux")
@pytest.mark.skipif(not (RELEASE / "gateway-agent").exists(), reason="needs the release build: ASan does not run there")
@pytest.mark.timeout(90)
def test_limits_of_the_unified_hierarchy(tmp):
    memory = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 512 * MIB else tmp
    done = subprocess.run(
        [KERNEL, "mem=256M", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "init=/usr/bin/python3", "con0=null,fd:1",
         "con=null", f"uml_dir={tmp}", "umid=guest", "--", ROOT / "tests" / "lib" / "guest_cgroups.py",
         RELEASE / "gateway-agent"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, cwd=tmp,
        env=dict(os.environ, TMPDIR=str(memory)))
    text = done.stdout.decode(errors="replace")
    if "up" not in text.splitlines():
        pytest.skip(f"user-mode-linux does not run here: {text[-300:]}")
    told = [line for line in text.splitlines() if line.startswith("told ")]
    assert told, text
    told = json.loads(told[0].removeprefix("told "))
    assert told["free"] is None, "no limit, nothing to tell"
    for name, memory, cores in (("unit", 64, 0.5), ("slice", 96, 1.5), ("both", 48, 0.25), ("container", 80, 0.75)):
        g = told[name]
        assert g["version"] == 2 and g["memory_limit_bytes"] == memory * MIB, (name, g)
        assert g["cpu_limit_cores"] == pytest.approx(cores), (name, g)
        assert MIB < g["memory_used_bytes"] < memory * MIB, (name, g)
