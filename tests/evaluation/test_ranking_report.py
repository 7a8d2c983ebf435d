"""Reports and pictures of tournaments: the right figures, in files that hold up whatever the texts are."""

import html.parser
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.errors import RrmError
from rrm_jax.evaluation import ranking_picture as pictures
from rrm_jax.evaluation import ranking_report as reports
from rrm_jax.evaluation.ranking_report import Tournament
from rrm_jax.ranking.intransitivity import of_tournament
from rrm_jax.ranking.protocol import Match, Outcome, Result

HOSTILE = [
    "<script>alert(1)</script>",
    "a & b \"double\" 'single' </text></svg><!-- ]]>",
    "x" * 100_000,
    "two\nlines\r\n\x00\x1b[31mred\x1b[0m\x85",
    "\u202egnp.exe\u2066 שלום عربي",
    "漢字かな交じり文のとても長い候補テキスト",
    "$\\frac{1$ | `code` **bold** [link](javascript:1) \\",
    "\ud800 \ufffe \U0001f469\u200d\U0001f680 e" + "\u0301" * 500,
    "",
]


def tournament(n, kind="elo", labels=(), **fields):
    """Candidate c beats all of a higher number; a knockout in which neighbours meet and an odd one out waits."""
    points, rounds = np.zeros((n, n)), []
    if "knockout" in kind:
        alive = list(range(n))
        while len(alive) > 1:
            rounds.append([(alive[a], alive[a + 1], 1) for a in range(0, len(alive) - 1, 2)])
            alive = alive[::2]
    else:
        rounds.append([(i, j, 1) for i in range(n) for j in range(i + 1, n)])
    for games in rounds:
        for i, j, _ in games:
            points[i, j] += 1
    ratings = np.linspace(1200, 900, n)
    labels = [*labels, *(f"answer {c}" for c in range(len(labels), n))][:n]
    whole = {
        "low": ratings - 50,
        "high": ratings + 50,
        "points": points,
        "rounds": rounds,
        "ranking": range(n),
    } | fields
    return Tournament(id=whole.pop("id", "q"), labels=labels, ratings=ratings, kind=kind, **whole)


def page(path):
    """The page as a tree: that it is well-formed XML says that nothing got out of where it belongs."""
    text = path.read_text(encoding="utf-8")
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def tags(tree):
    return {element.tag.rpartition("}")[2] for element in tree.iter()}


def texts(tree):
    return {"".join(element.itertext()) for element in tree.iter() if element.tag.endswith("text")}


@pytest.mark.parametrize("n", [1, 2, 3, 32, 64, 70])
@pytest.mark.parametrize("kind", ["elo", "knockout"])
def test_a_page_shows_every_candidate_and_every_game(tmp_path, n, kind):
    path = tmp_path / "page.html"
    pictures.write_picture(path, [tournament(n, kind)], "Ranking", ["one fact"])
    svgs = [element for element in page(path).iter() if element.tag.endswith("svg")]
    drawn = min(n, 64)
    assert len(svgs) == 2 + (kind == "knockout" and n > 1)
    assert {f"#{c} answer {c}" for c in range(drawn)} <= texts(svgs[0])
    assert (f"#{drawn} answer {drawn}" in texts(svgs[0])) is False
    cells = [element.get("fill") for element in svgs[1].iter() if element.tag.endswith("rect")]
    games = [(i, j) for games in tournament(n, kind).rounds for i, j, _ in games if max(i, j) < drawn]
    legend = 1
    assert cells.count(pictures._mix(1)) == cells.count(pictures._mix(0)) == len(games) + legend
    assert len(cells) == drawn**2 + 3
    for element in svgs:
        shapes = [e for e in element.iter() if e.tag.endswith(("rect", "line"))]
        right = [float(e.get("x2") or float(e.get("x")) + float(e.get("width"))) for e in shapes]
        below = [float(e.get("y2") or float(e.get("y")) + float(e.get("height"))) for e in shapes]
        assert max(right, default=0) <= float(element.get("width")) + 0.1
        assert max(below, default=0) <= float(element.get("height")) + 0.1


def test_hostile_texts_stay_text_in_a_page(tmp_path):
    path = tmp_path / "page.html"
    hostile = tournament(9, "knockout", HOSTILE, id="<img src=x onerror=alert(1)>\u202e\x00")
    pictures.write_html(path, [hostile] * 2, "<b>title</b> & more", ["<i>line</i>\u2028"])
    assert tags(page(path)) == tags_of_plain(tmp_path)
    raw = path.read_bytes()
    assert len(raw) < 400_000
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]", raw.decode("utf-8"))
    assert "#0 <script>alert(1)</script>" in texts(page(path))

    class Events(html.parser.HTMLParser):
        found: set = set()  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found |= {(tag, name) for name, _ in attrs if name.startswith("on") or name in ("href", "src")}

    Events().feed(raw.decode("utf-8"))
    assert not Events.found


def tags_of_plain(tmp_path):
    path = tmp_path / "plain.html"
    pictures.write_html(path, [tournament(9, "knockout")], "title", ["line"])
    return tags(page(path))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec=None), max_size=300), st.integers(1, 60))
def test_any_text_is_shown_on_one_line_of_the_width(text, width):
    line = reports.shown(text, width)
    assert reports.columns(line) <= width
    assert len(line.splitlines()) <= 1
    assert len(line) <= 4 * width + 30
    line.encode("utf-8")
    ElementTree.fromstring(pictures.svg(pictures.Drawing(line, 1, 1)))


@settings(max_examples=60, deadline=None)
@given(st.text("abc |é漢", max_size=40), st.integers(3, 30))
def test_what_fits_is_shown_whole_and_what_does_not_is_cut(text, width):
    whole = " ".join(text.split())
    line = reports.shown(text, width)
    if reports.columns(whole) <= width:
        assert line == whole
    else:
        assert line.endswith("…")
        assert whole.startswith(line[:-1])
        assert reports.columns(line) >= width - 1


def test_at_most_so_many_queries_are_drawn_and_the_page_says_so(tmp_path):
    path = tmp_path / "page.HTM"
    pictures.write_picture(path, [tournament(2, id=f"q{at}") for at in range(5)], most=3)
    text = path.read_text(encoding="utf-8")
    assert "the first 3 of 5 queries" in text
    assert ("Query q2" in text, "Query q3" in text) == (True, False)


@pytest.mark.parametrize(("n", "kind"), [(1, "knockout"), (2, "elo"), (9, "knockout"), (64, "knockout")])
def test_a_png_is_drawn_whatever_the_texts_are(tmp_path, n, kind):
    import matplotlib.image

    path = tmp_path / "page.png"
    pictures.write_picture(path, [tournament(n, kind, HOSTILE, id="$x$\n\x00")] * 2, "Title $\\frac")
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[1] >= 1875
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]
    assert 0.9 < pixels[..., :3].mean() < 0.995
    blue = np.abs(pixels[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02  # the winner's
    assert blue.sum() > 50
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.png"]


def test_ratings_without_intervals_or_all_alike_are_drawn(tmp_path):
    whiskers = []
    for low, high in ((900.0, 1100.0), (math.nan, math.inf), (1000.0, 1000.0)):
        same = tournament(4, low=[low] * 4, high=[high] * 4)
        same = Tournament(**{**vars(same), "ratings": [1000.0] * 3 + [math.nan]})
        drawing = pictures.intervals(same)
        assert all(math.isfinite(s.x1 + s.x2) for s in drawing.shapes if isinstance(s, pictures.Line))
        assert sum(isinstance(s, pictures.Box) and s.round for s in drawing.shapes) == 3
        whiskers.append(sum(isinstance(s, pictures.Line) and s.colour != pictures.FAINT for s in drawing.shapes))
        pictures.write_png(tmp_path / "page.png", same)
    assert whiskers == [12, 0, 12]
    assert "– … –" in "\n".join(reports.ranking_table(tournament(2, low=[math.nan] * 2, high=[math.inf] * 2)))


def test_what_cannot_be_drawn_is_said(tmp_path):
    for name in ("page.svg", "page", "page.pdf"):
        with pytest.raises(RrmError, match=r"\.html .* or \.png"):
            pictures.write_picture(tmp_path / name, [tournament(2)])
    with pytest.raises(RrmError, match="no tournament"):
        pictures.write_picture(tmp_path / "page.png", [])
    pictures.write_picture(tmp_path / "page.html", [])
    for name in ("page.html", "page.png"):
        with pytest.raises(RrmError, match="cannot write"):
            pictures.write_picture(tmp_path / "nowhere" / name, [tournament(2)])


def test_a_bracket_is_the_rounds_that_eliminate():
    # A round of sparse games first; then four in a bracket, two of whose matches had no winner.
    rounds = [[(0, 1, 1), (2, 3, 1)], [(3, 0, None), (1, 2, 2)], [(3, 2, None)]]
    played = tournament(4, "knockout, seeded", rounds=rounds, ranking=[2, 3, 0, 1])
    found, before = reports.elimination(played, 64)
    assert found == [[(3, 0, False), (2, 1, True)], [(2, 3, False)]]
    assert before == 1
    drawing = pictures.bracket(played)
    assert "after 1 round" in drawing.title
    names = [s.text for s in drawing.shapes if isinstance(s, pictures.Text) and s.text.startswith("#")]
    assert sorted(name[:2] for name in names) == ["#0", "#1", "#2", "#2", "#2", "#3", "#3"]
    assert sum(isinstance(s, pictures.Line) and s.dashed for s in drawing.shapes) == 4
    assert any("dashed" in s.text for s in drawing.shapes if isinstance(s, pictures.Text))
    assert reports.elimination(played, 3) == ([[(2, 3, False)]], 2)
    assert pictures.bracket(tournament(4, "swiss")) is None


def test_an_unfinished_bracket_is_drawn_as_far_as_it_went():
    played = tournament(6, "knockout", rounds=[[(0, 1, 1), (2, 3, 2), (4, 5, 1)]])
    names = [s.text[:2] for s in pictures.bracket(played).shapes if isinstance(s, pictures.Text)]
    assert sorted(name for name in names if name[0] == "#") == ["#0", "#0", "#1", "#2", "#3", "#3", "#4", "#4", "#5"]


def outcome(winner, votes="", orders="", **fields):
    coded = {"1": 1, "2": 2, "-": None}
    return Outcome(winner, votes=tuple(coded[v] for v in votes), orders=tuple(o == "f" for o in orders), **fields)


def test_order_agreement_is_counted_by_pairs():
    agreeing = Match(0, 1, outcome(1, "11", "ft"))
    disagreeing = Match(2, 0, outcome(None, "12", "ft"))
    in_one_order = Match(1, 2, outcome(1, "11", "ff"))
    invalid_in_one = Match(0, 3, outcome(1, "1-", "ft"))
    spared = Match(1, 3, None)
    matches = [agreeing, disagreeing, in_one_order, invalid_in_one, spared]
    assert reports.order_agreement(matches) == (1, 2)
    # Named the other way round and shown with 2 first: 1 was first before, and is still named.
    assert reports.order_agreement([*matches, Match(2, 1, outcome(2, "2", "f"))]) == (2, 3)
    # Of three votes one way and one the other, two thirds agree.
    assert reports.order_agreement([Match(0, 1, outcome(1, "1121", "ffft"))]) == (pytest.approx(2 / 3), 1)


def test_position_bias_is_counted_by_votes():
    turned = Match(2, 0, outcome(None, "12", "ft"))  # the first vote for 2, shown first; the second for 0, shown first
    matches = [Match(0, 1, outcome(1, "11", "ft")), turned, Match(0, 3, outcome(1, "1-", "tf")), Match(1, 3, None)]
    assert reports.first_shown(matches) == (3, 5)
    # log (60.5 / 40.5) = 0.401, 1.96 √(1 / 60.5 + 1 / 40.5) = 0.398.
    assert reports.position_line(60, 100) == (
        "position bias: the one shown first won 60.0 % of 100 valid votes (log-odds +0.40 ± 0.40)"
    )
    assert "100.0 % of 10 valid votes (log-odds +3.04 ± 2.84)" in reports.position_line(10, 10)


def result(**fields):
    plain = dict.fromkeys(("comparisons", "votes", "tokens", "invalid", "spared", "invalid_votes"), 0)
    plain |= dict.fromkeys(("cut_off", "truncated_inputs", "forced"), 0)
    ratings = {"ratings": (2.0, 1.0, 0.0), "strengths": (1100.0, 1000.0, 900.0)}
    ratings |= {"low": (1000.0, 900.0, 800.0), "high": (1200.0, 1100.0, 1000.0)}
    return Result(**{"id": "q", "best": 0, "ranking": (0, 1, 2), "stopped": ""} | plain | ratings | fields)


def test_a_result_with_its_matches_becomes_a_report():
    rounds = [
        [Match(0, 1, outcome(1, "11", "ft")), Match(2, 0, outcome(None, "12", "ft"))],
        [Match(1, 2, None), Match(1, 0, outcome(2, "2", "f"))],
    ]
    counts = {"comparisons": 3, "votes": 5, "tokens": 70, "invalid": 1, "spared": 1, "cut_off": 2, "forced": 4}
    found = reports.tournament_of(result(**counts, stopped="budget"), ["a", "b", "c"], rounds, "knockout")
    assert found.points.tolist() == [[0, 2, 0.5], [0, 0, 0], [0.5, 0, 0]]
    assert found.rounds == [[(0, 1, 1), (2, 0, None)], [(1, 2, None), (1, 0, 2)]]
    assert (found.ratings, found.comparisons, found.cut_off, found.stopped) == ((1100, 1000, 900), 3, 2, "budget")
    report = "\n".join([*reports.ranking_table(found), *reports.summary_lines([found, found])])
    assert "comparisons: 6 (3.0 a query; without a winner: 2, spared because both answers are the same: 2)" in report
    assert "votes: 10 (invalid: 0, cut off at the token limit: 4," in report
    assert "forced by the thinking budget: 8); 140 tokens (70.0 a query)" in report
    assert "order consistency: 0.5000 = 2 / 4 pairs" in report
    assert "position bias: the one shown first won 60.0 % of 10 valid votes (log-odds +0.37 ± 1.20)" in report
    assert "stopped early (budget): 2 queries" in report
    assert "#0        | `a`  |    1 | 1100.0 | 1000.0 … 1200.0 |    2.5 |     3 |" in report


def test_a_report_is_a_table_whose_columns_line_up_and_whose_texts_are_code():
    found = tournament(9, labels=HOSTILE)
    lines = [*reports.ranking_table(found), *reports.summary_lines([found])]
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 9
    assert len({reports.columns(row) for row in rows}) == 1
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    cells = [re.split(r"(?<!\\)\|", row)[2].strip() for row in rows[2:]]
    assert all(re.fullmatch(r"`[^`\n]+`", cell) for cell in cells)
    assert not any(re.search(r"[\x00-\x1f\u202a-\u202e\u2066-\u2069]", line) for line in lines)


def test_intransitivity_in_words():
    cycle = of_tournament([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    lines = "\n".join(reports.intransitivity_lines(cycle + of_tournament(np.zeros((2, 2)))))
    assert "3-cycles: 1.0000 = 1 / 1 triples with three decided pairs (by chance 0.25, 0.2 ± 0.4)" in lines
    assert "Kendall's ζ 0.000" in lines
    assert "fewest upsets that explain the results: 1 of 3 decided pairs (exact in 2 of 2 queries" in lines
    assert "(Condorcet): in 0 of 2 queries; top cycle: 2.5 of 2.5 candidates" in lines
    assert "the one picked: in the top cycle 100.0 %, beaten head to head by 0.5 of 1 opponents, rank 1 by" in lines
    large = of_tournament(tournament(20).points)
    assert "the Condorcet winner 100.0 %" in "\n".join(reports.intransitivity_lines(large))
    assert "(1 by drawn brackets)" in "\n".join(reports.intransitivity_lines(large))
    assert "no three candidates" in reports.intransitivity_lines(of_tournament(np.zeros((1, 1))))[0]
    assert "no pair" in "\n".join(reports.summary_lines([]))


def test_tournaments_too_large_for_cycles_are_left_out_aloud(monkeypatch):
    monkeypatch.setattr(reports, "MOST_ANALYSED", 3)
    lines = reports.summary_lines([tournament(3), tournament(4)])
    assert lines[-1] == "cycles and upsets were not looked for in 1 query of more than 3 candidates"
    assert any("1 of 1 query; top cycle: 1 of 3 candidates" in line for line in lines)
    assert not any("3-cycles" in line for line in reports.summary_lines([tournament(4)]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": [1.0]}, "same candidates"),
        ({"ranking": [0, 0, 1]}, "same candidates"),
        ({"points": np.zeros((2, 2))}, "same candidates"),
        ({"points": np.full((3, 3), np.nan)}, "finite"),
        ({"rounds": [[(0, 3, 1)]]}, "outside 0 … 2"),
    ],
)
def test_tournaments_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(RrmError, match=message):
        tournament(3, **fields)
