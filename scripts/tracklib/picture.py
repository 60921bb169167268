# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of what was kept."""

# Imported where it is needed: matplotlib is there only if asked for.
from .figures import hit_ratio, hit_ratio_by_page_ins
from .plan import PATTERNS, PERCENTS, TRACKERS

TITLES = {
    "fixed": "fixed working set that fits: hot chunks kept",
    "moving": "moving working set: hot chunks kept",
    "zipf": "Zipf 0.99: hits over those of the ideal placement",
    "scan": "hot set beside a scan: hot chunks kept",
}
POLICIES = ["random", "fifo", "lru", "belady"]


def _of_policy(run, name):
    if run["pattern"] == "zipf":
        return hit_ratio_by_page_ins({**run, "misses": run[name]["misses"]})
    return run[name]["kept"]


def _of_tracker(run):
    return hit_ratio(run) if run["pattern"] == "zipf" else run["kept"]


def _mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else float("nan")


def draw(runs, path):
    """Writes a PNG."""
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8))
    names = [*TRACKERS, *POLICIES]
    colours = pyplot.get_cmap("tab10").colors
    for axis, pattern in zip(axes.flat, PATTERNS):
        for place, name in enumerate(names):
            heights = []
            for percent in PERCENTS:
                mine = [run for run in runs if run["pattern"] == pattern
                        and run["percent"] == percent]
                heights.append(_mean(
                    [_of_tracker(run) for run in mine
                     if run["tracker"] == name] if name in TRACKERS else
                    [_of_policy(run, name) for run in mine]))
            axis.bar([i + (place - len(names) / 2) * 0.09
                      for i in range(len(PERCENTS))], heights, 0.09,
                     label=name, color=colours[place % 10],
                     hatch=None if name in TRACKERS else "//")
        axis.set_xticks(range(len(PERCENTS)),
                        [f"{percent} % local" for percent in PERCENTS])
        axis.set_ylim(0, 1.1)
        axis.set_title(TITLES[pattern])
    axes[0, 0].legend(ncol=3, loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
