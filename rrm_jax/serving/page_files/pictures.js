// What a tournament came to: ratings with intervals, who won against whom, and the bracket.

export const letter = (n) => String.fromCharCode(65 + n);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Bradley–Terry strengths on Elo's scale, with 95 % intervals, from the best down. */
export function drawRatings(place, row) {
  const ends = [...row.low, ...row.high, ...row.strengths].filter((x) => x !== null);
  const least = Math.min(...ends), most = Math.max(...ends), span = Math.max(most - least, 1);
  const x = (value) => `${2 + (96 * (value - least)) / span}%`;
  const lines = row.ranking.map((c) => {
    const picture = svg("svg", { role: "img" }), [middle, low, high] = [row.strengths[c], row.low[c], row.high[c]];
    const known = middle !== null && low !== null && high !== null;
    picture.setAttribute("aria-label", known ? `${Math.round(middle)}, from ${Math.round(low)} to ${Math.round(high)}` : "not known");
    if (known) {
      picture.append(svg("line", { x1: x(low), x2: x(high), y1: "50%", y2: "50%" }), svg("circle", { cx: x(middle), cy: "50%", r: 5 }));
    }
    const number = middle === null ? "–" : `${Math.round(middle)}`;
    return element("div", { className: c === row.best ? "rating best" : "rating" },
      element("span", { textContent: letter(c) }), element("span", { textContent: number }), picture);
  });
  place.replaceChildren(element("h3", { textContent: "Ratings, with 95 % intervals" }), ...lines);
}

/** How often the one in the row beat the one in the column. */
export function drawMatrix(place, count, matches) {
  const wins = Array.from({ length: count }, () => Array(count).fill(0)), met = wins.map((line) => [...line]);
  for (const { i, j, winner } of matches) {
    met[i][j] += 1;
    met[j][i] += 1;
    wins[i][j] += winner === 1 ? 1 : winner === null ? 0.5 : 0;
    wins[j][i] += winner === 2 ? 1 : winner === null ? 0.5 : 0;
  }
  const names = [...Array(count).keys()];
  const head = element("tr", {}, element("td"), ...names.map((c) => element("th", { scope: "col", textContent: letter(c) })));
  const lines = names.map((r) => element("tr", {}, element("th", { scope: "row", textContent: letter(r) }), ...names.map((c) => cell(r, c))));
  function cell(r, c) {
    if (r === c) return element("td", { className: "self" });
    if (!met[r][c]) return element("td");
    const share = wins[r][c] / met[r][c];
    return element("td", { className: share > 0.5 ? "won" : share < 0.5 ? "lost" : "", textContent: `${wins[r][c]} of ${met[r][c]}` });
  }
  const table = element("table", {}, element("caption", { textContent: "Matches that the row won against the column" }), head, ...lines);
  place.replaceChildren(element("h3", { textContent: "Who beat whom" }), element("div", { className: "wide" }, table));
}

/** The rounds of a knockout from left to right; of other tournaments nothing. */
export function drawBracket(place, row, strategy) {
  if (strategy !== "knockout") return;
  const last = Math.max(...row.matches.map((match) => match.round));
  const rounds = [...Array(last).keys()].map((n) => {
    const games = row.matches.filter((match) => match.round === n + 1).map((match) => {
      const won = match.winner === null ? null : match.winner === 1 ? match.i : match.j;
      const line = (c) => element("div", {
        className: won === null ? "" : c === won ? "winner" : "loser", textContent: c === won ? `${letter(c)} wins` : letter(c),
      });
      return element("div", { className: "game" }, line(match.i), line(match.j));
    });
    return element("div", { className: "round" }, element("h4", { textContent: n + 1 === last ? "Final" : `Round ${n + 1}` }), ...games);
  });
  place.replaceChildren(element("h3", { textContent: "Bracket" }), element("div", { className: "rounds" }, ...rounds));
}
