# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of what was measured."""

from .figures import LIMITS, hit_ratio, hit_ratio_by_page_ins


def _verdict(value, sense, must):
    if value is None:
        return "not measured"
    good = value >= must if sense == ">" else value <= must
    return "reached" if good else "NOT reached"


def _number(value, form=".3f"):
    return "-" if value is None else f"{value:{form}}"


def figures_table(found):
    lines = [f"{'figure':20}{'tracker':9}{'value':>8}{'must':>7}"]
    for key, (what, _, sense, must) in LIMITS.items():
        for tracker, value in found[key].items():
            lines.append(f"{key:20}{tracker:9}{_number(value):>8}{must:>7g}  "
                         f"{_verdict(value, sense, must):13}{what}")
    return "\n".join(lines)


def kept_table(runs):
    """Of the hot chunks, the share that was local."""
    lines = [f"{'hot chunks kept':16}{'local':>7}{'tracker':>9}{'ours':>8}"
             f"{'random':>8}{'fifo':>8}{'lru':>8}{'belady':>8}{'period s':>10}"]
    for run in runs:
        if run["pattern"] == "zipf":
            continue
        others = "".join(f"{_number(run[name]['kept']):>8}"
                         for name in ("random", "fifo", "lru", "belady"))
        lines.append(f"{run['pattern']:16}{run['percent']:>5} %"
                     f"{run['tracker']:>9}{_number(run['kept']):>8}{others}"
                     f"{run['period_ms'] / 1000:>10.2f}")
    return "\n".join(lines)


def zipf_table(runs):
    """Hits over those of the ideal placement, and page-ins over Belady's."""
    lines = [f"{'Zipf 0.99':16}{'local':>7}{'tracker':>9}{'hits':>8}"
             f"{'by page-ins':>13}{'lru':>8}{'page-ins':>10}{'best':>8}"
             f"{'lru':>8}{'fifo':>8}{'random':>8}  (over Belady's)"]
    for run in runs:
        if run["pattern"] != "zipf":
            continue
        belady = max(run["belady"]["misses"], 1)
        lru = {**run, "misses": run["lru"]["misses"]}
        ratios = "".join(f"{run[name]['misses'] / belady:>8.2f}"
                         for name in ("best", "lru", "fifo", "random"))
        lines.append(f"{'':16}{run['percent']:>5} %{run['tracker']:>9}"
                     f"{hit_ratio(run):>8.3f}"
                     f"{hit_ratio_by_page_ins(run):>13.3f}"
                     f"{hit_ratio_by_page_ins(lru):>8.3f}"
                     f"{run['misses'] / belady:>10.2f}{ratios}")
    return "\n".join(lines)


def cost_table(costs):
    lines = [f"{'cost, counted':16}{'faults a period':>17}"
             f"{'refault/ordinary':>18}"
             f"{'CPU a period, in ordinary faults':>34}{'%':>9}"]
    for tracker, one in costs.items():
        if one:
            lines.append(f"{tracker:16}{one['faults_per_period']:>17g}"
                         f"{one['refault_over_ordinary']:>18g}"
                         f"{one['cpu_in_ordinary_faults']:>34g}"
                         f"{one['pct']:>9.3f}")
    return "\n".join(lines)


def text(result):
    runs = sorted(result["runs"], key=lambda run: (
        run["pattern"], run["percent"], run["tracker"]))
    parts = [kept_table(runs), zipf_table(runs), cost_table(result["costs"]),
             figures_table(result["figures"])]
    parts += [f"not measured: {what}: {why}"
              for what, why in result["errors"].items()]
    return "\n\n".join(parts)
