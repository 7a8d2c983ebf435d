"""One report of all studies, as HTML that needs nothing else and as Markdown beside the studies' figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrm_jax.data.whole_files import write_whole
from rrm_jax.evaluation import html_page
from rrm_jax.evaluation.html_page import listed, picture, safe
from rrm_jax.evaluation.ranking_report import table
from rrm_jax.reproduce.config import ReproduceConfig
from rrm_jax.reproduce.run import Reproduced, Section
from rrm_jax.studies.report import Claim, command_line, said, seeds_of

_READING = (
    "Shown: the 95 % interval of the difference lies above 0. Contradicted: below. Not shown: 0 is inside; that is no "
    "proof of the contrary. Published numbers are the paper's, of other models on other tasks, and none of ours."
)


def write(config: ReproduceConfig, done: Reproduced) -> list[Path]:
    """Writes report.html, report.md and seconds.json to the output; returns them."""
    output = Path(config.output)
    versions = json.loads((output / "run.json").read_text(encoding="utf-8"))
    paths = [output / "report.html", output / "report.md", output / "seconds.json"]
    write_whole(paths[0], _html(config, done, versions))
    write_whole(paths[1], _markdown(config, done, versions))
    write_whole(paths[2], json.dumps(done.seconds, indent=1) + "\n")
    return paths


def claims(done: Reproduced) -> list[list[str]]:
    """A table of all that the studies decide, its heading first."""
    rows = [["study", "statement", "outcome", "what was seen"]]
    for section in done.sections:
        for one in section.report.says if section.report else ():
            if one.outcome:
                rows.append([section.name, one.statement, one.outcome, one.evidence])
    return rows


def _missing(done: Reproduced) -> list[str]:
    return [f"{section.name}, seed {seed}: {why}" for section in done.sections for seed, why in section.missing.items()]


def _made(config: ReproduceConfig, versions: dict[str, Any]) -> list[str]:
    of = versions["versions"]
    return [
        f"Command: {command_line()}",
        f"{seeds_of(config.seeds)}. Each seed's own tables and figures, and every vote, are in seed-N/.",
        f"rrm-jax {of['rrm-jax']} ({versions['git_revision'] or 'no git revision'}), JAX {of['jax']}, Python "
        f"{of['python']}, on {', '.join(sorted(set(versions['devices'])))}.",
    ]


def _statement(claim: Claim) -> str:
    return f"{claim.statement}: {claim.outcome}. {claim.evidence}" if claim.outcome else claim.evidence


def _html(config: ReproduceConfig, done: Reproduced, versions: dict[str, Any]) -> str:
    parts = [f"<p>{safe(config.about, 4000)}</p>", "<h2>What can be read off</h2>"]
    parts += [html_page.table(claims(done), left=4, width=600), f"<p>{safe(_READING, 1000)}</p>"]
    for number, section in enumerate(done.sections, start=1):
        parts += _html_section(number, section, Path(config.output))
    if missing := _missing(done):
        parts += ["<h2>Not run</h2>", listed(missing)]
    return html_page.page(config.title, [*parts, "<h2>How this was made</h2>", listed(_made(config, versions))])


def _html_section(number: int, section: Section, output: Path) -> list[str]:
    report = section.report
    if report is None:
        return []
    figure = (output / section.name / "figure.png").read_bytes()
    return [
        f"<h2>{number}. {safe(report.title, 200)}</h2><p>{safe(report.question, 2000)}</p>",
        *(html_page.table(one.rows, one.left, one.title, 200) for one in report.tables),
        picture(figure, f"Figure of the study {section.name}; its numbers are in the tables"),
        "<p><b>What it says</b></p>",
        listed([_statement(claim) for claim in report.says]),
        f"<details><summary>How to read this ({safe(seeds_of(section.seeds).lower(), 200)})</summary>"
        f"{listed(report.notes)}</details>",
    ]


def _markdown(config: ReproduceConfig, done: Reproduced, versions: dict[str, Any]) -> str:
    lines = [f"# {config.title}", "", config.about, "", "## What can be read off", ""]
    lines += [*table(claims(done), left=4), "", _READING, ""]
    for number, section in enumerate(done.sections, start=1):
        lines += _markdown_section(number, section)
    if missing := _missing(done):
        lines += ["## Not run", "", *_bullets(missing)]
    return "\n".join([*lines, "## How this was made", "", *_bullets(_made(config, versions))])


def _markdown_section(number: int, section: Section) -> list[str]:
    report = section.report
    if report is None:
        return []
    lines = [f"## {number}. {report.title}", "", report.question, ""]
    for one in report.tables:
        lines += [f"**{one.title}**", "", *table(one.rows, one.left), ""]
    lines += [f"![{report.title}]({section.name}/figure.png)", "", "**What it says**", "", *said(report), ""]
    return [*lines, "How to read this:", "", *_bullets(report.notes)]


def _bullets(lines: Sequence[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""]
