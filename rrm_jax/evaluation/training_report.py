"""`rrm report`: training runs on one page, HTML that needs nothing else, or the curves alone as PNG.

Settings, names and traces are untrusted text: they are shown escaped, and the page can neither run nor load anything.
"""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.ranking_report import readable, shown
from rrm_jax.evaluation.training_log import (
    TrainingLog,
    headline,
    last_values,
    read_training_log,
    settings_that_differ,
)
from rrm_jax.evaluation.training_picture import draw

_LONG = 60  # characters of a trace's text from which on it stands by itself
_MOST = 20_000  # characters of it that are shown

_STYLE = """
body{font:15px/1.5 system-ui,Segoe UI,Helvetica,Arial,sans-serif;color:#222;background:#fff;margin:2rem auto;
max-width:1320px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;border-top:1px solid #d9d9d9;padding-top:1.2rem;margin-top:2rem}
img{max-width:100%}li{margin:.15rem 0}summary{cursor:pointer}
pre{background:#f4f6f8;padding:.8rem;font-size:12px;white-space:pre-wrap;overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:13px}td,th{padding:.15rem .7rem;border-bottom:1px solid #eee;text-align:right}
td:first-child,th:first-child{text-align:left}
"""


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
        _replace(path, draw(logs, [_title(logs), *lines]))
    else:
        _replace(path, page(logs).encode("utf-8"))


def _title(logs: Sequence[TrainingLog]) -> str:
    return "Training: " + " and ".join(log.name for log in logs[:4]) + (" and others" if len(logs) > 4 else "")


def page(logs: Sequence[TrainingLog]) -> str:
    title, picture = _safe(_title(logs), 200), base64.b64encode(draw(logs)).decode("ascii")
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        # Should a text ever get past the escaping, a browser still runs and loads nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\"/>"
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
    ]
    for log in logs:
        name = f"<p><b>{_safe(log.name, 80)}</b></p>" if len(logs) > 1 else ""
        parts.append(name + "<ul>" + "".join(f"<li>{_safe(line, 400)}</li>" for line in headline(log)) + "</ul>")
    parts.append(f'<img alt="Curves of the metrics below, by step" src="data:image/png;base64,{picture}"/>')
    if len(logs) > 1:
        parts.append("<h2>Settings that differ</h2>" + _table(settings_that_differ(logs)))
    for kind, words in (("eval", "Held out, both orders"), ("train", "Training")):
        table = last_values(logs, kind)
        if len(table) > 1:
            parts.append(f"<h2>{words}: first and last values</h2>{_table(table)}")
    for log in logs:
        parts.append(f"<h2>Completions of {_safe(log.name, 80)}</h2>" + ("".join(map(_trace, log.traces)) or _NONE))
    for log in logs:
        settings = _readable(yaml.safe_dump(dict(log.settings), sort_keys=False, allow_unicode=True))
        parts.append(f"<details><summary>Settings of {_safe(log.name, 80)}</summary><pre>{settings}</pre></details>")
    return "\n".join([*parts, "</body></html>\n"])


_NONE = "<p>None were written (log.traces is 0, or the method samples none).</p>"


def _trace(row: Mapping[str, Any]) -> str:
    """Short fields on the line that opens it, each long text below it; the completion before the prompt."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and _is_long(name, value)}
    facts = " · ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in texts)
    blocks = "".join(f"<p>{_safe(name, 60)}</p><pre>{_readable(texts[name])}</pre>" for name in sorted(texts))
    return f"<details><summary>{_safe(facts, 400)}</summary>{blocks}</details>"


def _is_long(name: str, text: str) -> bool:
    return name in ("prompt", "completion") or len(text) > _LONG or "\n" in text


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["".join(f"<{tag}>{_safe(cell, 120)}</{tag}>" for cell in row) for row, tag in _tagged(rows)]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"


def _tagged(rows: Sequence[Sequence[str]]) -> list[tuple[Sequence[str], str]]:
    return [(row, "th" if at == 0 else "td") for at, row in enumerate(rows)]


def _safe(text: str, width: int) -> str:
    return html.escape(shown(text, width))


def _readable(text: str) -> str:
    """`text` on its own lines, without characters that act instead of being seen; the middle of a long one is cut."""
    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]}\n… {len(text) - _MOST} characters …\n{text[-_MOST // 2 :]}"
    return html.escape(readable(text))


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise RrmError(f"cannot write {path}: {error.strerror or error}") from None
