# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration benchmark; run it through scripts/bench-migration, which
builds what the guest needs first.

Source, main host and two sub-hosts are network namespaces with shaped links.
A Linux guest migrates from the source to the main host in several modes, one
after the other, and again in the next repetition: plainly to a host with
enough memory (ideal); split, to a main host with half of its memory and two
sub-hosts; and plainly to a host with half of its memory and swap.

A benchmark reports and does not judge: the status is 0 if all could be
measured.
"""

import argparse
import json
import os
import re
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../tests/e2e")]
# pylint: disable=wrong-import-position
from benchlib import memory, report  # noqa: E402
from benchlib.beside import Beside  # noqa: E402
from benchlib.figures import LIMITS, figures  # noqa: E402
from benchlib.lab import Lab  # noqa: E402
from benchlib.run import MODES, Run  # noqa: E402
from memxlib import e2e  # noqa: E402
from memxlib.vm import best_accel  # noqa: E402
from memxlib.wait import Failure, Skip  # noqa: E402

RESULTS = os.path.join(e2e.BUILD, "bench")
SIZES_GIB = [8, 6, 4]
# name: (load, uplinks, large VM, modes)
SCENARIOS = {
    "idle": ("idle", "one", True, ["ideal", "split", "swap"]),
    "idle-multi": ("idle", "multi", True, ["ideal", "split"]),
    "rapid": ("rapid-write", "one", True, ["ideal", "split", "swap"]),
    "rapid-multi": ("rapid-write", "multi", True, ["ideal", "split"]),
    "idle-small": ("idle", "one", False, ["ideal", "split", "swap"]),
    "idle-small-multi": ("idle", "multi", False, ["ideal", "split"]),
    "sort": ("sort", "one", False, ["ideal", "split", "no-history", "swap"]),
    "kv": ("kv", "one", False, ["ideal", "split", "no-history", "swap"]),
    "kv-over": ("kv-over", "one", False, ["ideal", "split", "swap"]),
    "kv-paced": ("kv-paced", "one", False, ["ideal", "split", "swap"]),
    "kv-beside": ("kv", "one", False, ["ideal-beside", "split-beside"]),
}
QUICK = ["idle-small", "idle-small-multi", "sort", "kv", "kv-over",
         "kv-paced"]


def arguments():
    parser = argparse.ArgumentParser(
        prog="bench-migration", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="the small VM alone, without swap, once: to see "
                        "that it works")
    parser.add_argument("--json", action="store_true",
                        help="print JSON instead of tables")
    parser.add_argument("--output", metavar="FILE",
                        help="where the JSON goes (default: "
                        "build/bench/migration.json)")
    parser.add_argument("--plot", metavar="FILE", nargs="?", const=os.path.
                        join(RESULTS, "migration.png"),
                        help="draw throughput over time as PNG (default: "
                        "build/bench/migration.png)")
    parser.add_argument("--repeat", type=int, metavar="N",
                        help="repetitions (default: 3, 1 with --quick)")
    parser.add_argument("--rate", default="2G",
                        help="of every link, in bit/s (default: 2G, at which "
                        "the link is what binds)")
    parser.add_argument("--only", action="append", default=[],
                        metavar="SCENARIO", choices=SCENARIOS,
                        help="may be repeated: " + ", ".join(SCENARIOS))
    parser.add_argument("--modes", help="some of " + ",".join(MODES) +
                        " (default: all, without swap with --quick)")
    parser.add_argument("--size", metavar="GIB", type=int,
                        help="of the large VM (default: what fits, at most "
                        f"{SIZES_GIB[0]})")
    parser.add_argument("--multifd", type=int, default=2, metavar="CHANNELS",
                        help="of every migration; 0: without (default: 2)")
    parser.add_argument("--tracker", default="sample",
                        choices=["rwp", "idle", "sample", "off"],
                        help="watches the source's memory before it is split; "
                        "off: its writes, for --warm-up (default: sample, "
                        "which every kernel has)")
    parser.add_argument("--warm-up", type=int, default=3, metavar="SECONDS",
                        help="in which a split learns the VM's history with "
                        "--tracker off (default: 3)")
    parser.add_argument("--after", type=int, metavar="SECONDS",
                        help="to look at the VM afterwards (default: 60, 20 "
                        "with --quick)")
    args = parser.parse_args()
    match = re.fullmatch(r"(\d+)([MG])", args.rate)
    if not match:
        parser.error(f"--rate {args.rate}: a number with M or G, as in 2G")
    args.modes = args.modes.split(",") if args.modes else [
        mode for mode in MODES if not (args.quick and mode == "swap")]
    for mode in args.modes:
        if mode not in MODES:
            parser.error(f"--modes: no mode {mode}")
    for name in args.only:
        if not set(SCENARIOS[name][3]) & set(args.modes):
            parser.error(f"--only {name} has none of these --modes, but "
                         + ",".join(SCENARIOS[name][3]))
    args.rate_bits_per_s = int(match[1]) * {"M": 10**6, "G": 10**9}[match[2]]
    args.repeat = args.repeat or (1 if args.quick else 3)
    args.after = args.after or (20 if args.quick else 60)
    return args


def needed_mib(size_mib):
    """Source, destination or servers, a swap file's cache, the rest."""
    return 2 * size_mib + size_mib // 4 + 1024


def choose_size(args, say):
    """MiB of the large VM."""
    available = memory.available_mib()
    sizes = [args.size] if args.size else SIZES_GIB
    for gib in sizes:
        if needed_mib(gib << 10) <= available:
            say(f"The large VM has {gib} GiB: {available / 1024:.1f} GiB are "
                "available here for source, destination and servers")
            return gib << 10
    raise Skip(f"{available} MiB are available here; a VM of {sizes[-1]} GiB "
               f"needs {needed_mib(sizes[-1] << 10)}")


def chosen_scenarios(args):
    return args.only or (QUICK if args.quick else list(SCENARIOS))


def measure(test, args, large_mib, say, runs):
    """Appends all runs; a mode that cannot be measured says why."""
    for name in chosen_scenarios(args):
        load, uplinks, is_large, all_modes = SCENARIOS[name]
        size = large_mib if is_large else 1024
        lab = Lab(test, args.rate + "bit", uplinks == "multi")
        say(f"\n{name}: {size} MiB, {load}, "
            + ("an uplink for each receiver" if lab.multi else "one uplink")
            + f" of {args.rate}bit/s")
        say(f"{'':14}{report.run_heading()}")
        for repetition in range(args.repeat):
            for mode in all_modes:
                if mode not in args.modes:
                    continue
                run = measure_one(test, made(args, lab, size, load, mode,
                                             repetition))
                run.update(scenario=name, repetition=repetition)
                check_sorted(run, runs)
                runs.append(run)
                say(f"  {mode:12}{report.run_line(run)}")
                for line in report.details(run):
                    say(f"{'':14}{line}")
        lab.close()


def made(args, lab, size, load, mode, repetition):
    if mode.endswith("-beside"):
        of = ["ideal", mode.removesuffix("-beside")]
        return Beside(*(Run(args, lab, size, load, one,
                            f"{repetition}-{mode}-{i}")
                        for i, one in enumerate(of)), args.after)
    return Run(args, lab, size, load, mode, repetition)


def check_sorted(run, runs):
    """The same data, sorted on whichever hosts, are the same."""
    sums = {one["checksum"] for one in [*runs, run] if "checksum" in one
            and one["size_mib"] == run["size_mib"]}
    if len(sums) > 1:
        raise Failure(f"sort after a migration ({run['mode']}) came to "
                      f"another result: {sums}")


def measure_one(test, run):
    try:
        return run.measure(test)
    except (Failure, Skip) as error:
        test.log(f"not measured: {error}")
        return {**run.what, "error": str(error)}


def bench(test, args):
    def say(text):
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    args.accel, described = best_accel()
    say(f"The guest runs under {described}")
    say(f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, "
        "and 'others' below is the CPUs that others kept busy: figures of a "
        "machine that is not idle say little")
    large_mib = 1024
    if any(SCENARIOS[name][2] for name in chosen_scenarios(args)):
        large_mib = choose_size(args, say)
    began, load, runs = time.time(), os.getloadavg(), []
    try:
        measure(test, args, large_mib, say, runs)
    finally:
        # However it ended: what was measured took its time.
        if runs:
            finish(args, {
                **summary(args, runs), "accelerator": described,
                "load_average": load, "large_mib": large_mib,
                "seconds": round(time.time() - began), "runs": runs}, say)
    if any("error" in run for run in runs):
        raise Failure("not all could be measured, see above")


def summary(args, runs):
    judged, told = figures(runs, args.rate + "bit")
    return {
        **judged, "told": told,
        "paper": {key: limits[1] for key, limits in LIMITS.items()},
        "limits": {key: {"must": limits[2], "aim": limits[3]}
                   for key, limits in LIMITS.items()},
        "cpus": os.cpu_count(), "kernel": os.uname().release,
        "rate": args.rate, "repetitions": args.repeat,
        "multifd": args.multifd, "tracker": args.tracker,
        "warm_up_s": args.warm_up,
    }


def finish(args, result, say):
    path = args.output or os.path.join(RESULTS, "migration.json")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    say("\n" + report.figures_table(result))
    say("\nAlso measured\n" + report.told_table(result["told"]))
    if args.tracker == "off":
        say("\nThe transfer's time is what total_ratio compares: the VM is "
            f"watched for {args.warm_up} s before it is split, in which "
            "nothing is sent and it runs on (total_ratio_with_warm_up has "
            "them).")
    say(f"Details: {path}")
    if args.plot:
        from benchlib.plot import plot  # pylint: disable=C0415
        subtitle = (f"{args.rate}bit/s, {result['accelerator'][:40]}, "
                    f"{result['cpus']} CPUs")
        say(f"Picture: {args.plot}" if plot(result["runs"], args.plot,
                                             subtitle)
            else "No picture: the key-value store was not measured")
    if args.json:
        json.dump(result, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    ARGS = arguments()
    sys.argv[0] = "bench-migration"
    e2e.main(lambda test: bench(test, ARGS), seconds=6 * 3600)
