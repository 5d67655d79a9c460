"""What must hold after the healing. Everything here reads; nothing is helped along."""
import hashlib
import time

TERMINAL = ("done", "failed", "expired", "cancelled", "rejected", "unknown")
GROUPS = (("commands", "agent-bridge"), ("commands", "results-writer"), ("command_results", "results-writer"),
          ("command_events", "results-writer"), ("agent_hello", "telemetry-writer"),
          ("agent_events", "telemetry-writer"), ("telemetry", "telemetry-writer"))


def open_ids(world, load):
    """Accepted ids without a terminal row, as far as they must have one."""
    rows = {r["correlation_id"]: r["status"] for r in world.query(
        "SELECT correlation_id, status FROM agent_commands WHERE correlation_id LIKE %s", load.tag + "-%")}
    return [s.cid for s in load.sent.values() if rows.get(s.cid) not in TERMINAL and not excused(world, s, rows)]


def excused(world, s, rows):
    """Never surely accepted, or lost with Redis before it was read: it may have no row at all."""
    if s.cid in rows:
        return False
    return not s.sure or any(s.at <= at for at in world.data_losses)


def leftovers(world):
    """What Redis still holds of commands that should be over."""
    r, left = world.backend, []
    for stream, group in GROUPS:
        key = f"viw.{stream}"
        if not r.exists(key):
            continue
        groups = {g["name"]: g for g in r.xinfo_groups(key)}
        if group not in groups:
            left.append(f"{key} has no group {group}")
        elif groups[group]["pending"]:
            left.append(f"{key}/{group}: {groups[group]['pending']} pending")
        elif stream != "telemetry":
            # Of a group made anew from 0, nothing is left to read where all has been trimmed.
            last, read = r.xrevrange(key, count=1), groups[group]["last-delivered-id"]
            if last and entry_key(last[0][0]) > entry_key(read):
                left.append(f"{key}/{group}: not read to its end, {last[0][0]}, but to {read}")
    left += [f"{k}: {r.xlen(k)} entries" for k in r.scan_iter("viw.mbox.*", count=1000) if r.xlen(k)]
    for key, size in (("viw.deadlines", r.zcard), ("viw.waiting", r.scard)):
        if size(key):
            left.append(f"{key}: {size(key)} members")
    left += [f"{k}: {r.hlen(k)} offers" for k in r.scan_iter("viw.offered.*", count=1000)]
    return left


def entry_key(entry_id):
    return tuple(int(n) for n in entry_id.split("-"))


def converge(world, load, bound_s):
    """Waits until every id is terminal and Redis is clean. Returns what is still wrong at the bound."""
    deadline = time.monotonic() + bound_s
    while True:
        world.tend()
        try:
            wrong = open_ids(world, load)
            left = [] if wrong else leftovers(world)
        except Exception as e:
            wrong, left = [f"{type(e).__name__}: {e}"], []
        if not wrong and not left:
            return []
        if time.monotonic() > deadline:
            return [describe(world, load, cid) for cid in wrong[:8]] + (
                [f"… {len(wrong)} ids are not terminal"] if wrong else left)
        time.sleep(0.25)


def describe(world, load, cid):
    rows = world.query("SELECT * FROM agent_commands WHERE correlation_id = %s", cid)
    row = {k: str(v) for k, v in rows[0].items() if v is not None} if rows else "no row"
    s = load.sent.get(cid)
    try:
        marker = world.backend.hgetall(f"viw.cid.{cid}")
    except Exception as e:
        marker = repr(e)
    return (f"{cid} (kind {s.kind}, agent {s.agent}): not terminal. row {row} marker {marker} "
            f"ledger {world.ledger.read().get(cid)}") if s else f"{cid}"


def check(world, load, healed_at):
    """Violations of the promises, and figures."""
    wrong = []
    say = wrong.append
    ledger = world.ledger.read()
    rows = {r["correlation_id"]: r for r in world.query("SELECT * FROM agent_commands")}
    results = world.query("SELECT * FROM agent_command_results")
    by_cid = {}
    for r in results:
        by_cid.setdefault(r["correlation_id"], []).append(r)
    known = world.all_sent
    for cid in rows:
        if cid not in known:
            say(f"{cid}: a row nobody asked for")
    for cid in by_cid:
        if cid not in known:
            say(f"{cid}: a result nobody asked for")
    for cid in ledger:
        if cid not in known:
            say(f"{cid}: executed, but nobody asked for it")
    for s in load.sent.values():
        row = rows.get(s.cid)
        if row is None:
            # Redis can lose a command that a bridge had read and results-writer not yet: no row then.
            if ledger.get(s.cid) and not any(s.at <= at for at in world.data_losses):
                say(f"{s.cid}: executed, but it has no row")
            continue
        faults = list(faults_of(world, s, row, by_cid.get(s.cid, []), ledger.get(s.cid, [0, []])))
        wrong += [f"{s.cid} (kind {s.kind}, agent {s.agent}): {w}" for w in faults]
        if faults:
            wrong.append("evidence: " + evidence(world, s, row, by_cid.get(s.cid, [])))
    for a in world.query("SELECT * FROM chaos_audit"):
        say(f"{a['correlation_id']}: terminal row changed from {a['was']} to {a['became']}")
    for p in world.programs:
        wrong += p.unexpected
        p.unexpected = []
        now = p.size()
        if now and p.first_size:
            if now[0] > p.first_size[0] + 40:
                say(f"{p.name}: descriptors grew from {p.first_size[0]} to {now[0]}")
            if now[1] > p.first_size[1] + 65536:
                say(f"{p.name}: memory grew from {p.first_size[1]} to {now[1]} KiB")
    states = {}
    for s in load.sent.values():
        state = rows[s.cid]["status"] if s.cid in rows else "lost with Redis" if s.sure else "XADD refused"
        states[state] = states.get(state, 0) + 1
    after = sorted(max(0.0, rows[c]["completed_at"].timestamp() - healed_at) for c in load.sent
                   if c in rows and rows[c]["completed_at"] and rows[c]["completed_at"].timestamp() > healed_at)
    unknown = [[s.cid, s.kind, by_cid[s.cid][0]["error_code"], justified(world, s, rows[s.cid])]
               for s in load.sent.values() if s.cid in rows and rows[s.cid]["status"] == "unknown"]
    return wrong, {"states": states, "after_heal_s": after, "unknown": unknown}


def evidence(world, s, row, results):
    """What rows, Redis, the host's journal and the logs say of an id that broke a promise."""
    def shown(fields):
        return {k: str(v) for k, v in fields.items() if v is not None}
    lines = [f"sent {s.at:.3f}", f"row {shown(row)}", *(f"result {shown(r)}" for r in results)]
    try:
        lines.append(f"marker {world.backend.hgetall(f'viw.cid.{s.cid}')} doubt {world.backend.get('viw.doubt')}")
    except Exception as e:
        lines.append(repr(e))
    name = hashlib.sha256(s.cid.encode()).hexdigest()
    for host in world.hosts:
        for path in (host.disk / "state" / "journal").glob(name + "*"):
            lines.append(f"{host.agent_id} journal {path.read_bytes()!r}")
    for path in sorted((world.dir / "logs").rglob("*")):
        if path.is_file():
            lines += [f"{path.parent.name}: {t}" for t in path.read_text(errors="replace").splitlines() if s.cid in t][:40]
    return "\n    ".join(lines)


def faults_of(world, s, row, results, seen):
    """Row, result and ledger of one id against each other."""
    starts, ends = seen
    status = row["status"]
    if len(results) != 1:
        yield f"{len(results)} result rows"
        return
    r = results[0]
    if r["status"] != status:
        yield f"row says {status}, result says {r['status']}"
    if starts > 1 and not (s.kind == "plain" and world.data_losses):
        yield f"started {starts} times"
    if status in ("expired", "cancelled", "rejected") and starts:
        yield f"{status} ({r['source']}: {r['error_msg']}, row {dict(row)}), but the ledger has a start"
    if s.kind == "decommissioned" and status == "expired" and world.data_losses:
        return  # Redis had forgotten who is decommissioned
    if s.kind in ("malformed", "decommissioned") and status != "rejected":
        yield f"{status}, should be rejected"
    if status == "rejected" and s.kind not in ("malformed", "decommissioned"):
        yield f"rejected: {r['error_code']} {r['error_msg']}"
    if status == "cancelled" and not s.cancelled:
        # redis_lost: the row lost its parameters; only then may the system cancel by itself
        if not world.data_losses:
            yield "cancelled, though nobody cancelled it"
    if status == "unknown" and not justified(world, s, row):
        yield f"unknown ({r['error_code']}: {r['error_msg']}), but nothing hurt that host"
    if s.kind in ("echo", "read"):
        return
    if status == "done" and ends != [0]:
        yield f"done, but the ledger ends {ends}"
    if status == "failed":
        if r["error_code"] in (None, "") and (not ends or ends[0] == 0 or ends[0] != r["rc"]):
            yield f"failed with rc {r['rc']}, but the ledger ends {ends}"
        if r["error_code"] not in (None, "", "timeout") and starts:
            yield f"failed with {r['error_code']}, but it was started"


def justified(world, s, row):
    """What hurt the host while the command was open, None if nothing did."""
    begin, end = s.at - 5, row["completed_at"].timestamp() + 5
    hurts = [(at, how) for host in world.hosts if host.agent_id == s.agent for at, how in host.hurt]
    return next((how for at, how in reversed(hurts) if begin <= at <= end), None)
