"""One picture of a training's report: where it errs, and whether its probabilities hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.classify.training.trial import BY_FAMILY


def draw(figures: dict[str, Any], path: Path) -> None:
    """SVG or PNG, by the file's name. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "slo-gateway"
    from matplotlib import pyplot as plt

    learned = figures[BY_FAMILY]["learned"]
    confusion = learned["confusion"]
    names = sorted({*confusion, *(said for row in confusion.values() for said in row)})
    shares = [[confusion.get(true, {}).get(said, 0) / max(sum(confusion.get(true, {}).values()), 1) for said in names] for true in names]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), gridspec_kw={"width_ratios": (3, 2)})
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    left.set_xticks(range(len(names)), names, rotation=40, ha="right")
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("taken for")
    left.set_ylabel("is")
    for y, true in enumerate(names):
        for x, said in enumerate(names):
            count = confusion.get(true, {}).get(said, 0)
            if count:
                left.text(x, y, str(count), ha="center", va="center", fontsize=8, color="white" if shares[y][x] > 0.5 else "black")
    left.set_title(f"{BY_FAMILY}: accuracy {learned['accuracy']:.3f}, class {learned['class_accuracy']:.3f}")
    right.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for name, told in figures[BY_FAMILY].items():
        right.plot([said for said, _, _ in told["calibration"]], [was for _, was, _ in told["calibration"]], marker="o", label=name)
    right.set_xlabel("probability said")
    right.set_ylabel("share that was right")
    right.set_title(f"calibration error {learned['calibration_error']:.3f}")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
