"""What our programs really send is what docs/protocol.schema.json says."""
import json
import warnings

import viwtest

SCHEMA = json.loads((viwtest.ROOT / "docs" / "protocol.schema.json").read_text())


def check(frame, name=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jsonschema
    name = name or frame["type"]
    jsonschema.Draft202012Validator(SCHEMA["$defs"][name]).validate(frame)
    unknown = set(frame) - set(SCHEMA["$defs"][name]["properties"])
    assert not unknown, f"{name} has fields no document names: {unknown}"


def test_the_schema_is_one():
    import jsonschema
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert {"HELLO", "TELEMETRY", "RESULT", "COMMAND", "HELPER_REQUEST", "HELPER_REPLY"} <= set(SCHEMA["$defs"])


def test_frames_of_the_bridge(chain, connect):
    ws = connect(chain.ws_url, headers=chain.headers("gw-schema"))
    for frame in ws.hello("gw-schema"):
        check(frame)
    ws.send({"type": "HEARTBEAT", "agent_id": "gw-schema", "ts": viwtest.rfc3339()})
    check(ws.expect("HEARTBEAT"))
    cid = chain.redis.xadd_command("gw-schema", "ECHO", params={"message": "x"}, issued_by_admin_id="a")
    check(ws.expect("COMMAND"))
    ws.send({"type": "RESULT", "agent_id": "gw-schema", "correlation_id": cid, "status": "success", "rc": 0})
    check(ws.expect("RESULT_ACK"))
    ws.send({"type": "TELEMETRY", "agent_id": "gw-schema", "ts": "yesterday", "metrics": {}})
    check(ws.expect("ERROR"))
    cid = chain.redis.xadd_command("gw-schema", "ECHO", params={})
    ws.expect("COMMAND", correlation_id=cid)
    chain.redis.client.xadd("viw.commands", {"correlation_id": cid, "agent_id": "gw-schema", "op": "cancel"})
    check(ws.expect("CANCEL", correlation_id=cid))


def test_frames_of_the_agent(chain, root_dir):
    chain.start_helper(root_dir).start_agent("gw-schema")
    cid = chain.redis.xadd_command("gw-schema", "get_system_health")
    chain.pg.wait_row("SELECT 1 FROM agent_command_results WHERE correlation_id = %s", cid, timeout=20)
    seen = set()
    for stream in ("agent_hello", "telemetry", "command_results"):
        for _, fields in chain.redis.client.xrange(f"viw.{stream}"):
            frame = json.loads(fields["frame"])
            check(frame)
            seen.add(frame["type"])
    # Acknowledged entries may be trimmed; HELLO and RESULT rows prove that they came.
    assert seen & {"HELLO", "TELEMETRY", "RESULT"}


def test_messages_of_the_helper(chain, root_dir):
    chain.start_helper(root_dir, agent_user="root")
    client = viwtest.HelperClient(chain.socket, "helper-key-0123456789abcdef0123456789")
    check(client.call(op="hello"), "HELPER_REPLY")
    check(client.call(verb="get_system_health", args={}), "HELPER_REPLY")
    check(client.call(verb="no_such_verb", args={}), "HELPER_REPLY")
    client.close()
