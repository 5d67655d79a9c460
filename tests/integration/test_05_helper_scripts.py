"""Privilege: the shipped manifests and scripts do what they say, on a chroot'ed passwd and an OpenVPN-style folder."""
import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

import viwtest
from helperlib import Helper, code, reload
from viwtest import ROOT, rfc3339, wait_for

SHIPPED = ROOT / "host-helper"
VERBS = {"create_panel_user", "create_openvpn_user", "delete_user", "list_users", "terminate_session",
         "get_session_status", "generate_bootstrap", "revoke_bootstrap", "reload_service", "update_fwknop"}
KEY = "c2VjcmV0IGtleSBvZiBmd2tub3A="
HMAC = "aG1hYyBrZXkgb2YgZndrbm9w"


def make_tree(root):
    """What useradd -R needs of a host."""
    etc = root / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\n")
    (etc / "group").write_text("root:x:0:\ndaemon:x:1:\n")
    (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (etc / "gshadow").write_text("root:*::\n")
    (etc / "shadow").chmod(0o600)
    shutil.copy("/etc/login.defs", etc / "login.defs")


@pytest.fixture
def helper(start, root_dir):
    h = Helper(start, root_dir)
    make_tree(root_dir / "tree")
    for script in (SHIPPED / "scripts").iterdir():
        shutil.copy(script, h.scripts / script.name)
    management = socket.create_server(("127.0.0.1", 0))
    h.management = management
    (h.scripts / "viworks.conf").write_text(
        f"ROOT={root_dir}/tree\nOPENVPN_DIR={root_dir}/openvpn\nOPENVPN_STATUS={root_dir}/status\n"
        f"OPENVPN_MANAGEMENT=127.0.0.1:{management.getsockname()[1]}\nFWKNOP_DIR={root_dir}/fwknop\n"
        f"BOOTSTRAP_DIR={root_dir}/bootstrap\nRELOADABLE=none.service\n")
    # the same folders in this test's own tree; Landlock wants them to be there
    places = {"/etc": "tree/etc", "/etc/openvpn": "openvpn", "/etc/fwknop": "fwknop", "/var/lib/viworks": "bootstrap"}
    for place in places.values():
        (root_dir / place).mkdir(exist_ok=True)
    for manifest in (SHIPPED / "verbs.d").glob("*.json"):
        m = json.loads(manifest.read_text().replace("/opt/Viworks/scripts_viworks", str(h.scripts)))
        if "/etc" in m.get("writable_paths", []):  # holds the other two on a host
            m["writable_paths"] += ["/etc/openvpn", "/etc/fwknop"]
        m["writable_paths"] = [f"{root_dir}/{places[p]}" for p in m["writable_paths"]]
        (h.verbs / manifest.name).write_text(json.dumps(m))
    yield h.start()
    management.close()


def ok(reply):
    assert reply["status"] == "ok" and reply["rc"] == 0, (reply.get("stderr"), reply)
    return reply["stdout"]


def test_shipped_scripts_write_only_where_their_manifest_says(helper, root_dir):
    """The same scripts, led astray by their configuration: nothing is written outside."""
    conf = helper.scripts / "viworks.conf"
    elsewhere = root_dir / "elsewhere"
    elsewhere.mkdir()
    conf.write_text(conf.read_text() + f"OPENVPN_DIR={elsewhere}\nBOOTSTRAP_DIR={elsewhere}\nFWKNOP_DIR={elsewhere}\n")
    for verb, args in (("create_openvpn_user", {"username": "bob", "userpass": "hunter22", "source_ip": "192.0.2.7"}),
                       ("update_fwknop", {"username": "bob", "source_ip": "192.0.2.7", "key": KEY}),
                       ("generate_bootstrap", {"username": "bob"})):
        reply = helper.run(verb, args)
        assert reply["rc"] != 0 and "Permission denied" in reply["stderr"], reply
    assert list(elsewhere.iterdir()) == []


def test_every_verb_of_the_contract_is_shipped():
    found = {json.loads(p.read_text())["verb"] for p in (SHIPPED / "verbs.d").glob("*.json")}
    assert found == VERBS
    for p in (SHIPPED / "verbs.d").glob("*.json"):
        exec = json.loads(p.read_text())["exec"]
        assert exec.startswith("/opt/Viworks/scripts_viworks/")
        assert (SHIPPED / "scripts" / Path(exec).name).stat().st_mode & 0o111


def test_shipped_manifests_fit_their_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((SHIPPED / "verbs.d/schema/manifest.schema.json").read_text())
    for p in (SHIPPED / "verbs.d").glob("*.json"):
        jsonschema.validate(json.loads(p.read_text()), schema)


def test_panel_user_is_made_once_and_deleted(helper, root_dir):
    etc = root_dir / "tree" / "etc"
    assert ok(helper.run("create_panel_user", {"username": "alice", "userpass": "Pa55: word"})) == "created alice\n"
    assert "alice:" in (etc / "passwd").read_text()
    hash = next(l for l in (etc / "shadow").read_text().splitlines() if l.startswith("alice:")).split(":")[1]
    assert hash.startswith("$6$")
    again = helper.run("create_panel_user", {"username": "alice", "userpass": "x"})
    assert again["status"] == "ok" and again["rc"] != 0
    assert ok(helper.run("list_users")) == "panel alice\n"
    assert ok(helper.run("delete_user", {"username": "alice"})) == "deleted alice\n"
    assert "alice:" not in (etc / "passwd").read_text()


@pytest.mark.parametrize("password", ["  both ends ", "   "])
def test_blanks_of_a_secret_are_part_of_it(helper, root_dir, password):
    """A shell's `read` takes them away: what was set was another password, and of blanks alone an empty one."""
    def is_hash_of(hash):
        salt = hash.split("$")[2]
        made = subprocess.run(["openssl", "passwd", "-6", "-salt", salt, "-stdin"], input=password + "\n", stdout=subprocess.PIPE, text=True)
        return made.stdout.strip() == hash
    ok(helper.run("create_panel_user", {"username": "alice", "userpass": password}))
    shadow = (root_dir / "tree/etc/shadow").read_text().splitlines()
    assert is_hash_of(next(l for l in shadow if l.startswith("alice:")).split(":")[1])
    ok(helper.run("create_openvpn_user", {"username": "bob", "userpass": password, "source_ip": "192.0.2.7", "key": " k", "hmac_key": " h"}))
    assert is_hash_of((root_dir / "openvpn/users/bob").read_text().split(":")[1])
    stanza = "KEY_BASE64  k\nHMAC_KEY_BASE64  h\n"
    assert stanza in (root_dir / "fwknop/bob.conf").read_text()
    ok(helper.run("update_fwknop", {"username": "bob", "source_ip": "192.0.2.7", "key": " k", "hmac_key": " h"}))
    assert stanza in (root_dir / "fwknop/bob.conf").read_text()


def test_every_user_is_listed_and_nothing_else(helper, root_dir):
    """No valid name hides a user, and what a script that was killed left half written is none."""
    for name in ("bob.lock", "carol.conf"):
        ok(helper.run("create_openvpn_user", {"username": name, "userpass": "hunter22", "source_ip": "192.0.2.7"}))
    conf = helper.scripts / "viworks.conf"
    conf.write_text(conf.read_text() + "sync() { kill -9 $$; sleep 9; }\n")
    assert helper.run("create_openvpn_user", {"username": "eve", "userpass": "hunter22", "source_ip": "192.0.2.7"})["rc"] != 0
    assert [l.split()[1] for l in ok(helper.run("list_users")).splitlines()] == ["bob.lock", "carol.conf"]


def test_a_user_deleted_while_it_is_made_is_there_or_not(helper, root_dir):
    """Never gone with its access left behind."""
    conf = helper.scripts / "viworks.conf"
    conf.write_text(conf.read_text() + f'sync() {{ case $2 in */ccd/*) touch {root_dir}/bootstrap/half; sleep 1 ;; esac; }}\n')
    for m in ("create_openvpn_user", "delete_user"):
        text = json.loads((helper.verbs / f"{m}.json").read_text())
        text["writable_paths"].append(f"{root_dir}/bootstrap")
        (helper.verbs / f"{m}.json").write_text(json.dumps(text))
    reload(helper)
    c = helper.client()
    c.send(verb="create_openvpn_user", correlation_id="make", deadline=rfc3339(60),
           args={"username": "bob", "userpass": "hunter22", "source_ip": "192.0.2.7", "key": KEY})
    wait_for((root_dir / "bootstrap/half").exists, what="a user half made")
    ok(helper.run("delete_user", {"username": "bob"}))
    ok(c.recv())
    for path in ("openvpn/users/bob", "openvpn/ccd/bob", "fwknop/bob.conf"):
        assert not (root_dir / path).exists(), path


def test_delete_user_leaves_system_accounts_alone(helper, root_dir):
    reply = helper.run("delete_user", {"username": "daemon"})
    assert reply["rc"] == 2
    assert "daemon:" in (root_dir / "tree/etc/passwd").read_text()


def test_openvpn_user_with_access_stanza(helper, root_dir):
    args = {"username": "bob", "userpass": "hunter22", "source_ip": "192.0.2.7", "timeout": 600, "key": KEY, "hmac_key": HMAC}
    out = ok(helper.run("create_openvpn_user", args))
    assert out.startswith("created bob for 192.0.2.7 until ")
    entry = (root_dir / "openvpn/users/bob").read_text()
    assert entry.startswith("bob:$6$") and ":192.0.2.7:" in entry and "hunter22" not in entry
    stanza = (root_dir / "fwknop/bob.conf").read_text()
    assert f"KEY_BASE64 {KEY}\nHMAC_KEY_BASE64 {HMAC}\n" in stanza and "FW_ACCESS_TIMEOUT 600" in stanza
    assert (root_dir / "fwknop/bob.conf").stat().st_mode & 0o777 == 0o600
    assert helper.run("create_openvpn_user", args)["rc"] == 17
    listed = ok(helper.run("list_users"))
    assert listed.startswith("vpn bob 192.0.2.7 20")
    ok(helper.run("delete_user", {"username": "bob"}))
    assert not (root_dir / "fwknop/bob.conf").exists() and not (root_dir / "openvpn/users/bob").exists()


def test_files_of_the_operator_are_neither_replaced_nor_removed(helper, root_dir):
    """OpenVPN reads ccd/DEFAULT for every client, and access.d holds what the operator wrote: a valid user's name is no right to them."""
    (root_dir / "openvpn/ccd").mkdir(parents=True)
    theirs = {root_dir / "openvpn/ccd/DEFAULT": "push-reset\n", root_dir / "fwknop/DEFAULT.conf": "SOURCE ANY\n"}
    for path, text in theirs.items():
        path.write_text(text)
    vpn = {"username": "DEFAULT", "userpass": "hunter22", "source_ip": "192.0.2.7"}
    assert helper.run("create_openvpn_user", vpn)["rc"] == 17
    assert helper.run("update_fwknop", {"username": "DEFAULT", "source_ip": "192.0.2.7", "key": KEY})["rc"] == 17
    assert helper.run("delete_user", {"username": "DEFAULT"})["rc"] == 2
    for path, text in theirs.items():
        assert path.read_text() == text
    assert not (root_dir / "openvpn/users/DEFAULT").exists()


def test_update_fwknop_replaces_the_stanza(helper, root_dir):
    ok(helper.run("update_fwknop", {"username": "bob", "source_ip": "192.0.2.7", "key": KEY}))
    ok(helper.run("update_fwknop", {"username": "bob", "source_ip": "2001:db8::1", "key": KEY, "timeout": 60}))
    assert (root_dir / "fwknop/bob.conf").read_text() == (
        f"# made by viworks\nSOURCE 2001:db8::1\nREQUIRE_USERNAME bob\nFW_ACCESS_TIMEOUT 60\nKEY_BASE64 {KEY}\n")


def test_bootstrap_is_made_and_revoked_and_its_code_stays_on_the_host(helper, root_dir):
    out = ok(helper.run("generate_bootstrap", {"username": "carol"}))
    id = out.split()[1]
    bundle = json.loads((root_dir / f"bootstrap/{id}.json").read_text())
    assert bundle["username"] == "carol" and bundle["code"] not in out
    ok(helper.run("revoke_bootstrap", {"bootstrap_id": id}))
    assert not (root_dir / f"bootstrap/{id}.json").exists()
    assert helper.run("revoke_bootstrap", {"bootstrap_id": id})["rc"] == 2


def test_session_status_and_termination(helper, root_dir):
    assert helper.run("get_session_status", {"username": "bob"})["rc"] == 3
    (root_dir / "status").write_text(
        "TITLE,OpenVPN\nCLIENT_LIST,bob,192.0.2.7:1194,10.8.0.2,,1000,2000,2026-11-20 10:00:00,1,UNDEF,0,0,AES\n"
        "CLIENT_LIST,bobby,192.0.2.8:1194,10.8.0.3,,1,2,2026-11-20 10:00:00,1,UNDEF,1,1,AES\nEND\n")
    out = ok(helper.run("get_session_status", {"username": "bob"}))
    assert out == "session bob from 192.0.2.7:1194 address 10.8.0.2 received 1000 sent 2000 since 2026-11-20 10:00:00\n"
    assert ok(helper.run("get_session_status", {"username": "carol"})) == "no session\n"
    asked = []

    def openvpn():
        conn, _ = helper.management.accept()
        conn.sendall(b">INFO:OpenVPN Management Interface Version 1\r\n")
        asked.append(conn.recv(100))
        conn.sendall(b"SUCCESS: common name 'bob' found, 1 client(s) killed\r\n")
        conn.close()
    thread = threading.Thread(target=openvpn, daemon=True)
    thread.start()
    out = ok(helper.run("terminate_session", {"username": "bob"}))
    thread.join(5)
    assert asked == [b"kill bob\n"] and "1 client(s) killed" in out


def test_reload_service_only_what_is_allowed(helper):
    reply = helper.run("reload_service", {"unit": "sshd"})
    assert reply["rc"] == 2 and "sshd.service is not in RELOADABLE" in reply["stderr"]
    assert code(helper.run("reload_service", {"unit": "../x"})) == "bad_args"
