"""Pictures of a suite: goodput against offered rate, attainment of all policies, and attainment per class of ours beside the next best.

Drawn by matplotlib (the extra `plot`), as SVG or PNG by the file's name. Ours is the first policy of the suite.
"""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, which differ for every kind of eye; the first is ours.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
GREY = "#b0b0b0"
CLASSES = ("instant", "conversational", "interactive", "deferred", "batch")


def draw(results: list[dict[str, Any]], path: str) -> None:
    """Write the picture. ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    cases = list(dict.fromkeys(result["case"] for result in results))
    figure, axes = plt.subplots(len(cases), 3, figsize=(15, 4.2 * len(cases)), squeeze=False, constrained_layout=True)
    styles = _styles(results)
    for row, case in zip(axes, cases, strict=True):
        mine = [result for result in results if result["case"] == case]
        _goodput(row[0], mine, styles, case)
        _attained(row[1], mine, styles)
        _classes(row[2], mine)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _styles(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By policy, the same in every case: ours thick, the best few in colours of their own, the rest grey."""
    reach: dict[str, float] = {}
    for result in results:
        reach[result["policy"]] = reach.get(result["policy"], 0.0) + _reach(result)
    ours, *others = reach
    styles: dict[str, dict[str, Any]] = {name: {"color": GREY, "linewidth": 1.0, "zorder": 1, "label": name} for name in others}
    for colour, name in zip(COLOURS[1:], sorted(others, key=lambda name: -reach[name]), strict=False):
        styles[name] |= {"color": colour, "linewidth": 1.4, "zorder": 3}
    return {ours: {"color": COLOURS[0], "linewidth": 2.6, "zorder": 5, "label": ours}} | styles


def _reach(result: dict[str, Any]) -> float:
    known: float | None = result.get("rate_90")
    return known if known is not None else float(result["overload"][0]["attained_ratio"])


def _points(result: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(result["overload"], key=lambda point: float(point["rate_per_s"]))


def _goodput(axis: Any, results: list[dict[str, Any]], styles: dict[str, dict[str, Any]], case: str) -> None:
    for result in results:
        points, style = _points(result), styles[result["policy"]]
        axis.plot([p["rate_per_s"] for p in points], [p["goodput_per_s"] for p in points], marker="o", markersize=3.5, **style)
    most = max(point["rate_per_s"] for result in results for point in result["overload"])
    axis.plot([0, most], [0, most], color="black", linewidth=0.6, linestyle=":")
    axis.annotate("all attain", (most * 0.55, most * 0.57), rotation=33, fontsize=7, color="black")
    axis.set(title=case, xlabel="offered requests/s", ylabel="attained requests/s (goodput)", xlim=(0, None))
    axis.set_ylim(0, max(p["goodput_per_s"] for result in results for p in result["overload"]) * 1.15)
    axis.legend(fontsize=7, frameon=False, loc="lower right", ncols=1 + (len(results) > 8))


def _attained(axis: Any, results: list[dict[str, Any]], styles: dict[str, dict[str, Any]]) -> None:
    for result in results:
        points, style = _points(result), styles[result["policy"]]
        rates = [p["rate_per_s"] for p in points]
        axis.plot(rates, [p["attained_ratio"] * 100 for p in points], marker="o", markersize=3.5, **style)
        if style["zorder"] > 1 and all("attained_ratio_low" in p for p in points):
            low, high = ([p[f"attained_ratio_{word}"] * 100 for p in points] for word in ("low", "high"))
            axis.fill_between(rates, low, high, color=style["color"], alpha=0.12, lw=0)
    axis.axhline(90, color="black", linewidth=0.6, linestyle=":")
    axis.set(title="attained, % of all that were offered (band: seeds)", xlabel="offered requests/s", ylim=(0, 102), xlim=(0, None))


def _classes(axis: Any, results: list[dict[str, Any]]) -> None:
    """One colour a class; ours in full lines, the best of the others dashed."""
    ours = results[0]
    others = sorted(results[1:], key=lambda result: -_reach(result))
    for result, line in ((ours, "-"), *((other, "--") for other in others[:1])):
        points = _points(result)
        for colour, name in zip(COLOURS, CLASSES, strict=False):
            known = [(p["rate_per_s"], p["by_class"][name]["attained_ratio"] * 100) for p in points if name in (p["by_class"] or {})]
            if known:
                label = name if line == "-" else None
                axis.plot(*zip(*known, strict=True), color=colour, linestyle=line, linewidth=1.8 if line == "-" else 1.0, label=label)
    beside = f", dashed: {others[0]['policy']}" if others else ""
    axis.axhline(90, color="black", linewidth=0.6, linestyle=":")
    axis.set(title=f"attained by class, %: {ours['policy']}{beside}", xlabel="offered requests/s", ylim=(0, 102), xlim=(0, None))
    axis.legend(fontsize=7, frameon=False, loc="lower left")
