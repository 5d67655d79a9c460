"""python websockets by the interface that Debian 12 (10.4) and 13 (15.0) both have: its `legacy` one."""
from websockets.exceptions import ConnectionClosed, WebSocketException  # noqa: F401
from websockets.legacy.client import connect  # noqa: F401
from websockets.legacy.server import serve  # noqa: F401

try:
    from websockets.legacy.exceptions import InvalidStatusCode  # noqa: F401
except ImportError:
    from websockets.exceptions import InvalidStatusCode  # noqa: F401
