# SPDX-License-Identifier: GPL-2.0-or-later
"""The trackers' benchmark; run it through scripts/bench-tracking, which
builds what the guest needs first.

In virtual hosts with real KVM (scripts/lab) a guest accesses the memory of a
memory-backend-memx in patterns that are known exactly, with a quarter, half and
three quarters of it local: which of what is hot does each tracker keep there?
Beside it what other policies would have made of the same accesses: random,
first in first out, least recently used, and Belady's optimum.

A benchmark reports and does not judge: the status is 0 if all could be
measured.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, HERE)
# pylint: disable=wrong-import-position
from tracklib import figures, plan, report  # noqa: E402

BUILD = os.path.join(os.path.dirname(HERE), "build")
RESULTS = os.path.join(BUILD, "bench")
LAB_SECONDS = 3 * 3600
LACKING = 77


def arguments():
    parser = argparse.ArgumentParser(
        prog="bench-tracking", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="a tenth of the accesses, half local, rwp alone "
                        "unless told otherwise: to see that it works")
    parser.add_argument("--json", action="store_true",
                        help="print JSON instead of tables")
    parser.add_argument("--output", metavar="FILE",
                        default=os.path.join(RESULTS, "tracking.json"),
                        help="where the JSON goes (default: "
                        "build/bench/tracking.json)")
    parser.add_argument("--plot", metavar="FILE", nargs="?",
                        const=os.path.join(RESULTS, "tracking.png"),
                        help="draw what is kept as PNG (default: "
                        "build/bench/tracking.png)")
    parser.add_argument("--trackers", type=list_of(plan.TRACKERS),
                        metavar="NAME[,NAME]...",
                        help=", ".join(plan.TRACKERS) + " (default: all)")
    parser.add_argument("--percents", type=list_of(map(str, plan.PERCENTS)),
                        metavar="N[,N]...", help="local, of all memory in use "
                        "(default: 25,50,75)")
    measured = [*plan.PATTERNS, plan.COST]
    parser.add_argument("--patterns", type=list_of(measured),
                        metavar="NAME[,NAME]...", default=measured,
                        help="default: " + ",".join(measured))
    parser.add_argument("--scale", type=float, metavar="FACTOR",
                        help="of the numbers of accesses (default: 1)")
    parser.add_argument("--keep", action="store_true",
                        help="judge what is there from another run, too, as "
                        "far as it isn't measured anew")
    args = parser.parse_args()
    args.trackers = args.trackers or (["rwp"] if args.quick
                                      else list(plan.TRACKERS))
    args.percents = args.percents or (["50"] if args.quick
                                      else [str(n) for n in plan.PERCENTS])
    args.scale = args.scale or (0.1 if args.quick else 1)
    return args


def list_of(names):
    names = list(names)

    def parse(text):
        words = text.split(",")
        for word in words:
            if word not in names:
                raise argparse.ArgumentTypeError(
                    f"there is no {word}, but " + ", ".join(names))
        return words
    return parse


def run_lab(args, kernel, trackers, scratch, say):
    """What could not be measured is missing in the results; why is said."""
    say(f"\n{', '.join(trackers)}: a host with kernel {kernel}")
    # One CPU: with several, emulated guests that run for long reset themselves
    # now and then.
    argv = [os.path.join(HERE, "lab"), "run", "--kernel", kernel, "--cpus",
            "1", "--timeout", str(LAB_SECONDS), "--scratch", scratch,
            os.path.join(HERE, "tracklib/inside.py"), str(args.scale),
            ",".join(trackers), ",".join(args.percents),
            ",".join(args.patterns)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                          stdout=sys.stderr if args.json else None) as lab:
        try:
            status = lab.wait()
        except BaseException:   # ended by a signal: the lab cleans up, too
            lab.terminate()
            raise
    if status:
        say(f"kernel {kernel}: the lab ended with {status}")
    return status == 0


class Traces:
    """Each is printed once, by the guest's own program."""

    def __init__(self):
        self._known = {}

    def of(self, pattern, percent, scale):
        words = tuple(plan.command(pattern, percent, scale))
        if words not in self._known:
            program = os.path.join(BUILD, "guest", words[0])
            done = subprocess.run([program, *words[1:], "--print"],
                                  stdout=subprocess.PIPE, check=True,
                                  text=True)
            self._known[words] = figures.Trace(done.stdout)
        return self._known[words]


def collect(scratch):
    results = []
    for name in sorted(os.listdir(scratch)):
        if name.endswith(".json"):
            with open(os.path.join(scratch, name), encoding="utf-8") as file:
                results.append(json.load(file))
    return results


def judge_all(results):
    traces, judged = Traces(), []
    for result in results:
        for run in result["runs"]:
            trace = traces.of(run["pattern"], run["percent"], run["scale"])
            if trace.checksum != run["checksum"]:
                sys.exit("bench-tracking: the guest's accesses are not those "
                         "that this machine computes; is build/guest newer "
                         "than the results?")
            judged.append(figures.judge(run, trace))
    costs = {result["tracker"]: figures.cost(result) for result in results
             if result.get("prices")}
    return judged, costs


def on_signal(number, _frame):
    sys.exit(128 + number)


def main():
    args = arguments()
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, on_signal)

    def say(text):
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    began, complete = time.time(), True
    scratch = os.path.join(RESULTS, "tracking")
    if not args.keep:
        shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch, exist_ok=True)
    for kernel in dict.fromkeys(plan.TRACKERS.values()):
        trackers = [name for name in args.trackers
                    if plan.TRACKERS[name] == kernel]
        if trackers:
            complete &= run_lab(args, kernel, trackers, scratch, say)
    results = collect(scratch)
    judged, costs = judge_all(results)
    age_ms = figures.read_age_ms(os.path.join(RESULTS, "scale.json"))
    result = {
        "figures": figures.figures(judged, costs, age_ms),
        "limits": {key: {"must": must, "sense": sense}
                   for key, (_, _, sense, must) in figures.LIMITS.items()},
        "runs": judged, "costs": costs, "seconds": round(time.time() - began),
        "errors": {f"{one['tracker']} {one['percent']}": one["error"]
                   for one in results if "error" in one},
        "prices": {one["tracker"]: one["prices"] for one in results
                   if one.get("prices")},
    }
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    say("\n" + report.text(result))
    say(f"\nDetails: {args.output}")
    if args.plot:
        from tracklib.picture import draw  # pylint: disable=C0415
        draw(judged, args.plot)
        say(f"Picture: {args.plot}")
    if args.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    return 0 if complete and not result["errors"] else 1


if __name__ == "__main__":
    sys.exit(main())
