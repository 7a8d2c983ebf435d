"""What cleaning left out: by reason, by source, and which benchmarks' prompts were found in which sources."""

import collections
import dataclasses

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_jax.data.cleaning import BLANK, MALFORMED, Reason
from rrm_jax.data.row_files import RawRow
from rrm_jax.evaluation.data_page import SOURCES_SHOWN, make_table
from rrm_jax.evaluation.labelling_report import share
from rrm_jax.evaluation.ranking_report import shown

_EXAMPLES = 5
_COLUMNS = 4  # reasons in the table by source


@dataclasses.dataclass
class Left:
    """Counts rows that stay (`reason` None) and that are left out; `names` are the reasons to print even where no row
    was left out for them."""

    names: tuple[str, ...]
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self):
        self.rows = self.kept = 0
        self._sources: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._languages: collections.Counter[str] = collections.Counter()
        self._benchmarks: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._examples: list[str] = []

    def add(self, row: RawRow, reason: Reason | None) -> None:
        """Counts a row; `reason` is why it was left out, None where it was kept. Rows without a record are counted
        apart."""
        name = reason.name if reason else "kept"
        if row.record is None:
            self.reasons[name] += 1
            return
        source = getattr(row.record, "source", "")
        self.rows += 1
        self.kept += reason is None
        self._sources[source][name] += 1
        if reason is None:
            return
        self.reasons[name] += 1
        if name == "language":
            self._languages[reason.detail.partition(" ")[0]] += 1
        if name == "contaminated":
            self._benchmarks[source].update({one["benchmark"] for one in reason.matched})
            if len(self._examples) < _EXAMPLES:
                one = reason.matched[0]
                ids = f"{shown(row.record.id, 40)}: {shown(one['benchmark'], 40)} {shown(one['id'], 40)}"
                self._examples.append(
                    f"{ids}, {one['of_query']:.0%} of the row's n-grams, {one['of_prompt']:.0%} of its"
                )

    def print(self, console: Console) -> None:
        """The counts as tables, with some examples of contamination. Texts of the rows are shown escaped."""
        console.print(f"rows: {self.rows}; kept: {share(self.kept, self.rows)}")
        table = make_table("left out", "rows", "share")
        for name in self.names:
            count = self.reasons[name]
            table.add_row(name, str(count), f"{100 * count / self.rows:.1f} %" if self.rows else "")
        if self.names:
            console.print(table)
        for name in (MALFORMED, BLANK):
            if self.reasons[name]:
                console.print(f"{name}: {self.reasons[name]}, left out as well")
        if self._languages:
            found = ", ".join(f"{name} {count}" for name, count in self._languages.most_common(20))
            console.print(f"languages of rows left out: {found}")
        if any(self._sources):
            console.print(self._by_source())
        if self._benchmarks:
            console.print(self._by_benchmark())
            for line in self._examples:
                console.print(Text(f"  {line}"))

    def _by_source(self) -> Table:
        names = [name for name, _ in self.reasons.most_common() if name not in (MALFORMED, BLANK)]
        columns = names[:_COLUMNS]
        table = make_table("source", "rows", "kept", *columns, *(["other reasons"] if len(names) > _COLUMNS else []))
        for label, counts in _largest(self._sources):
            rest = counts.total() - counts["kept"] - sum(counts[name] for name in columns)
            kept = share(counts["kept"], counts.total())
            cells = [str(counts.total()), kept, *(str(counts[name]) for name in columns)]
            table.add_row(Text(label), *cells, *([str(rest)] if len(names) > _COLUMNS else []))
        return table

    def _by_benchmark(self) -> Table:
        """Rows of each source in which a prompt of each benchmark was found; a row may be in several columns."""
        names = sorted({name for counts in self._benchmarks.values() for name in counts})
        table = make_table("contaminated rows of", *(shown(name, 30) for name in names))
        for label, counts in _largest(self._benchmarks):
            table.add_row(Text(label), *(str(counts[name]) for name in names))
        return table


def _largest(sources: dict[str, collections.Counter[str]]) -> list[tuple[str, collections.Counter[str]]]:
    """The largest sources by name, and all others as one."""
    by_size = sorted(sources.items(), key=lambda item: (-item[1].total(), item[0]))
    made = [(shown(name, 60) or "(no source)", counts) for name, counts in by_size[:SOURCES_SHOWN]]
    if more := by_size[SOURCES_SHOWN:]:
        made.append((f"{len(more)} smaller sources", sum((counts for _, counts in more), collections.Counter())))
    return made
