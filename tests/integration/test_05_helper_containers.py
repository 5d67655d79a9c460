"""Privilege: the container verbs against real engines, podman and dockerd."""
import json
import os
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from helperlib import Helper, code
from realhost import Docker, Podman
from viwtest import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def make_rootfs(root):
    """A shell and sleep of this machine, with the libraries they need."""
    for name in ("sh", "sleep"):
        src = Path(f"/bin/{name}").resolve()
        libs = re.findall(r"(/\S+)", subprocess.run(["ldd", src], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for path, to in [(src, f"/bin/{name}")] + [(lib, lib) for lib in libs]:
            target = root / to.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


@pytest.fixture
def podman(tmp):
    if not shutil.which("podman"):
        pytest.skip("needs podman")
    with Podman(tmp) as p:
        rootfs = tmp / "image"
        make_rootfs(rootfs)
        tar = tmp / "image.tar"
        subprocess.run(["tar", "-C", rootfs, "-cf", tar, "."], check=True)
        p.run("import", "-c", 'CMD ["/bin/sh","-c","trap : TERM; /bin/sleep 1000 & wait"]', tar, "localhost/app:1")
        yield p


@pytest.mark.timeout(150)
def test_containers_on_real_podman(start, root_dir, podman):
    engine = root_dir / "engine.sock"
    podman.serve(engine)
    h = Helper(start, root_dir, HOST_HELPER_ENGINE_SOCKET=str(engine), HOST_HELPER_CONTAINER_IMAGES="localhost/app:1",
               HOST_HELPER_CONTAINER_NETWORK="host", HOST_HELPER_CONTAINER_PORTS="18000-18002",
               HOST_HELPER_CONTAINER_MEMORY_MB="64", HOST_HELPER_CONTAINER_PIDS="32").start()
    # somebody else's container is neither listed nor touched
    podman.run("run", "-d", "--network", "host", "--name", "theirs", "localhost/app:1")
    assert h.run("list_containers")["data"]["containers"] == []
    assert code(h.run("stop_container", {"container": "theirs"})) == "bad_args"
    assert code(h.run("spawn_container", {"image": "docker.io/evil:latest"})) == "bad_args"
    first = h.run("spawn_container", {"name": "one", "username": "bob", "userpass": "S3cretPass"}, cid="spawn-1")
    assert first["status"] == "ok", first
    assert first["data"]["port"] == 18000 and first["data"]["state"] == "running"
    again = h.run("spawn_container", {"name": "one", "username": "bob", "userpass": "S3cretPass"}, cid="spawn-1")
    assert again["replayed"] is True and again["data"] == first["data"]
    h.kill()
    h.start()
    second = h.run("spawn_container")["data"]
    assert second["port"] == 18001  # the allocation outlives the helper
    listed = {c["name"]: c for c in h.run("list_containers")["data"]["containers"]}
    assert listed["one"]["port"] == 18000 and listed["one"]["username"] == "bob" and listed["one"]["state"] == "running"
    info = json.loads(podman.run("inspect", "one").stdout)[0]
    host = info["HostConfig"]
    assert host["Memory"] == 64 << 20 and host["PidsLimit"] == 32 and host["CpuShares"] == 512
    assert "no-new-privileges" in " ".join(host["SecurityOpt"]) and not info.get("EffectiveCaps")
    assert "S3cretPass" not in json.dumps(h.run("list_containers"))
    metrics = h.run("get_monitoring_data")["data"]
    assert metrics["containers_running"] == 2 and {c["name"] for c in metrics["containers"]} == {"one", second["name"]}
    h.run("spawn_container")
    assert code(h.run("spawn_container")) == "busy"  # no port left
    stopped = h.run("stop_container", {"container": "one", "timeout": 5})
    assert stopped["status"] == "ok" and stopped["data"]["state"] == "removed", stopped
    assert h.run("spawn_container")["data"]["port"] == 18000
    assert "theirs" in podman.run("ps", "--format", "{{.Names}}").stdout


def test_without_an_engine_the_container_verbs_say_so(start, root_dir):
    h = Helper(start, root_dir).start()
    reply = h.run("list_containers")
    assert code(reply) == "internal" and "container engine: cannot connect to /" in reply["error"]["msg"]
    assert "HOST_HELPER_ENGINE_SOCKET" in reply["error"]["msg"] and "port" not in reply["error"]["msg"]
    assert code(h.run("spawn_container")) == "internal"
    assert "containers" not in h.run("get_monitoring_data")["data"]


# ---------------------------------------------------------------- dockerd, with a bridge and published ports


# Answers each connection with the container's environment; on TERM it says goodbye and ends.
SERVER = """use IO::Socket::INET; $| = 1;
$SIG{TERM} = sub { print "goodbye\\n"; exit 0 };
my $s = IO::Socket::INET->new(LocalPort => 3000, Listen => 5, ReuseAddr => 1) or die;
while (1) { my $c = $s->accept or next; print $c "user $ENV{VIW_USERNAME} pass $ENV{VIW_USERPASS}\\n"; close $c }
"""
STUBBORN = "$SIG{TERM} = 'IGNORE'; sleep 1 while 1"


def add_perl(root):
    """perl-base is on every Debian and can listen."""
    libs = re.findall(r"(/\S+)", subprocess.run(["ldd", "/usr/bin/perl"], stdout=subprocess.PIPE, text=True, check=True).stdout)
    for path in ["/usr/bin/perl", *libs]:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    base = next(Path("/usr/lib").glob("*/perl-base"))
    shutil.copytree(base, root / str(base).lstrip("/"), dirs_exist_ok=True)


@pytest.fixture
def docker(tmp):
    if not shutil.which("dockerd"):
        pytest.skip("needs dockerd (package docker.io)")
    with Docker(tmp) as d:
        rootfs = tmp / "image"
        make_rootfs(rootfs)
        add_perl(rootfs)
        tar = subprocess.run(["tar", "-C", rootfs, "-c", "."], stdout=subprocess.PIPE, check=True).stdout
        for name, cmd in (("app", ["/usr/bin/perl", "-e", SERVER]), ("stubborn", ["/usr/bin/perl", "-e", STUBBORN]), ("broken", ["/no/such/program"])):
            changes = urllib.parse.quote("CMD " + json.dumps(cmd))
            status, answer = d.call("POST", f"/images/create?fromSrc=-&repo=localhost/{name}&tag=1&changes={changes}", tar)
            assert status == 200, answer
        yield d


def published(docker, port):
    """What answers on that port, asked from the engine's own network."""
    done = subprocess.run(docker.enter("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port} && head -n 1 <&3"), stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, timeout=10)
    return done.stdout


def names(docker, all=True):
    return sorted(c["Names"][0].lstrip("/") for c in docker.call("GET", f"/containers/json?all={str(all).lower()}")[1])


@pytest.mark.timeout(150)
def test_containers_on_real_dockerd(start, root_dir, docker):
    h = Helper(start, root_dir, HOST_HELPER_ENGINE_SOCKET=str(docker.socket),
               HOST_HELPER_CONTAINER_IMAGES="localhost/app:1,localhost/stubborn:1,localhost/broken:1", HOST_HELPER_CONTAINER_PORTS="18100-18102",
               HOST_HELPER_CONTAINER_MEMORY_MB="64", HOST_HELPER_CONTAINER_PIDS="32").start()
    status, theirs = docker.call("POST", "/containers/create?name=theirs", {"Image": "localhost/app:1"})
    assert status == 201 and docker.call("POST", f"/containers/{theirs['Id']}/start")[0] == 204
    assert h.run("list_containers")["data"]["containers"] == []
    for name in ("theirs", theirs["Id"], "..", ".", "no-such"):
        assert code(h.run("stop_container", {"container": name})) == "bad_args"
    assert code(h.run("spawn_container", {"image": "localhost/app:2"})) == "bad_args"

    # a published port on the bridge, with what was asked for and nothing more
    one = h.run("spawn_container", {"name": "one", "username": "bob", "userpass": "S3cretPass"}, cid="spawn-1")
    assert one["status"] == "ok" and one["data"]["port"] == 18100, one
    assert wait_for(lambda: published(docker, 18100), 10) == "user bob pass S3cretPass\n"
    info = docker.call("GET", "/containers/one/json")[1]
    host = info["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["CpuShares"]) == (64 << 20, 64 << 20, 32, 512)
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and host["Privileged"] is False
    assert any("no-new-privileges" in o for o in host["SecurityOpt"]) and host["NetworkMode"] == "bridge"
    assert info["Config"]["Labels"] == {"viworks.managed": "true", "viworks.port": "18100", "viworks.username": "bob", "viworks.correlation_id": "spawn-1"}
    eff = subprocess.run(["grep", "CapEff", f"/proc/{info['State']['Pid']}/status"], stdout=subprocess.PIPE, text=True).stdout
    assert int(eff.split()[1], 16) == 0
    assert "S3cretPass" not in json.dumps(h.run("list_containers"))

    # what cannot start leaves nothing, and takes no port
    before = names(docker)
    assert code(h.run("spawn_container", {"image": "localhost/broken:1"})) == "internal"
    assert names(docker) == before

    # ports stay given over restarts of helper and engine
    two = h.run("spawn_container", {"image": "localhost/stubborn:1", "name": "two"})["data"]
    assert two["port"] == 18101
    docker.call("POST", "/containers/two/kill")  # or the engine would wait ten seconds for it
    h.kill()
    docker.stop()
    docker.start()
    h.start()
    listed = {c["name"]: c for c in h.run("list_containers")["data"]["containers"]}
    assert {(n, c["port"], c["state"]) for n, c in listed.items()} == {("one", 18100, "exited"), ("two", 18101, "exited")}
    assert h.run("spawn_container", {"name": "one", "username": "bob", "userpass": "S3cretPass"}, cid="spawn-1")["replayed"] is True
    three = h.run("spawn_container", {"name": "three"})["data"]
    assert three["port"] == 18102
    assert wait_for(lambda: published(docker, 18102), 10) == "user  pass \n"
    assert code(h.run("spawn_container")) == "busy"

    # stopped with grace: TERM is heard; who does not hear is ended at the limit
    kept = h.run("stop_container", {"container": "three", "timeout": 10, "remove": False})
    assert kept["status"] == "ok" and kept["data"]["state"] == "exited" and kept["duration_ms"] < 8000
    state = docker.call("GET", "/containers/three/json")[1]["State"]
    assert state["ExitCode"] == 0
    assert published(docker, 18102) == ""
    assert docker.call("POST", "/containers/two/start")[0] == 204
    ended = h.run("stop_container", {"container": "two", "timeout": 1, "remove": False})
    assert ended["status"] == "ok" and docker.call("GET", "/containers/two/json")[1]["State"]["ExitCode"] == 137
    for name in ("one", "two", "three"):
        assert h.run("stop_container", {"container": name})["data"]["state"] == "removed"
    assert names(docker) == ["theirs"]
    assert h.run("spawn_container")["data"]["port"] == 18100
    assert docker.call("POST", f"/containers/{theirs['Id']}/start")[0] in (204, 304)
