#!/usr/bin/python3
"""Kills, freezes and cuts the real programs at random while commands run, then heals everything and
checks that every command ended in exactly one truthful state and ran at most once.

    tests/chaos/run [--seed S] [--seeds N | --minutes N] [--rounds N] [--seconds N] [--rate N]
                    [--faults name,…] [--off fencing|journal|dedupe] [--keep] [--report FILE | --sum FILE]

Everything random comes from the seed that is printed (but not the programs' own timing). Exit 0: no
violation; 1: violations, printed with the seed. With --off a promise is broken on purpose, and the
run fails when nothing was noticed."""
import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "lib")]

import verdict  # noqa: E402
from faults import TABLE, Faults, crash_points  # noqa: E402
from load import Load  # noqa: E402
from watch import Watch  # noqa: E402
from world import World  # noqa: E402

# With a promise switched off: the faults that show it.
OFF_FAULTS = {"journal": ["kill_agent", "bad_helper_link"], "dedupe": ["kill_bridge"],
              "fencing": ["two_faced"]}


class Totals:
    def __init__(self):
        self.commands = self.faults = self.rounds = self.duplicates = self.excused = 0
        self.offers_watched, self.unknown = 0, []
        self.states, self.by_fault, self.after_heal, self.violations = {}, {}, [], []
        self.crashed, self.passed, self.seeds = {}, set(), []

    def add(self, load, faults, figures, wrong):
        self.rounds += 1
        self.commands += len(load.sent)
        self.duplicates += load.duplicates
        self.faults += sum(faults.done.values())
        self.offers_watched += figures.get("offers_watched", 0)
        for k, n in figures["states"].items():
            self.states[k] = self.states.get(k, 0) + n
        for k, n in faults.done.items():
            self.by_fault[k] = self.by_fault.get(k, 0) + n
        self.after_heal += figures["after_heal_s"]
        self.unknown += figures["unknown"]
        self.violations += wrong

    @classmethod
    def read(cls, path):
        """The sum of what `--report` wrote, one line a run."""
        total = cls()
        for line in open(path):
            for name, value in json.loads(line).items():
                if isinstance(value, dict):
                    mine = getattr(total, name)
                    for k, n in value.items():
                        mine[k] = mine.get(k, 0) + n
                elif name == "passed":
                    total.passed |= set(value)
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total

    def report(self, path):
        with open(path, "a") as f:
            f.write(json.dumps({**vars(self), "passed": sorted(self.passed)}) + "\n")

    def summary(self):
        after = sorted(self.after_heal)

        def quantile(q):
            return round(after[min(len(after) - 1, int(q * len(after)))], 2) if after else None
        return {"seeds": self.seeds, "rounds": self.rounds, "commands": self.commands,
                "duplicate_xadds": self.duplicates, "faults": self.faults, "by_fault": self.by_fault,
                "crash_points_fired": len(self.crashed), "crash_points": dict(sorted(self.crashed.items())),
                "crash_points_never_passed": sorted(set(crash_points()) - self.passed),
                "offers_watched": self.offers_watched, "states": self.states, "violations": len(self.violations),
                "bound_95_per_command": f"{3 / max(1, self.commands):.2e}",
                "unknown_share": round(self.states.get("unknown", 0) / max(1, self.commands), 6),
                "unknown_because": {f"{code}: {why}": sum(1 for u in self.unknown if (u[2], u[3]) == (code, why))
                                    for code, why in sorted({(str(u[2]), str(u[3])) for u in self.unknown})},
                "terminal_after_heal_s": {"n": len(after), "p50": quantile(0.5), "p99": quantile(0.99),
                                          "max": quantile(1.0)}}


def run_round(world, args, number, totals, log):
    rng = random.Random(f"{world.seed}/{number}")
    load = Load(world, rng, f"s{world.seed}r{number}")
    world.all_sent.update(load.sent)
    load.sent = RecordingDict(world.all_sent)
    names = args.faults or OFF_FAULTS.get(args.off) or [n for n in TABLE if not TABLE[n][2] or number % 3 == 0]
    lossy = any(TABLE[n][2] for n in names)
    if lossy or world.has_lost:
        # Redis forgot whether it was offered to anybody: for an agent that never comes it stays open,
        # truthfully, until LOST_AFTER_S past its deadline. So do those sent for a while after it.
        del load.kinds["offline"]
    if names == ["two_faced"]:
        load.kinds, load.waits_ms = {"plain": 1}, (300, 600)  # always some under way
    if args.off == "dedupe":
        load.kinds, load.doubled = {"plain": 1}, 0.5
    faults = Faults(world, rng, names)
    world.data_losses = []
    for h in world.hosts:
        h.hurt = []
    for a in world.plain:
        a.forget_after_ack = not lossy
    watch = None if lossy or args.off else Watch(world)
    end = time.monotonic() + args.seconds
    next_fault = time.monotonic() + 0.5
    while time.monotonic() < end:
        tick = time.monotonic()
        load.step(max(1, int(args.rate * 0.05)))
        if time.monotonic() >= next_fault:
            next_fault = time.monotonic() + rng.uniform(0.2, 2.0) / args.intensity
            text = faults.inject()
            if text and args.verbose:
                log(f"    {args.seconds - (end - time.monotonic()):5.1f} s  {text}")
        faults.tend()
        world.tend()
        time.sleep(max(0.0, 0.05 - (time.monotonic() - tick)))
    faults.tend(all=True)
    world.heal()
    load.step(0)
    while load.again:
        load.step(0)
        world.tend()
        time.sleep(0.05)
    healed_at = time.time()
    world.prepare_redis()
    stuck = verdict.converge(world, load, args.bound)
    wrong, figures = verdict.check(world, load, healed_at)
    if watch:
        watch.stop()
        wrong += watch.violations(load)
        figures["offers_watched"] = sum(seen[1] for seen in watch.seen)
    if names == ["two_faced"]:  # no slow links here: what comes late was sent late
        wrong += [f"{a.agent_id}: COMMAND {cid} on a connection that was superseded long ago"
                  for a in world.plain for cid in a.stale]
    wrong = [f"not converged within {args.bound} s: {s}" for s in stuck] + wrong
    totals.add(load, faults, figures, wrong)
    log(json.dumps({"seed": world.seed, "round": number, "commands": len(load.sent),
                    "faults": sum(faults.done.values()), "converged_s": round(time.time() - healed_at, 1),
                    "states": figures["states"], "violations": len(wrong)}))
    for w in wrong[:20]:
        log(f"  VIOLATION seed {world.seed} round {number}: {w}")
    if faults.failed and args.verbose:
        log(f"  faults that could not be applied: {faults.failed[:5]}")
    return wrong


class RecordingDict(dict):
    """A round's ids; also kept with those of earlier rounds."""

    def __init__(self, everything):
        super().__init__()
        self.everything = everything

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.everything[key] = value


def run_seed(seed, args, totals, log, until):
    world = World(seed, bridges=args.bridges, hosts=args.hosts, plain=args.plain, off=args.off, keep=args.keep, log=log)
    totals.seeds.append(seed)
    try:
        settle(world)
        for number in range(1, args.rounds + 1):
            if until and time.monotonic() > until:
                break
            wrong = run_round(world, args, number, totals, log)
            if wrong and not args.go_on:
                if args.keep:
                    log(f"  kept: {world.dir} {world.root_dir}")
                break
    finally:
        totals.passed |= world.passed
        for name in world.crashed:
            totals.crashed[name] = totals.crashed.get(name, 0) + world.crash_count(name)
        world.close()


def settle(world):
    """Every agent is connected before the first fault."""
    import viwtest
    want = {h.agent_id for h in world.hosts} | {a.agent_id for a in world.plain}

    def connected():
        return want <= set(world.backend.hkeys("viw.owner"))
    viwtest.wait_for(connected, 30, lambda: "all agents connect")


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--seeds", type=int, default=1, help="how many seeds, counted up from --seed")
    p.add_argument("--minutes", type=float, default=0, help="go on to further seeds for this long")
    p.add_argument("--rounds", type=int, default=3, help="rounds a seed; every third loses Redis data")
    p.add_argument("--seconds", type=float, default=20, help="load and faults of a round")
    p.add_argument("--rate", type=float, default=60, help="commands a second")
    p.add_argument("--intensity", type=float, default=1.0, help="times the usual number of faults")
    p.add_argument("--bound", type=float, default=150, help="seconds to converge after healing")
    p.add_argument("--bridges", type=int, default=3)
    p.add_argument("--hosts", type=int, default=4)
    p.add_argument("--plain", type=int, default=8)
    p.add_argument("--faults", type=lambda s: s.split(","), default=None)
    p.add_argument("--off", default="", choices=("", "fencing", "journal", "dedupe"))
    p.add_argument("--report", help="append the figures to this file, one line of JSON")
    p.add_argument("--sum", metavar="REPORT", help="only print the sum of such a file")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--go-on", action="store_true", help="further rounds after a violation")
    p.add_argument("--verbose", action="store_true")
    return p.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    if args.sum:
        print(json.dumps(Totals.read(args.sum).summary(), indent=1))
        return 0
    if os.geteuid() != 0:
        print("needs root: the helper trusts only root-owned files, and disks are filled", file=sys.stderr)
        return 78
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1, 10**6)

    def log(text):
        print(text, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is ended
    totals = Totals()
    until = time.monotonic() + args.minutes * 60 if args.minutes else None
    log(f"seed {seed}, {len(crash_points())} crash points in the sources" + (f", {args.off} OFF" if args.off else ""))
    n = 0
    while n < args.seeds or (until and time.monotonic() < until):
        run_seed(seed + n, args, totals, log, until)
        n += 1
        if totals.violations and not args.go_on:
            break
    log(json.dumps(totals.summary(), indent=1))
    if args.report:
        totals.report(args.report)
    if args.off:
        log(f"{args.off} off: " + ("noticed, as it must be" if totals.violations else "NOT NOTICED"))
        return 0 if totals.violations else 1
    return 1 if totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
