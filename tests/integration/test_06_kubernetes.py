"""06 operations: the Kubernetes manifests, rendered by kustomize and checked against Kubernetes' schemas.

The checker is tests/lib/kube_check.js on two npm packages, kept under build/npm: kubernetes-models carries
the schemas, so nothing else is fetched and no cluster is asked."""
import copy
import fcntl
import json
import re
import shutil
import subprocess

import pytest

from viwtest import ROOT

MANIFESTS = ROOT / "compose" / "kubernetes"
PACKAGES = {"kubernetes-models": "4.5.1", "typescript": "5.9.3"}


@pytest.fixture(scope="module")
def check():
    """check(docs) -> the faults found, as text."""
    if not shutil.which("npm"):
        pytest.skip("needs npm")
    home = ROOT / "build" / "npm" / "kubernetes"
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (home / "package.json").write_text(json.dumps({"private": True, "dependencies": PACKAGES}))
        if not all((home / "node_modules" / p).is_dir() for p in PACKAGES):
            try:
                done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock",
                                       "--fetch-retries=1", "--fetch-timeout=20000"],
                                      cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=90)
                why = done.stdout[-300:] if done.returncode else None
            except subprocess.TimeoutExpired:
                why = "no answer in 90 s"
            if why:
                pytest.skip(f"npm cannot fetch {', '.join(PACKAGES)}: {why}")

    def go(docs):
        docs_file = home / "docs.json"
        docs_file.write_text(json.dumps(docs))
        done = subprocess.run(["node", ROOT / "tests" / "lib" / "kube_check.js", docs_file], cwd=home,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        assert (done.returncode == 0) == (done.stdout == ""), done.stdout
        return done.stdout
    return go


def load(text):
    import yaml
    return [d for d in yaml.safe_load_all(text) if d]


def files():
    """Every object in the folder, also those that are applied by hand; not kustomize's own."""
    return [d for f in sorted(MANIFESTS.glob("*.yaml")) if f.name != "kustomization.yaml" for d in load(f.read_text())]


@pytest.mark.timeout(200)
def test_every_manifest_keeps_kubernetes_schemas(check):
    docs = files()
    assert len(docs) >= 14
    assert check(docs) == ""


def render(folder):
    """What kustomize makes of it, as `kubectl apply -k` would apply it."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl (kubectl kustomize)")
    version = subprocess.run(["kubectl", "version", "--client", "-o", "json"], stdout=subprocess.PIPE, text=True, timeout=30)
    if tuple(int(n) for n in re.search(r'"gitVersion": *"v(\d+)\.(\d+)', version.stdout).groups()) < (1, 22):
        pytest.skip("needs kubectl 1.22 or later: docs/deploy-containers.md")
    done = subprocess.run(["kubectl", "kustomize", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return load(done.stdout)


@pytest.fixture
def overlay(tmp):
    """The overlay of docs/deploy-containers.md: images from a registry, another Redis."""
    page = (ROOT / "docs" / "deploy-containers.md").read_text()
    shutil.copytree(MANIFESTS, tmp / "kubernetes")
    (tmp / "overlay").mkdir()
    (tmp / "overlay" / "kustomization.yaml").write_text(re.search(r"^```yaml overlay\n(.*?)^```", page, re.M | re.S)[1])
    return tmp / "overlay"


def containers(docs):
    return [c for d in docs if d["kind"] in ("Deployment", "StatefulSet") for c in d["spec"]["template"]["spec"]["containers"]]


@pytest.mark.timeout(200)
def test_what_kustomize_renders_keeps_them_too(overlay, check):
    for folder in (MANIFESTS, overlay):
        assert check(render(folder)) == ""


def test_what_kustomize_renders_fits_together():
    docs = render(MANIFESTS)
    assert all(d["kind"] == "Namespace" or d["metadata"]["namespace"] == "viworks" for d in docs)
    made = {d["metadata"]["name"] for d in docs if d["kind"] == "ConfigMap"}
    assert len(containers(docs)) == 3
    for c in containers(docs):
        maps = [e["valueFrom"]["configMapKeyRef"]["name"] for e in c["env"] if "configMapKeyRef" in e.get("valueFrom", {})]
        assert maps and set(maps) <= made, "the settings' name follows their content"


def test_the_overlay_of_the_page_is_a_good_one(overlay):
    docs = render(overlay)
    images = {c["image"] for c in containers(docs)}
    assert images == {f"registry.example.net/viworks/{n}:1" for n in ("agent-bridge", "telemetry-writer", "results-writer")}
    assert [d["data"]["redis_url"] for d in docs if d["kind"] == "ConfigMap"] == ["redis://redis.stores.svc:6379/0"]
    sed = re.search(r"^(sed .*migrate\.yaml) \| kubectl apply -f -$", (ROOT / "docs" / "deploy-containers.md").read_text(), re.M)[1]
    job, = load(subprocess.run(["sh", "-c", sed], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.net/viworks/tools:1"


FAULTS = [
    ("Deployment", ("spec", "template", "spec", "containers", 0, "readinesProbe"), {}, "readinesProbe"),
    ("Deployment", ("spec", "replicas"), "two", "replicas"),
    ("StatefulSet", ("spec", "selector"), None, "selector"),
    ("PodDisruptionBudget", ("spec", "minAvailable"), [1], "minAvailable"),
    ("NetworkPolicy", ("spec", "policyTypes"), "Ingress", "policyTypes"),
    ("Secret", ("stringdata",), {}, "stringdata"),
    ("Service", ("apiVersion",), "v2", "no schema"),
]


@pytest.mark.timeout(200)
def test_the_checker_sees_faults(check):
    docs = []
    for i, (kind, path, value, _) in enumerate(FAULTS):
        doc = copy.deepcopy(next(d for d in files() if d["kind"] == kind))
        doc["metadata"]["name"] = f"fault-{i}"
        at = doc
        for key in path[:-1]:
            at = at[key]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        docs.append(doc)
    found = check(docs).splitlines()
    for i, (kind, _, _, word) in enumerate(FAULTS):
        assert any(line.startswith(f"{kind} fault-{i}: ") and word in line for line in found), (kind, word, found)


def test_the_bridge_drains_before_it_is_ended():
    """preStop and the drain fit into the time Kubernetes gives, and a disruption leaves one bridge."""
    docs = {(d["kind"], d["metadata"]["name"]): d for d in files()}
    bridge = docs["Deployment", "agent-bridge"]["spec"]
    pod = bridge["template"]["spec"]
    container = pod["containers"][0]
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain = next((int(e["value"]) for e in container["env"] if e["name"] == "AGENT_BRIDGE_DRAIN_S"), 30)
    assert sleep + drain < pod["terminationGracePeriodSeconds"]
    assert docs["PodDisruptionBudget", "agent-bridge"]["spec"]["minAvailable"] < bridge["replicas"]
    for writer in ("telemetry-writer", "results-writer"):
        spec = docs["StatefulSet", writer]["spec"]
        assert docs["PodDisruptionBudget", writer]["spec"]["minAvailable"] < spec["replicas"]
    # Every secret that a pod mounts or reads is in the example.
    secrets = {name: set(d["stringData"]) for (kind, name), d in docs.items() if kind == "Secret"}
    text = json.dumps([d for (kind, _), d in docs.items() if kind != "Secret"])
    for name in secrets:
        used = len(re.findall(rf'"secretName": "{name}"|"secretKeyRef": {{"name": "{name}"', text))
        assert used == 1, f"{name} belongs to one program"
    for (kind, _), d in docs.items():
        if kind in ("Deployment", "StatefulSet", "Job"):
            spec = d["spec"]["template"]["spec"]
            mounted = {v["name"]: v["secret"]["secretName"] for v in spec.get("volumes", [])}
            for c in spec["containers"]:
                where = {m["mountPath"]: secrets[mounted[m["name"]]] for m in c.get("volumeMounts", [])}
                for e in c["env"]:
                    folder, _, file = e.get("value", "").rpartition("/")
                    assert not folder.startswith("/run/secrets") or file in where[folder], e
                    ref = e.get("valueFrom", {}).get("secretKeyRef")
                    assert not ref or ref["key"] in secrets[ref["name"]]
