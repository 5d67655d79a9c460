"""06 operations: compose files under two compose programs, images built and run by podman, the demo."""
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

import baseimage
import viwtest
from realhost import Podman, needs_podman_exec
from viwtest import ROOT, wait_for

COMPOSE = ROOT / "compose"
FILES = ["docker-compose.agent.yml", "docker-compose.agent-bridge.yml", "docker-compose.gateway-agent.yml",
         "docker-compose.demo.yml"]
# compose/Dockerfile installs these; in the base image already, so that apt-get fetches only its lists.
PACKAGES = ["ca-certificates", "curl", "libhiredis0.14", "libjansson4", "libpq5", "libssl3", "libuv1",
            "libwebsockets17", "libwebsockets-evlib-uv", "openssl", "redis-server", "postgresql-15",
            "postgresql-client-15"]
DEMO = ["redis", "postgres", "agent-bridge", "telemetry-writer", "results-writer", "gateway-agent"]


def needs(*programs):
    missing = [p for p in programs if not shutil.which(p)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def run(*argv, check=True, timeout=60, **kwargs):
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout, **kwargs)
    assert not check or done.returncode == 0, f"{argv} failed ({done.returncode}):\n{done.stdout}"
    return done


@pytest.fixture
def compose_dir(tmp):
    """compose/ as an operator has it: each settings example copied and (here) left as it is."""
    copy = tmp / "compose"
    shutil.copytree(COMPOSE, copy)
    for example in (copy / "env").glob("*.env.example"):
        shutil.copy(example, example.with_suffix(""))
    return copy


# ---------------------------------------------------------------- files


@needs("docker-compose")
@pytest.mark.parametrize("file", FILES)
def test_docker_compose_accepts_every_file(compose_dir, file):
    done = run("docker-compose", "-f", compose_dir / file, "config", "-q")
    assert done.stdout == ""


@needs("docker-compose")
def test_every_service_has_limits_a_health_check_and_no_rights(compose_dir):
    import yaml
    dockerfile = (COMPOSE / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", dockerfile, re.M | re.S))
    seen = set()
    for file in FILES:
        config = yaml.safe_load(run("docker-compose", "-f", compose_dir / file, "config").stdout)
        for name, s in config["services"].items():
            seen.add(name)
            assert s["user"] == "65534:65534" and s["read_only"] is True and s["cap_drop"] == ["ALL"], name
            assert s["security_opt"] == ["no-new-privileges:true"] and "privileged" not in s, name
            assert s["mem_limit"] and s["pids_limit"] and s["build"]["target"] in stages, name
            assert "healthcheck" in s or "\nHEALTHCHECK " in stages[s["build"]["target"]] or name == "setup", name
            mounted = {v["source"] if isinstance(v, dict) else v.split(":")[0] for v in s.get("volumes", [])}
            assert not mounted & {"/", "/var/run/docker.sock"}, name
    assert seen == {*DEMO, "setup"}


@needs("podman-compose")
@pytest.mark.parametrize("file", FILES)
def test_podman_compose_passes_the_limits_on(compose_dir, file):
    """What podman-compose would run, service by service."""
    # The one of Debian 13 knows profiles, says what it would do only when it is asked to talk, and puts INFO: before it.
    newer = ["--verbose", "--profile", "agent"] if "--verbose" in run("podman-compose", "--help").stdout else []
    done = run("podman-compose", *newer, "-f", compose_dir / file, "--dry-run", "up", "-d", *["--no-build"] * bool(newer))
    lines = re.findall(r"^(?:INFO:podman_compose:)?(podman run .*)", done.stdout, re.M)
    assert len(lines) == {"docker-compose.agent.yml": 3, "docker-compose.demo.yml": 7}.get(file, 1), done.stdout
    for line in lines:
        for option in ("--read-only", "--cap-drop ALL", "--security-opt no-new-privileges:true", "-u 65534:65534",
                       "--restart ", "-m "):
            assert option in line, (option, line)


# ---------------------------------------------------------------- images, built and run


@pytest.fixture(scope="module")
def engine():
    """A podman with networks of its own, and this tree's images in it, made by ./viw images."""
    release = ROOT / "build" / "release"
    for missing, why in ((os.geteuid() != 0, "needs root"),
                         (not (release / "bin" / "agent-bridge").exists(), "needs the release build"),
                         ("VERSION_CODENAME=bookworm" not in Path("/etc/os-release").read_text(), "images are of Debian 12, and so must be what goes into them"),
                         (not shutil.which("podman"), "needs podman"),
                         (not shutil.which("podman-compose"), "needs podman-compose"),
                         (not os.path.exists("/usr/lib/podman/aardvark-dns"), "needs netavark and aardvark-dns")):
        if missing:
            pytest.skip(why)
    tmp = viwtest.make_tmp()
    try:
        baseimage.write(tmp / "base.tar", PACKAGES)
        for driver in ("overlay", "vfs"):
            with Podman(tmp / driver, own_net=True, driver=driver) as p:
                if p.run("info", check=False).returncode and driver == "overlay":
                    continue
                p.run("import", "-q", tmp / "base.tar", "localhost/base:1")
                (tmp / "base.tar").unlink()
                done = viw(p, "images", "--prebuilt", host_net=True, env={"VIW_BASE_IMAGE": "localhost/base:1"}, check=False)
                if done.returncode and re.search("Could not resolve|Failed to fetch|Unable to fetch", done.stdout):
                    pytest.skip("no Debian mirror: " + done.stdout[-300:])
                assert done.returncode == 0, done.stdout
                print(done.stdout)
                yield p
                break
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def viw(p, *words, host_net=False, env=None, check=True):
    return run(*p.inside(ROOT / "viw", *words, host_net=host_net), check=check, timeout=240, cwd=ROOT,
               env={**os.environ, "VIW_ENGINE": "podman", "DISABLE_HC_SYSTEMD": "true", **(env or {})})


def wait_healthy(p, name):
    """Runs its health check, as systemd's timer would, until it is green; its log when it never is."""
    try:
        wait_for(lambda: p.run("healthcheck", "run", name, check=False).returncode == 0, 30, f"{name} is healthy", every=0.3)
    except AssertionError as e:
        raise AssertionError(f"{e}\n{p.run('ps', '-a', check=False).stdout}{p.run('logs', '--tail', '20', name, check=False).stdout}") from None


def container(p, service):
    return p.run("ps", "-aq", "--filter", "label=com.docker.compose.project=viworks-demo",
                 "--filter", f"label=com.docker.compose.service={service}").stdout.split()[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", ["agent-bridge", "telemetry-writer", "results-writer", "gateway-agent", "tools"])
def test_each_image_runs_its_program_with_nothing_writable(engine, program):
    image = f"viworks/{program}"
    words = ["viwctl", "--version"] if program == "tools" else ["--version"]
    done = engine.run("run", "--rm", "--network", "none", "--read-only", "--cap-drop=all",
                      "--security-opt=no-new-privileges", image, *words)
    assert re.search(r"\d+\.\d+", done.stdout)
    facts = json.loads(engine.run("image", "inspect", image).stdout)[0]
    config = facts["Config"]
    assert config["User"] == "65534:65534"
    assert program != "gateway-agent" or facts["Size"] <= 15 * 2 ** 20, facts["Size"]
    if program != "tools":
        assert facts["Healthcheck"]["Test"][0] == "CMD" and config["StopSignal"] == "SIGTERM"


@pytest.mark.timeout(300)
def test_the_demo_comes_up_healthy_takes_a_command_and_stops_cleanly(engine):
    needs_podman_exec()
    p = engine
    began = time.monotonic()
    up = viw(p, "demo").stdout
    print(up, f"up in {time.monotonic() - began:.1f} s")
    assert "done, rc 0, stdout: the spine stands" in up, up
    ids = {name: container(p, name) for name in DEMO}
    for name, cid in ids.items():
        state = json.loads(p.run("inspect", cid).stdout)[0]["State"]
        assert state["Health"]["Status"] == "healthy", name
        status = Path(f"/proc/{state['Pid']}/status").read_text()
        assert re.search(r"^CapEff:\t0+$", status, re.M) and re.search(r"^NoNewPrivs:\t1$", status, re.M), name
        assert re.search(r"^Uid:\t65534\t65534", status, re.M), name
        mounts = Path(f"/proc/{state['Pid']}/mountinfo").read_text()
        assert re.search(r"^\d+ \d+ \S+ \S+ / ro,", mounts, re.M), f"{name}: its root is writable"

    # Redis and PostgreSQL as the gateway needs them.
    redis = ["exec", ids["redis"], "redis-cli"]
    assert p.run(*redis, "CONFIG", "GET", "maxmemory-policy").stdout.split()[1] == "noeviction"
    assert p.run(*redis, "CONFIG", "GET", "appendonly").stdout.split()[1] == "yes"

    # A command of our own, and its row; the same id again does nothing more.
    cid = str(uuid.uuid4())
    for _ in range(2):
        p.run(*redis, "XADD", "viw.commands", "*", "correlation_id", cid, "agent_id", "demo-1", "command", "ECHO",
              "params", json.dumps({"message": cid}))

    def sql(text):
        return p.run("exec", ids["postgres"], "psql", "-X", "-At", "-h", "/tmp", "-U", "postgres", "-d", "viw", "-c", text).stdout.strip()
    wait_for(lambda: sql(f"SELECT status, stdout_redacted FROM agent_command_results WHERE correlation_id = '{cid}'")
             == f"done|{cid}", 20, "the command's row")
    wait_for(lambda: int(sql("SELECT count(*) FROM os_gateway_status WHERE agent_id = 'demo-1' AND seq > 1")) == 1, 20, "telemetry")

    # Up again with what is there: nothing lost, the same identity.
    p.run("restart", "-t", "20", ids["postgres"], timeout=40)
    wait_healthy(p, ids["results-writer"])
    assert sql(f"SELECT count(*) FROM agent_command_results WHERE correlation_id = '{cid}'") == "1"

    for name in reversed(DEMO):
        p.run("stop", "-t", "30", ids[name], timeout=40)
        state = json.loads(p.run("inspect", ids[name]).stdout)[0]["State"]
        assert state["ExitCode"] == 0, f"{name}: {p.run('logs', '--tail', '20', ids[name]).stdout}"
    viw(p, "demo", "--down")
    assert p.run("ps", "-aq").stdout.split() == []
    assert p.run("volume", "ls", "-q").stdout.split() == []
    assert p.run("network", "ls", "--format", "{{.Name}}").stdout.split() == ["podman"]


# The backend's own project of docs/deploy-containers.md.
BACKEND = """
services:
  redis: {image: viworks/demo-redis, tmpfs: ["/data:mode=1777"]}
  postgres:
    image: viworks/demo-postgres
    environment: {PGHOST: /tmp}
    volumes: ["./pg:/run/secrets:ro"]
    tmpfs: ["/data:mode=1777"]
"""
# podman asks for more processes than this machine may grant wherever a file sets ulimits.
SANDBOX = "services: {agent-bridge: {ulimits: {nproc: 32768}}}\n"
DOCKER = """#!/bin/bash
[ "$1" = compose ] || exec {podman} "$@"
shift
case ${{COMPOSE_FILE-}} in *agent*) export COMPOSE_FILE=$COMPOSE_FILE:sandbox.yml ;; esac
DOCKER_HOST=unix://{sock} exec docker-compose "$@" </dev/null
"""


@needs("docker-compose")
@pytest.mark.timeout(300)
def test_the_page_brings_bridge_and_writers_beside_a_backend(engine, tmp, start):
    """docs/deploy-containers.md as it stands, with docker-compose 1.29 on podman's Docker API: off without
    the profile; with it, a command reaches a terminal row through the three; they stop with 0."""
    needs_podman_exec()
    p, sock, home = engine, tmp / "docker.sock", tmp / "shop"
    (home / "pg").mkdir(parents=True)
    viwtest.write_secret(home / "pg" / "postgres_password", "pg")
    os.chown(home / "pg" / "postgres_password", 65534, 65534)
    (home / "docker-compose.yml").write_text(BACKEND)
    (home / "sandbox.yml").write_text(SANDBOX)
    (tmp / "docker").write_text(DOCKER.format(podman=shlex.join(p.inside("podman")), sock=sock))
    (tmp / "docker").chmod(0o755)
    service = start("/usr/bin/nsenter", args=p.inside("env", "DISABLE_HC_SYSTEMD=true", "podman", "system", "service",
                                                      "--time=0", f"unix://{sock}")[1:])
    wait_for(sock.exists, 10, "podman's Docker API")

    def sh(text):
        return run("bash", "-euo", "pipefail", "-c", text, cwd=home, timeout=200, env={
            **os.environ, "PATH": f"{tmp}:{os.environ['PATH']}", "VIW": str(ROOT), "POSTGRES_PASSWORD": "pg",
            "COMPOSE_PROJECT_NAME": "shop", "DISABLE_HC_SYSTEMD": "true"}).stdout

    def services():
        return {n.split("_")[1] for n in p.run("ps", "--format", "{{.Names}}").stdout.split() if n.startswith("shop_")}
    sh("docker compose up -d")
    page = re.findall(r"^```sh run\n(.*?)^```", (ROOT / "docs" / "deploy-containers.md").read_text(), re.M | re.S)
    files = page[0] + page[1]
    sh(files + "docker compose up -d")
    assert services() == {"redis", "postgres"}, "the profile is off"
    psql = ["exec", "shop_postgres_1", "psql", "-X", "-At", "-U", "postgres"]
    wait_for(lambda: p.run(*psql, "-c", "", check=False).returncode == 0, 30, "PostgreSQL", every=0.2)
    said = sh("".join(page))
    assert re.search(r"^AGENT", said, re.M), said  # the table of viwctl gateways, empty
    trio = {"agent-bridge", "telemetry-writer", "results-writer"}
    assert services() == {"redis", "postgres"} | trio
    for name in sorted(trio):
        wait_healthy(p, f"shop_{name}_1")
        inside = p.run("exec", f"shop_{name}_1", "ls", "/run/secrets").stdout.split()
        assert inside == (["admin_token", "shared_secret"] if name == "agent-bridge" else ["database_url"]), name
    p.run("exec", "shop_redis_1", "redis-cli", "XADD", "viw.commands", "*", "correlation_id", "late", "agent_id", "nobody",
          "command", "ECHO", "ttl_s", "1")
    wait_for(lambda: p.run(*psql, "-d", "viw", "-c", "SELECT status FROM agent_command_results WHERE correlation_id = 'late'").stdout
             == "expired\n", 30, "the command's row", every=0.3)
    more = "export COMPOSE_FILE=docker-compose.yml:docker-compose.agent.yml\n"
    sh(more + "docker compose --profile agent stop -t 40 agent-bridge telemetry-writer results-writer")
    for name in sorted(trio):
        assert p.run("inspect", "--format", "{{.State.ExitCode}}", f"shop_{name}_1").stdout == "0\n", name

    # The bridge alone, for a host where Redis runs elsewhere: a project of its own.
    shutil.copy(COMPOSE / "docker-compose.agent-bridge.yml", home)
    (home / "elsewhere.yml").write_text("networks: {default: {external: true, name: shop_default}}\n")
    alone = "export COMPOSE_FILE=docker-compose.agent-bridge.yml:elsewhere.yml COMPOSE_PROJECT_NAME=edge\n"
    sh(alone + "docker compose up -d")
    wait_healthy(p, "edge_agent-bridge_1")
    sh(alone + "docker compose stop -t 40")
    assert p.run("inspect", "--format", "{{.State.ExitCode}}", "edge_agent-bridge_1").stdout == "0\n"
    sh(alone + "docker compose down -v -t 10")
    sh(more + "docker compose --profile agent down -v -t 10")
    assert p.run("ps", "-aq").stdout.split() == []
    service.stop()
