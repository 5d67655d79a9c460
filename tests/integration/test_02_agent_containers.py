"""02 telemetry: a site's containers, from a real engine through helper and agent to the frame."""
import json
import os

import pytest

import peers
from helperlib import KEY, Helper
from test_01_agent_uplink import bridge  # noqa: F401 (fixture)
from test_05_helper_containers import podman  # noqa: F401 (fixture)
from viwtest import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.timeout(90)
def test_containers_reach_telemetry(start, tmp, root_dir, podman, bridge):  # noqa: F811
    engine = root_dir / "engine.sock"
    podman.serve(engine)
    helper = Helper(start, root_dir, HOST_HELPER_ENGINE_SOCKET=str(engine), HOST_HELPER_CONTAINER_IMAGES="localhost/app:1",
                    HOST_HELPER_CONTAINER_NETWORK="host", HOST_HELPER_CONTAINER_PORTS="18100-18109").start()
    b = bridge()
    start("gateway-agent", env=peers.agent_env(
        tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_HELPER_SOCKET=helper.socket, VIW_AGENT_HELPER_SECRET=KEY,
        VIW_AGENT_FEATURE_EXEC_ENABLE="true"))
    assert b.wait_frame("TELEMETRY")["metrics"]["containers"] == []
    made = b.result(b.command("gw-1", "spawn_container", {"name": "one"}), timeout=30)
    assert made["status"] == "success" and json.loads(made["stdout"])["state"] == "running", made

    def told(running):
        m = b.conns[-1].of("TELEMETRY")[-1]["metrics"]
        return m if m["containers_running"] == running else None
    (one,) = wait_for(lambda: told(1), 15)["containers"]
    assert one["name"] == "one" and one["state"] == "running" and "app:1" in one["image"] and one["id"]
    stopped = b.result(b.command("gw-1", "stop_container", {"container": "one", "timeout": 2}), timeout=30)
    assert stopped["status"] == "success", stopped
    assert wait_for(lambda: told(0), 15)["containers"] == []
