# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures that are judged, out of what the hosts of the lab saw."""

import json
import statistics

from . import plan
from .policies import POLICIES, Best, simulate

# A second-level fault of a real CPU, in which nothing is fetched; to say in
# percent of a CPU what is counted in such faults.
ORDINARY_FAULT_US = 1.5

ZIPF_EXPONENT = 0.99

EXACT = ("rwp", "idle")
# key: (what, of which trackers, must reach; "<": at most)
LIMITS = {
    "fixed_kept": ("hot chunks kept, fixed working set that fits",
                   EXACT, ">", 0.99),
    "fixed_kept_sampled": ("the same", ("sample", "damon"), ">", 0.90),
    "zipf_hits": ("Zipf 0.99: local hits over those of the ideal placement",
                  EXACT, ">", 0.95),
    "scan_kept": ("hot set kept beside a scan over everything",
                  ("rwp", "idle", "sample"), ">", 0.95),
    "zipf_pageins": ("page-ins over Belady's optimum, Zipf 0.99, half local",
                     EXACT, "<", 1.5),
    "cost_pct": ("cost at the default period, % of a CPU per vCPU",
                 ("idle", "damon"), "<", 1),
    "cost_pct_faulting": ("the same", ("rwp", "sample"), "<", 2),
    "age_ms": ("a period's end for 2 TiB (memx-bench scale), ms",
                (), "<", 60),
}


class Trace:
    """What tests/guest/accesses.c printed on this machine."""

    def __init__(self, text):
        lines = text.split("\n")
        self.places = [int(word) for word in lines[0].split()[1:]]
        self.chunks = [int(line) for line in lines[1:-2]]
        self.checksum = lines[-2].split()[-1]


def page_ins(run):
    """Pages that had left the guest and came back."""
    def count(state):
        return (state["faults"]["remote"] + state["faults"]["staged"]
                + state["paging"]["prefetched"])
    return count(run["after"]) - count(run["before"])


def _judged(run):
    """The looks at accesses that are judged."""
    warm = plan.warm(run["pattern"], run["scale"])
    return [look for look in run["looks"] if look["at"] >= warm]


def _local(look):
    return {c for c, pages in enumerate(look["pages"])
            if pages * 2 >= plan.PAGES}


def _kept(local, hot):
    return len(local & hot) / len(hot)


def judge(run, trace):
    """One run, beside what the policies would have made of the same trace
    with as much local memory as it had on average."""
    pattern, percent = run["pattern"], run["percent"]
    warm = plan.warm(pattern, run["scale"])
    words = plan.options(pattern, percent, run["scale"])
    looks = _judged(run)
    local_pages = statistics.mean(sum(look["pages"]) for look in looks)
    capacity = round(local_pages / plan.PAGES)
    accesses = len(trace.chunks) - warm
    one = {key: run[key] for key in ("tracker", "percent", "pattern")}
    one.update(capacity_chunks=capacity, accesses=accesses,
               page_ins=page_ins(run),
               misses=page_ins(run) / plan.PAGES,
               period_ms=run["after"]["tracking"]["period"],
               periods=run["after"]["tracking"]["periods"]
               - run["before"]["tracking"]["periods"],
               looks=len(looks), seconds=run["seconds"])

    def hot_at(access):
        return plan.hot(pattern, words, trace.places, access)
    if pattern != "zipf":
        one["kept"] = statistics.mean(
            _kept(_local(look), hot_at(look["at"])) for look in looks)
    policies = {name: policy(capacity, full(trace))
                for name, policy in POLICIES.items()}
    if pattern == "zipf":
        policies["best"] = Best(capacity, None, trace.places)
        ideal = set(trace.places[:capacity])
        chances = zipf_chances(trace.places)
        one["hits"] = statistics.mean(
            sum(chances[chunk] for chunk in _local(look)) for look in looks)
        one["ideal_hits"] = sum(chances[chunk] for chunk in ideal)
        one["ideal_misses"] = sum(chunk not in ideal
                                  for chunk in trace.chunks[warm:])
    for name, policy in policies.items():
        one[name] = _simulate(policy, trace, warm, hot_at)
    return one


def zipf_chances(places):
    """{chunk: of being the next that is accessed}; places: by rank."""
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(places))]
    total = sum(weights)
    return {chunk: weight / total
            for chunk, weight in zip(places, weights)}


def full(trace):
    """With the writes of all memory before it."""
    return [*range(len(trace.places)), *trace.chunks]


def _simulate(policy, trace, warm, hot_at):
    kept, written = [], len(trace.places)

    def at(i, local):
        hot = hot_at(i - written) if i % 20 == 0 else None
        if hot:
            kept.append(_kept(hot & set(local), hot))
    misses = simulate(policy, full(trace), written + warm, at)
    return {"misses": misses,
            "kept": statistics.mean(kept) if kept else None}


def hit_ratio(one):
    """Local hits over those of the ideal placement: how probable they were
    whenever one looked, accesses being independent of each other."""
    return one["hits"] / one["ideal_hits"]


def hit_ratio_by_page_ins(one):
    """The same if each page that came in were one that was missed; what was
    prefetched in vain is counted against it, too."""
    return ((one["accesses"] - one["misses"])
            / (one["accesses"] - one["ideal_misses"]))


def cost(result):
    """Percent of a CPU for each vCPU (there is one), as counted: all in
    ordinary second-level faults of the same run."""
    prices, run = result.get("prices"), result.get("default_cost")
    if not prices or not run:
        return None
    before, after = run["before"]["tracking"], run["after"]["tracking"]
    periods = after["periods"] - before["periods"]
    ordinary = prices["ordinary_ns"] - prices["again_ns"]
    refault = prices["tracked_ns"] - prices["again_ns"]
    if result["tracker"] == "sample":
        refault = prices["user_ns"] - prices["again_ns"]
    if periods <= 0 or ordinary <= 0:
        return None
    faults = (after["extra-faults"] - before["extra-faults"]) / periods
    cpu = (after["cpu-time"] - before["cpu-time"]) / periods
    ratio = max(refault / ordinary, 0)
    # Longer than the period where its share of a CPU makes it so.
    per_second = periods / run["judged_s"]
    return {
        "faults_per_period": round(faults, 1),
        "refault_over_ordinary": round(ratio, 2),
        "cpu_in_ordinary_faults": round(cpu / ordinary, 1),
        "period_ms": after["period"],
        "seconds_a_period": round(1 / per_second, 2),
        "lab_cpu_pct": round(cpu / 1e4 * per_second / 1e3, 3),
        "faults_pct": round(faults * ratio * per_second
                            * ORDINARY_FAULT_US / 1e4, 4),
        "pct": round((faults * ratio + cpu / ordinary) * per_second
                     * ORDINARY_FAULT_US / 1e4, 4),
    }


def _worst(values, sense):
    values = [value for value in values if value is not None]
    if not values:
        return None
    return round(min(values) if sense == ">" else max(values), 4)


def figures(judged, costs, age_ms):
    """{key: {tracker: the worst of its percentages}}"""
    def of(pattern, tracker, value, percents=plan.PERCENTS):
        return [value(one) for one in judged
                if one["pattern"] == pattern and one["tracker"] == tracker
                and one["percent"] in percents]
    found = {}
    for key, (_, trackers, sense, _) in LIMITS.items():
        found[key] = {}
        for tracker in trackers:
            if key.startswith("cost"):
                counted = costs.get(tracker)
                values = [counted["pct"]] if counted else []
            elif key == "zipf_hits":
                values = of("zipf", tracker, hit_ratio)
            elif key == "zipf_pageins":
                values = of("zipf", tracker, lambda one: one["misses"]
                            / max(one["belady"]["misses"], 1), [50])
            else:
                values = of(key.split("_", maxsplit=1)[0], tracker,
                            lambda one: one["kept"])
            found[key][tracker] = _worst(values, sense)
    found["age_ms"] = {"": age_ms}
    return found


def read_age_ms(path):
    """Of memx-bench scale, if it has been measured here."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)["age_ms"]
    except (OSError, KeyError, ValueError):
        return None
