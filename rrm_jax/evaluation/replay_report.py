"""The curves of `rrm replay` as a table and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rrm_jax.ranking.replay import Curve


def markdown(results: Mapping[str, Sequence[Curve]]) -> str:
    """One table for each judge: what every strategy reaches in the end, at what cost."""
    lines = []
    for name, curves in results.items():
        lines += [f"## {name}: {curves[0].points[-1].tournaments} tournaments", ""]
        lines += [
            "| strategy | comparisons | votes | right, % | ± | ended early, % | comparisons saved, % |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for curve in curves:
            last = curve.points[-1]
            early = 100 * sum(curve.ended.values()) / last.tournaments
            cells = [f"{last.comparisons:.1f}", f"{curve.votes * last.comparisons:.1f}", f"{100 * last.rate:.2f}"]
            cells += [f"{100 * last.half_width:.2f}", f"{early:.1f}", f"{100 * curve.saved:.1f}"]
            lines.append(f"| {curve.name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def write_figure(path: Path, results: Mapping[str, Sequence[Curve]]) -> None:
    """A panel for each judge: the share of right picks against votes; a point where only the end is known."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, (name, curves) in zip(axes.flat, results.items(), strict=False):
        for at, curve in enumerate(curves):
            x = [curve.votes * point.comparisons for point in curve.points]
            y = [100 * point.rate for point in curve.points]
            error = [100 * point.half_width for point in curve.points]
            marker = "osD^vP*X"[at % 8]
            axis.errorbar(x, y, error, marker=marker, markersize=4, linewidth=1.2, capsize=2, label=curve.name)
        axis.set_xscale("log", base=2)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("votes")
        axis.set_ylabel("right picks, %")
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
