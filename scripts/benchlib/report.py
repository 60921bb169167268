# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of what was measured."""

import statistics

from .figures import LIMITS, beside_cpu_loss_pct, beside_loss_pct

COLUMNS = [  # heading, width, how
    ("transfer s", 11, lambda run: f"{run['transfer_ms'] / 1000:.2f}"),
    ("setup s", 8, lambda run: f"{run['setup_ms'] / 1000:.2f}"),
    ("down ms", 8, lambda run: f"{run['downtime_ms']:.0f}"),
    ("gap ms", 8, lambda run: f"{run['longest_gap_ms']:.0f}"),
    ("p99 ms", 8, lambda run: f"{run['stall_p99_ms']:.1f}"),
    ("rounds", 7, lambda run: f"{run['rounds']}"),
    ("sent MiB", 9, lambda run: f"{run['transferred_mib']:.0f}"),
    ("fetched", 8, lambda run: f"{run.get('fetched_pages', '-')}"),
    ("others", 7, lambda run: f"{run['others_cpus']:.1f}"),
]


def run_heading():
    return "".join(f"{heading:>{width}}" for heading, width, _ in COLUMNS)


def run_line(run):
    if "error" in run:
        return f"not measured: {run['error'].splitlines()[0]}"
    if run["mode"].endswith("-beside"):
        return beside_line(run)
    return "".join(f"{how(run):>{width}}" for _, width, how in COLUMNS)


def beside_line(run):
    first, second = (statistics.median(row[i] for row in run["beside"])
                     for i in (1, 2))
    return (f"   loses {beside_loss_pct(run):.1f} %; {first:,.0f} and "
            f"{second:,.0f} operations/s, {beside_cpu_loss_pct(run):.1f} % "
            "less CPU time"
            + (f"; {run['fetched_pages']} pages fetched"
               if "fetched_pages" in run else ""))


def load_line(run):
    if "sort_s" in run:
        return (f"sort took {run['sort_s']:.1f} s, of these "
                f"{run['sort_after_s']:.1f} s after the migration")
    if "kv_ops" in run:
        after = [ops for at, ops in run["kv_ops"] if at >= 0]
        asked = (f", {run['kv_pace']:,} operations/s asked for"
                 if "kv_pace" in run else "")
        return (f"{run['kv_mib']} MiB in memcached{asked}: "
                f"{run['kv_before']:,.0f} "
                f"operations/s before, after it {min(after):,} at worst, "
                f"{statistics.median(after):,.0f} in the median")
    return ""


def phases_line(run):
    """Of a split: how the time that the VM stood still was spent."""
    stopped = [f"{name} +{ms:.0f}" for ms, name in run.get("phases_ms", [])
               if ms >= 0]
    return "ms after its stop: " + ", ".join(stopped) if stopped else ""


def tracking_line(run):
    """What the source's history was worth when it was asked for."""
    return "; ".join(
        f"{memory['id']}: {tracking['tracker']}, {tracking['periods']} "
        f"periods, the last in {tracking['pass-time'] / 1e9:.1f} s: "
        f"{tracking['touched-chunks']} of {tracking['looked-chunks']} chunks "
        f"touched"
        for memory in run.get("tracking", [])
        for tracking in [memory["tracking"]])


def swap_line(run):
    if "swapped_mib" not in run:
        return ""
    return f"swapped at the destination: {run['swapped_mib']} MiB"


def links_line(run):
    return "MiB on links: " + ", ".join(
        f"{link} {mib:.0f}" for link, mib in run["link_mib"].items()
        if mib >= 1)


def details(run):
    """Lines below the run's own."""
    if "error" in run or run["mode"].endswith("-beside"):
        return []
    lines = [tracking_line(run), links_line(run), phases_line(run),
             swap_line(run), load_line(run)]
    return [line for line in lines if line]


def _number(value):
    return "-" if value is None else f"{value:g}"


def _verdict(value, error, must, aim):
    if value is None:
        return "not measured"
    if must is None:
        return ""
    if error and abs(value - must) < error:
        return f"+- {error:g}: open"
    if value <= aim:
        return "aim reached"
    return "reached" if value <= must else "NOT reached"


def figures_table(judged):
    """An error that is larger than the distance to what must be reached
    leaves that open."""
    lines = [f"{'figure':27}{'ours':>9}{'S-memV':>9}{'must':>7}{'aim':>7}"]
    for key, (what, paper, must, aim) in LIMITS.items():
        value = judged[key]
        error = judged["told"].get(key.removesuffix("_pct") + "_error_pct")
        lines.append(f"{key:27}{_number(value):>9}{_number(paper):>9}"
                     f"{_number(must):>7}{_number(aim):>7}  "
                     f"{_verdict(value, error, must, aim):15}{what}")
    return "\n".join(lines)


def told_table(told):
    return "\n".join(f"{key:27}{_number(value):>9}"
                     for key, value in told.items() if value is not None)
