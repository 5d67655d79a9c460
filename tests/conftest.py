"""Fixtures of all tests; what they are made of is in lib/viwtest.py.

tmp        short private directory
root_dir   the same with a root-only chain (the helper trusts nothing else)
redis      own redis-server: .url .unix_url .client .xadd_command() .stop() .start() .kill() .freeze()
pg         fresh migrated database: .uri .query() .wait_row() .connect()
pg_server  own PostgreSQL for tests that stop it; pg_server.new_database()
start      start("agent-bridge", env={…}, args=[…], user="nobody") -> Proc
connect    connect(url, headers=…) -> WsClient
pki        certificates
bridge     bridge(max_conn=3, …) -> bridgetest.Bridge on the test's redis
"""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "lib"))
import bridgetest  # noqa: E402
import viwtest  # noqa: E402


def pytest_configure():
    # A shell ignores SIGINT in what it starts behind its back; the programs of the tests must not inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A whole run has three lanes (tools/test.sh): first and second side by side; last alone, since it loads the
# machine or measures it. Both of a pair that need one thing of this machine, as a fixed port, go in one lane.
# What in the first two was too late (too late only: a wrong value is a failure at once) is noted in the file
# VIW_TEST_LATE; such tests, if few, are run once more alone.
LATE = (viwtest.TooLate, TimeoutError, ConnectionError, subprocess.TimeoutExpired)
LANES = (("last", ("chaos/", "integration/test_06_bench.py")), ("second", ("e2e/", "integration/test_06_")), ("first", ("",)))


def lane_of(path):
    inside = Path(path).relative_to(Path(__file__).parent).as_posix()
    return next(lane for lane, begin in LANES if inside.startswith(begin))


def pytest_collection_modifyitems(config, items):
    lane = os.environ.get("VIW_TEST_LANE")
    if lane:
        config.hook.pytest_deselected(items=[item for item in items if lane_of(item.path) != lane])
        items[:] = [item for item in items if lane_of(item.path) == lane]


def pytest_collection_finish(session):
    """In a whole run the minutes of test_07_bridge_time.py pass beside the other tests."""
    if any("test_07_bridge_time" in item.nodeid for item in session.items) and not session.config.option.collectonly:
        sys.path.insert(0, str(Path(__file__).parent / "integration"))
        import minutes
        try:
            minutes.get()
        except Exception as e:  # the tests that need it try again, and tell
            print(f"test_07_bridge_time.py could not begin: {e}", file=sys.stderr)


def pytest_sessionfinish(session):
    if "minutes" in sys.modules:
        sys.modules["minutes"].end()


def pytest_runtest_setup(item):
    mark = item.get_closest_marker("timeout")
    seconds = mark.args[0] if mark else 60

    def on_alarm(signum, frame):
        raise TimeoutError(f"{item.name} took more than {seconds} s")
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(seconds)


def pytest_runtest_teardown(item):
    signal.alarm(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    note = os.environ.get("VIW_TEST_LATE")
    if report.failed and note:
        with open(note, "a") as f:
            f.write(f"{'late' if isinstance(call.excinfo.value, LATE) else 'wrong'} {item.nodeid}\n")
    if report.failed and call.when != "teardown":
        starter = getattr(item, "funcargs", {}).get("start")
        for proc in getattr(starter, "procs", []):
            report.sections.append((f"log of {proc.name}", proc.tail(80)))


def end_programs(request):
    """Before a server or directory goes: the programs that use it, whatever order a test names its
    fixtures in. start's own teardown reports what was wrong with them."""
    starter = request.node.funcargs.get("start")
    if starter is not None:
        starter.close()


@pytest.fixture
def tmp():
    path = viwtest.make_tmp()
    yield path
    if not os.environ.get("VIW_KEEP"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def root_dir(request):
    if os.geteuid() != 0:
        pytest.skip("needs root: the helper trusts only root-owned files")
    path = viwtest.make_root_dir()
    yield path
    end_programs(request)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(tmp):
    starter = viwtest.Starter(tmp)
    yield starter
    faults = starter.close()
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.fixture
def redis(tmp, request):
    server = viwtest.RedisServer(tmp).start()
    yield server
    end_programs(request)
    server.close()


@pytest.fixture(scope="session")
def pg_cluster():
    server = viwtest.PgServer().init()
    try:
        yield server.start().make_template()
    finally:
        server.close()


@pytest.fixture
def pg(pg_cluster, request):
    database = pg_cluster.new_database()
    yield database
    end_programs(request)
    database.close()


@pytest.fixture
def pg_server(request):
    server = viwtest.PgServer().init()
    try:
        yield server.start().make_template()
    finally:
        end_programs(request)
        server.close()


@pytest.fixture(scope="session")
def ws_loop():
    loop = viwtest.WsLoop()
    yield loop
    loop.close()


@pytest.fixture
def connect(ws_loop):
    clients = []

    def go(url, *args, **kwargs):
        clients.append(viwtest.WsClient(ws_loop, url, *args, **kwargs))
        return clients[-1]
    yield go
    for c in clients:
        c.close()


@pytest.fixture
def pki(tmp):
    return viwtest.Pki(tmp)


@pytest.fixture
def bridge(redis, start, connect):  # redis first: it must outlive the bridge
    def go(**settings):
        return bridgetest.Bridge(start, redis, connect, **settings)
    return go
