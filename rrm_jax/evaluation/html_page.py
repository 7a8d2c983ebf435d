"""HTML pages that need nothing else. All text is untrusted: it is shown escaped, and a page can neither run nor load
anything."""

import base64
import html
from collections.abc import Sequence

from rrm_jax.evaluation.ranking_report import readable, shown

_MOST = 20_000  # characters of a block that are shown
_STYLE = """
body{font:15px/1.5 system-ui,Segoe UI,Helvetica,Arial,sans-serif;color:#222;background:#fff;margin:2rem auto;
max-width:1320px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;border-top:1px solid #d9d9d9;padding-top:1.2rem;margin-top:2rem}
img{max-width:100%}li{margin:.15rem 0}summary{cursor:pointer}p,li{max-width:60rem}
pre{background:#f4f6f8;padding:.8rem;font-size:12px;white-space:pre-wrap;overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:13px;margin:.5rem 0 1rem}
caption{text-align:left;font-weight:600;padding:.3rem 0}
td,th{padding:.15rem .7rem;border-bottom:1px solid #eee;text-align:right;vertical-align:top}
td.text,th.text{text-align:left}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page; `parts` are HTML."""
    name = safe(title, 200)
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        # Should a text ever get past the escaping, a browser still runs and loads nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\"/>"
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>"
    )
    return "\n".join([head, *parts, "</body></html>\n"])


def table(rows: Sequence[Sequence[str]], left: int = 1, title: str | None = None, width: int = 120) -> str:
    """The first row is the heading; the first `left` columns are text. Cells are cut to `width` columns."""
    lines = []
    for at, row in enumerate(rows):
        tag = "td" if at else "th"
        cells = (
            f"<{tag}{' class="text"' if place < left else ''}>{safe(cell, width)}</{tag}>"
            for place, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    caption = "" if title is None else f"<caption>{safe(title, 300)}</caption>"
    return f"<table>{caption}{''.join(lines)}</table>"


def listed(lines: Sequence[str], width: int = 2000) -> str:
    """A list, each line cut to `width` columns."""
    return "<ul>" + "".join(f"<li>{safe(line, width)}</li>" for line in lines) + "</ul>"


def picture(png: bytes, words: str) -> str:
    """A PNG within the page; `words` stand for it where it cannot be seen."""
    return f'<img alt="{safe(words, 300)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"/>'


def safe(text: str, width: int) -> str:
    """On one line of at most `width` columns."""
    return html.escape(shown(text, width))


def block(text: str) -> str:
    """On its own lines; the middle of a long text is cut."""
    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]}\n… {len(text) - _MOST} characters …\n{text[-_MOST // 2 :]}"
    return f"<pre>{html.escape(readable(text))}</pre>"
