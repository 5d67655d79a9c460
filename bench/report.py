"""Rows as lines on the terminal, and results as the Markdown tables of README.md."""
import json

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def number(v):
    if isinstance(v, float):
        return f"{v:,.0f}" if abs(v) >= 100 else f"{v:.2f}" if abs(v) < 10 else f"{v:.1f}"
    return f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v)


def print_row(row):
    print("  " + "  ".join(f"{k} {number(v)}" for k, v in row.items()), flush=True)


def markdown(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, r)) + " |" for r in rows])


def against(row, base, key="total_us"):
    return f"{row[key] / base[key]:.2f} ×" if base and base[key] else ""


def fanin(rows):
    out, base = [], {(r["conns"], r["rate"]): r for r in rows if r["peer"] == "bridge"}
    names = {"bridge": "agent-bridge + Redis", "node": "Node ws + ioredis + Redis", "nats": "nats-server, JetStream file",
             "mosquitto": "mosquitto, QoS 1"}
    for r in rows:
        b = base.get((r["conns"], r["rate"]))
        lost = "" if r["stored"] >= r["frames"] else f" ({r['frames'] - r['stored']:,} not stored)"
        out.append([f"{r['conns']:,}", f"{r['rate']:,}/s" if r["rate"] else "fast", names[r["peer"]],
                    number(r["frames_per_s"]) + lost, number(r["server_us"]), number(r["redis_us"]) if r["redis_us"] else "–",
                    number(r["total_us"]), against(b, r) if b and r["peer"] != "bridge" else "1",
                    number(r["p99_ms"]) if "p99_ms" in r else "–", number(r["loadgen_us"]),
                    number(r["loadgen_user_us"]) if "loadgen_user_us" in r else "–"])
    return markdown(["connections", "rate", "what", "frames/s", "server µs", "redis µs", "sum µs/frame",
                     "ours ÷ this", "p99 ms to the store", "generator µs", "of that its own code"], out)


def growth(rows):
    base = rows[0] if rows else None
    return markdown(["connections", "bridge µs/frame", "against 100", "redis µs/frame", "p99 ms"],
                    [[f"{r['conns']:,}", number(r["server_us"]), against(r, base, "server_us"), number(r["redis_us"]),
                      number(r["p99_ms"])] for r in rows])


def idle(rows):
    return markdown(["what", "connections", "TLS", "KiB each, process", "KiB each, kernel (both ends)",
                     "MiB before", "MiB after they left"],
                    [[r["peer"], f"{r['conns']:,}", "mTLS" if r["tls"] else "plain", number(r["rss_kib_each"]),
                      number(r["kernel_kib_each_both_ends"]), number(r["rss_mib_before"]),
                      number(r["rss_mib_after_they_left"])] for r in rows])


def profile(rows):
    loads = list(dict.fromkeys(r["load"] for r in rows))
    parts = list(dict.fromkeys(r["part"] for r in rows))
    share = {(r["load"], r["part"]): r["percent"] for r in rows}
    return markdown(["% of the bridge's CPU", *loads], [[p, *(share.get((l, p), "–") for l in loads)] for p in parts])


def commands(rows):
    keys = list(dict.fromkeys(k for r in rows for k in r))
    return markdown([k.replace("_", " ") for k in keys], [[number(r[k]) if k in r else "–" for k in keys] for r in rows])


def plain(rows):
    if not rows:
        return ""
    show = lambda v: ", ".join(f"{k}: {n:,}" for k, n in v.items()) or "none" if isinstance(v, dict) else number(v)
    return markdown([k.replace("_", " ") for k in rows[0]], [[show(v) for v in r.values()] for r in rows])


def tables(results):
    parts = []
    for name, render in (("fanin", fanin), ("growth", growth), ("idle", idle), ("handshakes", plain), ("storm", plain),
                         ("back", plain), ("commands", commands), ("quiet", commands), ("churn", plain), ("profile", profile)):
        path = results / f"{name}.json"
        if not path.exists():
            continue
        d = json.loads(path.read_text())
        m = d["machine"]
        failed = f"\n\nStopped early: {d['failed']}" if d["failed"] else ""
        parts.append(f"`./viw bench {name}` ({m['at']}, commit {m['commit']}, {m['cores']} × {m['cpu']}, "
                     f"load {m['load1']:.1f} before)\n\n{render([r for r in d['rows'] if 'failed' not in r])}{failed}")
    return "\n\n".join(parts)


def put_into(files, results):
    for path in files:
        text = path.read_text() if path.exists() else ""
        if BEGIN not in text or END not in text:
            print(f"{path}: no {BEGIN} … {END}, left alone")
            continue
        head, rest = text.split(BEGIN, 1)
        path.write_text(head + BEGIN + "\n" + tables(results) + "\n" + END + rest.split(END, 1)[1])
        print(f"{path}: written")
    return 0
