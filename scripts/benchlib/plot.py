# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of the key-value store's throughput over time."""

import statistics

# Imported where it is needed: matplotlib is there only if asked for.
# Of the paper: section V.C, ideal 100 %, dips by 66 %, back after 5 s.
PAPER = {"split, S-memV": [(-5, 100), (0, 34), (5, 99.4), (40, 99.4)]}
COLOURS = {"ideal": "tab:green", "split": "tab:blue", "swap": "tab:red",
           "no-history": "tab:orange"}
TITLES = {"kv": "working set fits the main host (5/6 of it)",
          "kv-paced": "the same, a third of the operations that can be done",
          "kv-over": "working set 1.2 times the main host's memory"}


def _normal(runs, load):
    values = [ops for run in runs if run["load"] == load
              and run["mode"] == "ideal"
              for at, ops in run["kv_ops"] if at >= 0]
    return statistics.median(values) if values else None


def plot(runs, path, subtitle):
    """Writes a PNG; False if there is nothing to show."""
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    runs = [run for run in runs if run.get("kv_ops")]
    loads = [load for load in TITLES if _normal(runs, load)]
    if not loads:
        return False
    figure, axes = pyplot.subplots(len(loads), 1, squeeze=False, sharex=True,
                                   figsize=(9, 4 * len(loads)))
    for axis, load in zip(axes[:, 0], loads):
        normal = _normal(runs, load)
        for mode, colour in COLOURS.items():
            chosen = [run for run in runs
                      if run["load"] == load and run["mode"] == mode]
            for number, run in enumerate(chosen):
                whole = run.get("kv_pace", normal)
                axis.plot(*zip(*[(at + 0.5, 100 * ops / whole)
                                 for at, ops in run["kv_ops"]]),
                          color=colour, alpha=0.9 if number == 0 else 0.35,
                          label=mode if number == 0 else None)
        if load == "kv":
            for label, points in PAPER.items():
                axis.plot(*zip(*points), "k:", drawstyle="steps-post",
                          label=label)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_ylabel("operations, % of ideal's or asked for")
        axis.set_ylim(bottom=0)
        axis.set_title(f"memcached: {TITLES[load]}")
        axis.legend(loc="lower right")
    axes[-1, 0].set_xlabel("seconds since the guest runs at the destination\n"
                           + subtitle)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True
