"""peer_main.py PORT OUT: a PeerBridge as a process, for tests whose agent lives in another network
namespace. Every frame received becomes a line of OUT; each line of standard input is sent to the
last agent that connected."""
import json
import sys
import threading
import time

import viwtest
from peers import PeerBridge


def main():
    bridge = PeerBridge(viwtest.WsLoop(), port=int(sys.argv[1]), secret=sys.argv[3] if len(sys.argv) > 3 else None)
    bridge.start()

    def send():
        for line in sys.stdin:
            bridge.send(line.strip())
    threading.Thread(target=send, daemon=True).start()
    seen = 0
    with open(sys.argv[2], "w") as out:
        while True:
            frames = [f for c in list(bridge.conns) for f in list(c.frames)]
            for f in frames[seen:]:
                out.write(json.dumps(f) + "\n")
            out.flush()
            seen = len(frames)
            time.sleep(0.05)


main()
