# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures that are judged, out of all runs.

Each is a median over the repetitions; ratios and differences are taken within
one repetition, whose modes ran one after the other.  Of what has an error of
its own, key_error_pct is told beside it.

99 % and less than a percent are looked for where a store is asked for less
than it can do: at full load it does what the host's speed lets it, which
differs by more from second to second.
"""

import math
import statistics

# key: (what, the paper's, must reach, aim); None: nothing given
LIMITS = {
    "total_ratio": ("total time, split over ideal, one uplink",
                    1.05, 1.05, 1.02),
    "total_ratio_multi": ("the same, an uplink for each receiver",
                          None, 0.95, 0.6),
    "downtime_delta_ms": ("downtime over ideal's, ms", 7, 7, 1),
    "gap_delta_ms": ("longest gap in the guest over ideal's, ms",
                     None, 20, 5),
    "sort_loss_pct": ("sort across the migration, %", 3.5, 3.5, 1),
    "kv_recovery_s": ("key-value store back to 99 % of what is asked for, s",
                      5, 5, 1),
    "kv_dip_pct": ("its deepest dip, %", 66, 66, 30),
    "kv_steady_loss_pct": ("its steady loss, %", 0.6, 0.6, 0.2),
    "kv_over_loss_pct": ("loss, working set 1.2 times local, %", 69, 60, 40),
    "pageins_before_switchover": ("page-ins during the transfer", 0, 0, 0),
    "swap_total_ratio": ("total time, swap-assisted over ideal",
                         2.2, None, None),
}
RECOVERED = 0.99
RECOVERED_SECONDS = 5
STEADY_SECONDS = 15


class Results:
    """Runs, to be asked for by what they were."""

    def __init__(self, runs):
        self._runs = [run for run in runs if "error" not in run]

    def find(self, **wanted):
        """repetition: run, of the largest VM that has any"""
        runs = [run for run in self._runs
                if all(run[key] == value for key, value in wanted.items())]
        largest = max((run["size_mib"] for run in runs), default=0)
        return {run["repetition"]: run for run in runs
                if run["size_mib"] == largest}

    def values(self, function, mode="split", **wanted):
        """function(run, ideal run) of each repetition."""
        ours = self.find(mode=mode, **wanted)
        ideal = self.find(mode="ideal", **wanted)
        values = [function(ours[i], ideal[i]) for i in ours if i in ideal]
        return [value for value in values if value is not None]

    def compare(self, function, mode="split", **wanted):
        return median(self.values(function, mode, **wanted))

    def beside(self, function, mode, **wanted):
        return [function(run)
                for run in self.find(mode=mode, **wanted).values()]


def median(values):
    return round(statistics.median(values), 3) if values else None


def error(values):
    """The median's standard error, of what is distributed about normally."""
    if len(values) < 2:
        return None
    return round(1.25 * statistics.stdev(values) / math.sqrt(len(values)), 3)


def _ratio(key):
    return lambda run, ideal: run[key] / ideal[key]


def _delta(key):
    return lambda run, ideal: run[key] - ideal[key]


def _loss_pct(key):
    """How much longer it took."""
    return lambda run, ideal: (run[key] / ideal[key] - 1) * 100


def after(run):
    return [ops for at, ops in run["kv_ops"] if at >= 0]


def _normal(run, ideal):
    """Operations a second: what was asked of it, if less than it can do."""
    return run.get("kv_pace") or statistics.median(after(ideal))


def _first_in_a_row(good):
    for second in range(len(good) - RECOVERED_SECONDS + 1):
        if all(good[second:second + RECOVERED_SECONDS]):
            return second
    return len(good)


def recovery_s(run, ideal):
    """The first of the first five seconds in a row with 99 % of what is asked
    for, or at full load of what is normal after an ideal migration; as long
    as we looked if there are none (it took at least that)."""
    return _first_in_a_row([ops >= RECOVERED * _normal(run, ideal)
                            for ops in after(run)])


def dip_pct(run, ideal):
    return (1 - min(after(run)) / _normal(run, ideal)) * 100


def steady_loss_pct(run, ideal):
    return (1 - statistics.median(after(run)[-STEADY_SECONDS:])
            / statistics.median(after(ideal)[-STEADY_SECONDS:])) * 100


def _paced_done(run):
    """Of what was asked for, in the last seconds."""
    return statistics.mean(after(run)[-STEADY_SECONDS:]) / run["kv_pace"]


def paced_loss_pct(run, ideal):
    return (1 - _paced_done(run) / _paced_done(ideal)) * 100


def _waited_pcts(run):
    """Of each second after a split: how much of it the guest waited for
    remote pages, at most.  That has no noise of the host's in it, as
    throughput has."""
    pcts, last_s, last_ms = [], 0, 0
    for now in run["memx_series"]:
        pcts.append((now["waited_ms"] - last_ms) / (now["s"] - last_s) / 10)
        last_s, last_ms = now["s"], now["waited_ms"]
    return pcts


def waited_pct(run, _ideal):
    return statistics.mean(_waited_pcts(run)[-STEADY_SECONDS:])


def waited_recovery_s(run, _ideal):
    """As recovery_s, by what the guest waited."""
    return _first_in_a_row([pct <= 100 * (1 - RECOVERED)
                            for pct in _waited_pcts(run)])


def own_loss_pct(run, ideal):
    """Of its own throughput before the migration, compared with the ideal's
    of its own: what else the machine does plays a smaller part."""
    def kept(one):
        return (statistics.median(after(one)[-STEADY_SECONDS:])
                / one["kv_before"])
    return (1 - kept(run) / kept(ideal)) * 100


def beside_loss_pct(run):
    return (1 - sum(second for _, _, second in run["beside"])
            / sum(first for _, first, _ in run["beside"])) * 100


def beside_cpu_loss_pct(run):
    """Of what it had of the CPU that both share."""
    first, second = run["beside_cpu_s"]
    return (1 - second / first) * 100


def median_loss_pct(run, ideal):
    return (1 - statistics.median(after(run))
            / statistics.median(after(ideal))) * 100


def _worst_pageins(results):
    values = [run["pageins_before_switchover"] for load in
              ("idle", "rapid-write", "sort", "kv", "kv-over", "kv-paced")
              for run in results.find(mode="split", load=load).values()
              if run.get("pageins_before_switchover") is not None]
    return max(values) if values else None


def figures(runs, rate):
    """The table of the figures, and others that are only told."""
    results = Results(runs)
    idle = {"load": "idle", "uplinks": "one", "rate": rate}
    multi = {**idle, "uplinks": "multi"}
    rapid = {**idle, "load": "rapid-write"}
    sort, store, over, paced = (
        {"load": load, "uplinks": "one", "rate": rate}
        for load in ("sort", "kv", "kv-over", "kv-paced"))
    compare = results.compare
    steady = results.values(paced_loss_pct, **paced)
    beside, control = (results.beside(beside_loss_pct, mode, **store)
                       for mode in ("split-beside", "ideal-beside"))
    judged = {
        "total_ratio": compare(_ratio("transfer_ms"), **idle),
        "total_ratio_multi": compare(_ratio("transfer_ms"), **multi),
        "downtime_delta_ms": compare(_delta("downtime_ms"), **idle),
        "gap_delta_ms": compare(_delta("longest_gap_ms"), **idle),
        "sort_loss_pct": compare(_loss_pct("sort_s"), **sort),
        "kv_recovery_s": compare(recovery_s, **paced),
        "kv_dip_pct": compare(dip_pct, **store),
        "kv_steady_loss_pct": median(steady),
        "kv_over_loss_pct": compare(median_loss_pct, **over),
        "pageins_before_switchover": _worst_pageins(results),
        "swap_total_ratio": compare(_ratio("transfer_ms"), "swap", **idle),
    }
    told = {
        "total_ratio_with_warm_up": compare(_ratio("total_ms"), **idle),
        "rapid_total_ratio": compare(_ratio("transfer_ms"), **rapid),
        "rapid_downtime_delta_ms": compare(_delta("downtime_ms"), **rapid),
        "rapid_swap_total_ratio": compare(_ratio("transfer_ms"), "swap",
                                          **rapid),
        "swap_downtime_delta_ms": compare(_delta("downtime_ms"), "swap",
                                          **idle),
        "swap_gap_delta_ms": compare(_delta("longest_gap_ms"), "swap",
                                     **idle),
        "stall_p99_delta_ms": compare(_delta("stall_p99_ms"), **idle),
        "kv_steady_loss_error_pct": error(steady),
        "ideal_kv_recovery_s": compare(recovery_s, "ideal", **paced),
        "swap_kv_recovery_s": compare(recovery_s, "swap", **paced),
        "kv_paced_dip_pct": compare(dip_pct, **paced),
        "ideal_kv_paced_dip_pct": compare(dip_pct, "ideal", **paced),
        "kv_waited_pct": compare(waited_pct, **paced),
        "kv_waited_recovery_s": compare(waited_recovery_s, **paced),
        "kv_full_waited_pct": compare(waited_pct, **store),
        "kv_full_waited_recovery_s": compare(waited_recovery_s, **store),
        "kv_full_recovery_s": compare(recovery_s, **store),
        "ideal_kv_full_recovery_s": compare(recovery_s, "ideal", **store),
        "swap_kv_full_recovery_s": compare(recovery_s, "swap", **store),
        "ideal_kv_dip_pct": compare(dip_pct, "ideal", **store),
        "swap_kv_dip_pct": compare(dip_pct, "swap", **store),
        "kv_full_loss_pct": median(beside),
        "kv_full_loss_error_pct": error(beside),
        "ideal_kv_full_loss_pct": median(control),
        "ideal_kv_full_loss_error_pct": error(control),
        "kv_full_cpu_loss_pct": median(results.beside(
            beside_cpu_loss_pct, "split-beside", **store)),
        "kv_full_loss_in_turn_pct": compare(steady_loss_pct, **store),
        "swap_kv_full_loss_in_turn_pct": compare(steady_loss_pct, "swap",
                                                 **store),
        "kv_own_loss_pct": compare(own_loss_pct, **store),
        "kv_over_own_loss_pct": compare(own_loss_pct, **over),
        "no_history_sort_loss_pct": compare(_loss_pct("sort_s"), "no-history",
                                            **sort),
        "no_history_kv_dip_pct": compare(dip_pct, "no-history", **store),
        "no_history_kv_full_recovery_s": compare(recovery_s, "no-history",
                                                 **store),
    }
    return judged, told
