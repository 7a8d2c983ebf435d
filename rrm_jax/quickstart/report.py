"""The quickstart's table and figure."""

from pathlib import Path
from typing import Any

NAMES = {
    "warm_start": "thinking, warm start",
    "grpo": "thinking, + GRPO",
    "direct_warm_start": "DirectJudge, warm start",
    "direct_grpo": "DirectJudge, + GRPO",
}
THINKING, DIRECT = "#3b6fb6", "#c2703d"


def print_table(results: dict[str, Any]) -> None:
    """On stdout; `results` are the quickstart's results.json."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Held-out pairs, both orders (seed {results['seed']})", title_justify="left")
    table.add_column("judge")
    for heading in ("right, T=1", "right, T=0.6", "consistent", "invalid"):
        table.add_column(heading, justify="right")
    for run, name in NAMES.items():
        hot, cool = results["held_out"][run]["1.0"], results["held_out"][run]["0.6"]
        shares = (hot["accuracy"], cool["accuracy"], hot["order_consistency"], hot["invalid_rate"])
        table.add_row(name, *(f"{100 * share:.1f} %" for share in shares))
    best = Table(title="Choosing one of 8 candidates (T=1)", title_justify="left")
    best.add_column("way")
    best.add_column("right", justify="right")
    best.add_column("comparisons", justify="right")
    for way, found in results["best_of_8"].items():
        best.add_row(way, f"{100 * found['accuracy']:.1f} %", f"{found['comparisons']:.0f}")
    Console().print(table, best)


def draw_figure(results: dict[str, Any], path: Path) -> None:
    """Held-out accuracy while GRPO trains, and the accuracy of each way to choose one of 8."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(1, 1.1), layout="constrained")
    for run, name, colour in (("grpo", "thinking", THINKING), ("direct_grpo", "DirectJudge", DIRECT)):
        curve = results["curves"][run]
        left.plot(curve["step"], [100 * share for share in curve["accuracy"]], marker="o", color=colour, label=name)
    left.axhline(50, color="grey", linewidth=0.8, linestyle=":", label="guessing")
    left.set(xlabel="GRPO step", ylabel="held-out accuracy, both orders, T = 1 (%)", ylim=(40, 101))
    left.set_title("Right and wrong alone teach the judge to think")
    left.legend(loc="center right", frameon=False)

    ways = list(results["best_of_8"])
    shares = [100 * results["best_of_8"][way]["accuracy"] for way in ways]
    judged = [results["best_of_8"][way]["comparisons"] > 0 for way in ways]
    bars = right.barh(ways[::-1], shares[::-1], color=[THINKING if j else "lightgrey" for j in judged[::-1]])
    right.bar_label(bars, fmt="%.0f", padding=3)
    right.set(xlabel="questions answered right (%)", xlim=(0, 109))
    right.set_title("Choosing one of 8 candidates")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
