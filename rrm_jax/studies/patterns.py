"""How judges think: words of transition, reflection, comparison and breakdown in traces, and their diversity."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.statistics import RESAMPLES, Interval, bootstrap_interval, share_interval
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import PatternsConfig
from rrm_jax.studies.diversity import Diversity, Unit, diversity
from rrm_jax.studies.pooling import Total
from rrm_jax.studies.report import Claim, Report, Table, brackets, finish, percent, spread, told
from rrm_jax.studies.trace_files import Trace, read_traces

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Category:
    """`share` of traces with one of the category's words at least; `rate` matches per 1,000 words, over all traces."""

    category: str
    share: Interval
    rate: float
    matches: Total


@dataclasses.dataclass(frozen=True)
class Source:
    """`words` are those of all traces, `tokens` the mean of a trace; `categories` are of all traces, `diversity` of
    those that were drawn for it."""

    name: str
    traces: Total
    words: Total
    tokens: Interval
    categories: tuple[Category, ...]
    diversity: Diversity


@dataclasses.dataclass(frozen=True)
class Found:
    """One entry for each source of traces."""

    sources: tuple[Source, ...]


def pattern_of(words: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the words or phrases, whole and in any case, however their blanks are written; the longest first,
    so that no stretch of text counts twice."""
    phrases = sorted({word.strip().lower() for word in words}, key=lambda word: (-len(word), word))
    inner = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<!\w)(?:{inner})(?!\w)", re.IGNORECASE)


def compute(
    name: str,
    traces: Sequence[Trace],
    words: Mapping[str, Sequence[str]],
    *,
    ngram: int = 2,
    unit: Unit = "word",
    cluster_distance: float = 0.3,
    most: int = 1000,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Source:
    """`words` are by category, each matched whole and in any case; `diversity` is of `most` traces that `seed` draws.
    Traces without text count for the words, but not for the diversity."""
    total = sum(len(trace.text.split()) for trace in traces)
    categories = []
    for category, listed in words.items():
        pattern = pattern_of(listed)
        found = [len(pattern.findall(trace.text)) for trace in traces]
        share = share_interval([float(count > 0) for count in found], seed, resamples)
        matches = sum(found)
        categories.append(Category(category, share, 1000 * matches / total if total else float("nan"), matches))
    some = drawn([trace for trace in traces if trace.text], most, seed)
    return Source(
        name,
        len(traces),
        total,
        bootstrap_interval([trace.tokens for trace in traces], seed, resamples),
        tuple(categories),
        diversity([trace.text for trace in some], [trace.question for trace in some], ngram, cluster_distance, unit),
    )


def drawn(traces: Sequence[Trace], most: int, seed: int) -> list[Trace]:
    """At most `most` traces, of whole questions in an order that belongs to (seed, question), so that there are pairs
    about the same question; within a question in the file's order."""
    keys: dict[str, bytes] = {
        trace.question: hashlib.sha256(f"{seed} {trace.question}".encode("utf-8", "surrogatepass")).digest()
        for trace in traces
    }
    return sorted(traces, key=lambda trace: keys[trace.question])[:most]


def find(config: PatternsConfig, session: Session) -> Found:
    """Reads the traces and counts; nothing is judged."""
    sources = []
    for name, source in config.traces.items():
        traces, skipped = read_traces(source.path, session.report, source.settings, source.model)
        session.skipped += skipped
        sources.append(
            compute(
                name, traces, config.words, ngram=config.ngram, unit=config.unit,
                cluster_distance=config.cluster_distance,
                most=config.most, seed=config.seed, resamples=config.resamples,
            )
        )  # fmt: skip
    return Found(tuple(sources))


def report(config: PatternsConfig, found: Found, seeds: Sequence[int]) -> Report:
    """Keywords and diversity of each source. `seeds` are those that `found` was pooled over."""
    sources = found.sources
    return Report(
        "How do judges think?",
        f"{sum(source.traces for source in sources)} traces of {len(sources)} source(s): what stands before the end of "
        "thinking.",
        found,
        [_keywords(sources), _diversity(sources)],
        _says(sources),
        [
            "A trace has a category when it holds one of its words at least (run.json lists them; they are ours, "
            f"not the paper's). {brackets(seeds, 'traces')}",
            f"Diversity: counts of {config.ngram} {config.unit}(s) in a row as vectors, of at most {config.most} "
            "traces. The cosine distance is 0 between equal traces and 1 between traces that share nothing.",
            f"Clusters: a trace joins the first cluster whose first trace is within {config.cluster_distance:g}, else "
            "it begins one.",
        ],
        lambda figure: _draw(figure, sources),
        (10.0, 4.2),
    )


def _says(sources: Sequence[Source]) -> list[Claim]:
    says = []
    for source in sources:
        shares = ", ".join(f"{one.category} {100 * one.share.estimate:.1f} %" for one in source.categories)
        says.append(
            f"{source.name}: {source.tokens.estimate:.1f} tokens a trace; traces with words of {shares}; mean distance "
            f"{source.diversity.distance:.2f}, in {source.diversity.clusters:.0f} clusters."
        )
    return [told(text) for text in says]


def _keywords(sources: Sequence[Source]) -> Table:
    rows = [["source", "category", "traces with it", "per 1,000 words", "matches"]]
    for source in sources:
        for one in source.categories:
            rate = f"{one.rate:.2f}" if np.isfinite(one.rate) else "–"
            rows.append([source.name, one.category, percent(one.share), rate, str(one.matches)])
    return Table("Words by category", rows, left=2)


def _diversity(sources: Sequence[Source]) -> Table:
    rows = [["source", "traces", "tokens a trace", "traces compared", "mean distance", "about the same question",
             "clusters", "largest"]]  # fmt: skip
    for source in sources:
        of, tokens = source.diversity, source.tokens
        distances = [f"{x:.3f}" if np.isfinite(x) else "–" for x in (of.distance, of.within)]
        length = f"{tokens.estimate:.1f} ({tokens.low:.1f} … {tokens.high:.1f})"
        clusters = [f"{of.clusters:.0f}", f"{of.largest:.0f}"]
        rows.append([source.name, str(source.traces), length, str(of.traces), *distances, *clusters])
    return Table("Length and diversity", rows)


def _draw(figure: "Figure", sources: Sequence[Source]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    names = [one.category for one in sources[0].categories]
    width = 0.8 / len(sources)
    for at, source in enumerate(sources):
        shift = (at - (len(sources) - 1) / 2) * width
        middle, ends = spread([one.share for one in source.categories])
        bars = left.bar(
            [place + shift for place in range(len(names))], middle, width * 0.92, yerr=ends, capsize=2,
            color=COLOURS[at % 8], ecolor="#333333", label=" " + source.name,
        )  # fmt: skip
        left.bar_label(bars, [f"{x:.1f}" for x in middle], padding=1, fontsize=7)
        of = source.diversity
        bars = right.bar(
            [shift, 1 + shift], np.nan_to_num([of.distance, of.within]), width * 0.92, color=COLOURS[at % 8]
        )
        right.bar_label(bars, [f"{x:.2f}" if np.isfinite(x) else "–" for x in (of.distance, of.within)], fontsize=8)
    left.set_xticks(range(len(names)), names)
    left.set_ylim(0, 105)
    finish(left, "Words by category", "", "traces with it, %")
    right.set_xticks((0, 1), ("all pairs of traces", "about the\nsame question"))
    right.set_ylim(0, 1.05)
    finish(right, "Diversity", "", "mean cosine distance")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
