"""One frame, sent by a WebSocket client that is not ours, becomes rows in PostgreSQL."""
import viwtest


def test_a_frame_sent_by_python_websockets_is_in_postgresql(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-frame"))
    ack, welcome = ws.hello("gw-frame", hostname="gw-frame.example", site="lab", labels={"rack": "7"},
                            version="9.8.7", capabilities=["exec", "telemetry"], boot_id="boot-1")
    assert welcome["session_id"] == ack["conn_id"]
    sent = viwtest.rfc3339()
    ws.send({"type": "TELEMETRY", "agent_id": "gw-frame", "ts": sent, "boot_id": "boot-1", "seq": 1,
             "metrics": {"cpu_pct": 12.5, "mem_pct": 40, "disk_pct": 61.25, "load1": 0.5, "load5": 0.25,
                         "load15": 0.125, "containers_running": 3, "services": {"ssh": "running"},
                         "of_our_own": {"kept": [1, "two"]}}})

    gateway = chain.pg.wait_row("SELECT * FROM os_gateways WHERE agent_id = 'gw-frame' AND version = '9.8.7'")
    assert (gateway["hostname"], gateway["site"], gateway["labels"], gateway["status"], gateway["bridge_id"]) == (
        "gw-frame.example", "lab", {"rack": "7"}, "online", "bridge-1")
    assert (gateway["conn_id"], gateway["epoch"]) == (ack["conn_id"], ack["epoch"])

    row = chain.pg.wait_row("SELECT *, ts = %s::timestamptz AS same_time FROM os_gateway_status "
                            "WHERE agent_id = 'gw-frame'", sent)
    assert (row["cpu_pct"], row["mem_pct"], row["disk_pct"], row["load1"], row["load5"], row["load15"]) == (
        12.5, 40, 61.25, 0.5, 0.25, 0.125)
    assert (row["containers_running"], row["services"], row["seq"], row["same_time"]) == (
        3, {"ssh": "running"}, 1, True)
    assert row["metrics"]["of_our_own"] == {"kept": [1, "two"]}

    minute = chain.pg.wait_row("SELECT * FROM os_gateway_metrics WHERE agent_id = 'gw-frame'")
    assert (minute["samples"], minute["cpu_avg"], minute["cpu_max"]) == (1, 12.5, 12.5)


def test_a_later_frame_replaces_the_figures_and_an_older_one_does_not(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-order"))
    ws.hello("gw-order", boot_id="b")
    for seq, cpu in ((1, 10), (3, 30), (2, 20)):
        ws.send({"type": "TELEMETRY", "agent_id": "gw-order", "ts": viwtest.rfc3339(), "boot_id": "b",
                 "seq": seq, "metrics": {"cpu_pct": cpu}})
    viwtest.wait_for(lambda: chain.pg.query(
        "SELECT 1 FROM os_gateway_metrics WHERE agent_id = 'gw-order' HAVING sum(samples) = 3"),
        what="all three frames are counted")
    row = chain.pg.query("SELECT seq, cpu_pct FROM os_gateway_status WHERE agent_id = 'gw-order'")[0]
    assert (row["seq"], row["cpu_pct"]) == (3, 30)


def test_connection_and_disconnection_are_rows(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-session"))
    ack, _ = ws.hello("gw-session")
    chain.pg.wait_row("SELECT 1 FROM agent_sessions WHERE conn_id = %s AND disconnected_at IS NULL", ack["conn_id"])
    ws.close()
    row = chain.pg.wait_row("SELECT * FROM agent_sessions WHERE conn_id = %s AND disconnected_at IS NOT NULL",
                            ack["conn_id"])
    assert row["agent_id"] == "gw-session" and row["connected_at"] <= row["disconnected_at"]
    chain.pg.wait_row("SELECT 1 FROM os_gateways WHERE agent_id = 'gw-session' AND status = 'offline'")
