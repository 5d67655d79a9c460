"""Privilege: a compromised agent. It owns an allowed uid, the socket and the key: it may ask for every declared verb, and what it
asks must not hurt the helper or the host beyond that."""
import array
import os
import socket
import subprocess
import uuid

import pytest

from helperlib import KEY, MARK, Helper, code
from viwtest import helper_request, rfc3339, wait_for


@pytest.fixture
def helper(start, root_dir):
    h = Helper(start, root_dir)
    h.verb("look", "echo fine", effects=False)
    return h.start()


def healthy(helper):
    wait_for(lambda: helper.run("look").get("stdout") == "fine\n")


def rss_kib(pid):
    with open(f"/proc/{pid}/status") as f:
        return int(next(l for l in f if l.startswith("VmRSS")).split()[1])


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return len(f.read().split())


def test_a_flood_of_voids_is_no_flood_of_processes(helper):
    conns = [helper.client(timeout=30) for _ in range(20)]
    most = 0
    for i in range(50):
        for c in conns:
            c.send(op="void", correlation_id=str(uuid.uuid4()))
        most = max(most, children(helper.proc.pid))
    answers = {}
    for c in conns:
        for _ in range(50):
            r = c.recv()
            word = code(r) or r["data"]["state"]
            answers[word] = answers.get(word, 0) + 1
    assert set(answers) <= {"void", "busy"} and answers["void"] > 0, answers
    assert most <= 64 + 8 + 2, most
    healthy(helper)


def test_replies_nobody_reads_are_bounded_over_all_connections(start, root_dir):
    helper = Helper(start, root_dir, HOST_HELPER_MAX_CONNECTIONS="64", HOST_HELPER_RATE="0")
    helper.verb("big", "head -c 250000 /dev/zero | tr '\\0' x", max_output_bytes=262144)
    helper.verb("look", "echo fine", effects=False)
    helper.start()
    assert len(helper.run("big", cid="big")["stdout"]) == 250000
    before = rss_kib(helper.proc.pid)
    conns = []
    for _ in range(60):
        c = helper.client()
        c.sock.settimeout(0.5)
        try:
            for _ in range(40):
                c.send(verb="big", args={}, correlation_id="big", deadline=rfc3339(60))  # its stored outcome
        except OSError:
            pass  # dropped, or paused
        conns.append(c)
    assert rss_kib(helper.proc.pid) - before < 320 << 10  # ASan keeps freed memory; 60 x 8 MiB would be more
    for c in conns:
        c.close()
    healthy(helper)


def test_descriptors_sent_along_are_not_kept(helper):
    agent = helper.client()
    agent.call(op="hello")
    before = len(os.listdir(f"/proc/{helper.proc.pid}/fd"))
    with open("/dev/null") as f:
        for _ in range(50):
            line = helper_request(KEY, op="query")
            agent.sock.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno()] * 100))])
            assert agent.recv()["status"] == "ok"
    assert len(os.listdir(f"/proc/{helper.proc.pid}/fd")) <= before


def test_the_journal_cannot_fill_the_disk(start, root_dir):
    small = root_dir / "state"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(small)], check=True)
    try:
        helper = Helper(start, root_dir, HOST_HELPER_MIN_FREE_PCT="50", HOST_HELPER_RATE="0")
        helper.verb("once", MARK + "echo hi")
        helper.start()
        assert helper.run("once", cid="c-1")["stdout"] == "hi\n"
        c, refused = helper.client(), None
        for i in range(2000):
            reply = c.call(op="void", correlation_id=f"v-{i}")
            if code(reply):
                refused = reply
                break
        assert refused and code(refused) == "internal" and "nearly full" in refused["error"]["msg"]
        st = os.statvfs(small)
        assert st.f_bavail >= st.f_blocks * 0.48
        assert code(helper.run("once", cid="c-2")) == "internal" and helper.starts("c-2") == 0
        assert helper.run("once", cid="c-1")["replayed"] is True
        assert helper.query("v-0")["data"]["state"] == "void"
        helper.stop()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_request_byte_by_byte_and_many_in_one_write(helper):
    c = helper.client()
    for b in helper_request(KEY, op="query"):
        c.send_raw(bytes([b]))
    assert c.recv()["data"]["state"] == "absent"
    c.send_raw(b"".join(helper_request(KEY, op="query") for _ in range(60)))
    assert all(c.recv()["data"]["state"] == "absent" for _ in range(60))


def test_text_of_a_refused_request_stays_text_in_the_audit_log(helper):
    verb = "x\",\"code\":\"ok\"}\n{\"seq\":1}"
    assert code(helper.run(verb)) == "verb_not_allowed"
    record = helper.audit()[-1]
    assert record["verb"] == verb[:64] and record["code"] == "verb_not_allowed"


def test_one_id_serves_one_command_whoever_claims_it(helper):
    """Another agent_id in the request makes no second command, and learns no more than the id's owner."""
    helper.verb("once", MARK + "echo $VIW_AGENT_ID")
    helper.stop()
    helper.start()
    assert helper.run("once", cid="c-1", agent_id="site-1")["stdout"] == "site-1\n"
    other = helper.run("once", cid="c-1", agent_id="site-2")
    assert other["replayed"] is True and helper.starts("c-1") == 1
