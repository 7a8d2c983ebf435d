"""`rrm report`: training runs on one page, HTML that needs nothing else, or the curves alone as PNG.

Settings, names and traces are untrusted text: they are shown escaped, and the page can neither run nor load anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.evaluation import html_page
from rrm_jax.evaluation.html_page import block, listed, picture, safe, table
from rrm_jax.evaluation.training_log import (
    TrainingLog,
    headline,
    last_values,
    read_training_log,
    settings_that_differ,
)
from rrm_jax.evaluation.training_picture import draw

_LONG = 60  # characters of a trace's text from which on it stands by itself


def report_format(path: Path) -> str:
    """ "html" or "png", by the suffix; RrmError for another."""
    kind = {".html": "html", ".htm": "html", ".png": "png"}.get(path.suffix.lower())
    if kind is None:
        raise RrmError(f"a report ends in .html (the page) or .png (the curves), not in {path.suffix!r}: {path}")
    return kind


def write_report(runs: Sequence[Path], path: Path) -> None:
    """Reads the runs' own files, and writes the page or the picture. Raises RrmError for what cannot be."""
    kind = report_format(path)
    logs = [read_training_log(run) for run in runs]
    if kind == "png":
        lines = headline(logs[0])[:3] if len(logs) == 1 else []
        write_whole(path, draw(logs, [_title(logs), *lines]))
    else:
        write_whole(path, _page(logs))


def _title(logs: Sequence[TrainingLog]) -> str:
    return "Training: " + " and ".join(log.name for log in logs[:4]) + (" and others" if len(logs) > 4 else "")


def _page(logs: Sequence[TrainingLog]) -> str:
    parts = []
    for log in logs:
        name = f"<p><b>{safe(log.name, 80)}</b></p>" if len(logs) > 1 else ""
        parts.append(name + listed(headline(log), 400))
    parts.append(picture(draw(logs), "Curves of the metrics below, by step"))
    if len(logs) > 1:
        parts.append("<h2>Settings that differ</h2>" + table(settings_that_differ(logs)))
    for kind, words in (("eval", "Held out"), ("train", "Training")):
        values = last_values(logs, kind)
        if len(values) > 1:
            parts.append(f"<h2>{words}: first and last values</h2>{table(values)}")
    for log in logs:
        parts.append(f"<h2>Completions of {safe(log.name, 80)}</h2>" + ("".join(map(_trace, log.traces)) or _NONE))
    for log in logs:
        settings = block(yaml.safe_dump(dict(log.settings), sort_keys=False, allow_unicode=True))
        parts.append(f"<details><summary>Settings of {safe(log.name, 80)}</summary>{settings}</details>")
    return html_page.page(_title(logs), parts)


_NONE = "<p>None were written (log.traces is 0, or the method samples none).</p>"


def _trace(row: Mapping[str, Any]) -> str:
    """Short fields on the line that opens it, each long text below it; the completion before the prompt."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and _is_long(name, value)}
    facts = " · ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in texts)
    blocks = "".join(f"<p>{safe(name, 60)}</p>{block(texts[name])}" for name in sorted(texts))
    return f"<details><summary>{safe(facts, 400)}</summary>{blocks}</details>"


def _is_long(name: str, text: str) -> bool:
    return name in ("prompt", "completion") or len(text) > _LONG or "\n" in text


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
