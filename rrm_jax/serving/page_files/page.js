// The judge's page. Every text that is shown is set as text, never as markup.
import { readEvents } from "./events.js";
import { drawBracket, drawMatrix, drawRatings, letter } from "./pictures.js";

const MOST = 8, LEAST = 2;
const at = (id) => document.getElementById(id);
let running = null; // the AbortController of what is under way

function responses() {
  return [...at("responses").querySelectorAll("textarea")];
}

function addResponse(text = "") {
  const place = document.createElement("div");
  place.className = "response";
  const label = document.createElement("label"), area = document.createElement("textarea"), remove = document.createElement("button");
  area.rows = 4;
  area.required = true;
  area.value = text;
  remove.type = "button";
  remove.className = "remove";
  remove.textContent = "Remove";
  remove.addEventListener("click", () => {
    place.remove();
    number();
    at("add").focus();
  });
  place.append(label, area, remove);
  at("responses").append(place);
  number();
  return area;
}

function number() {
  const places = [...at("responses").children];
  places.forEach((place, n) => {
    const [label, area, remove] = place.children;
    area.id = `response-${n}`;
    label.htmlFor = area.id;
    label.textContent = `Response ${letter(n)}`;
    remove.hidden = places.length <= LEAST;
    remove.setAttribute("aria-label", `Remove response ${letter(n)}`);
  });
  at("add").disabled = places.length >= MOST;
  at("strategy").disabled = places.length === 2;
}

function say(text, error = false) {
  at("status").textContent = text;
  at("status").className = error ? "error" : "";
}

// What the judge writes of a match, token by token.
class Thoughts {
  constructor(votes) {
    this.several = votes > 1;
    this.open = new Map();
    at("thoughts").replaceChildren();
  }

  hear({ i = 0, j = 1, vote, sample, text }) {
    if (!this.open.has(sample)) {
      const box = document.createElement("details"), head = document.createElement("summary"), body = document.createElement("pre");
      head.textContent = `${letter(i)} against ${letter(j)}${this.several ? `, vote ${vote + 1}` : ""}`;
      box.className = "live";
      box.open = this.open.size < 2;
      box.append(head, body);
      at("thoughts").append(box);
      this.open.set(sample, { box, head, body, i, j });
    }
    const { body } = this.open.get(sample), ends = body.scrollHeight - body.scrollTop - body.clientHeight < 40;
    body.append(text);
    if (ends) body.scrollTop = body.scrollHeight;
  }

  decided({ i = 0, j = 1, winner }) {
    for (const one of this.open.values()) {
      if (one.i !== i || one.j !== j || !one.box.classList.contains("live")) continue;
      one.box.classList.remove("live");
      const note = document.createElement("span");
      note.textContent = winner === null ? ": no verdict" : `: ${letter(winner === 1 ? i : j)}`;
      one.head.append(note);
    }
  }

  end() {
    for (const one of this.open.values()) one.box.classList.remove("live");
  }
}

async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (at("token").value) headers.Authorization = `Bearer ${at("token").value}`;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (answer.status === 401) at("token-label").hidden = false;
  if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.error?.message ?? `the server says ${answer.status}`);
  return readEvents(answer.body);
}

async function run() {
  const texts = responses().map((area) => area.value), pair = texts.length === 2;
  const how = { query: at("query").value, votes: Number(at("votes").value), seed: Number(at("seed").value), stream: true };
  const body = pair
    ? { ...how, response_1: texts[0], response_2: texts[1], order: "both" }
    : { ...how, responses: texts, strategy: at("strategy").value };
  for (const id of ["ratings", "matrix", "bracket"]) at(id).replaceChildren();
  const thoughts = new Thoughts(how.votes), matches = [];
  running = new AbortController();
  at("outcome").hidden = false;
  at("run").disabled = true;
  at("stop").disabled = false;
  say("The judge is reading …");
  try {
    for await (const { event, data } of await post(pair ? "judge" : "rank", body, running.signal)) {
      if (event === "error") throw new Error(data.error.message);
      if (event === "tokens") thoughts.hear(data);
      if (event === "match") {
        matches.push(data);
        thoughts.decided(data);
        drawMatrix(at("matrix"), texts.length, matches);
        say(`${matches.length} ${matches.length === 1 ? "match" : "matches"} decided …`);
      }
      if (event === "verdict") showVerdict(data, thoughts);
      if (event === "ranking") showRanking(data, texts.length);
    }
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : `${error.message}`, error.name !== "AbortError");
  } finally {
    thoughts.end();
    running = null;
    at("run").disabled = false;
    at("stop").disabled = true;
  }
}

function showVerdict(row, thoughts) {
  thoughts.decided({ winner: row.winner });
  const of = (which) => row.votes.filter((vote) => vote.verdict === which).length;
  const votes = `${of(1)} of ${row.votes.length} votes, in both orders, are for A, ${of(2)} for B`;
  const sure = row.probability === null ? "" : `; the judge's own probability of A is ${Math.round(100 * row.probability)} %`;
  say(row.winner === null ? `Undecided: ${votes}${sure}.` : `${letter(row.winner - 1)} is better: ${votes}${sure}.`);
}

function showRanking(row, count) {
  say(`${letter(row.best)} is the best of ${count}, after ${row.comparisons} matches (${row.tokens.toLocaleString("en")} tokens).`);
  drawRatings(at("ratings"), row);
  drawMatrix(at("matrix"), count, row.matches);
  drawBracket(at("bracket"), row, at("strategy").value);
}

function example() {
  at("query").value = "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?";
  at("responses").replaceChildren();
  addResponse("From 9:40 to 12:40 is 3 hours, and 25 minutes more to 13:05. It takes 3 hours and 25 minutes.");
  addResponse("13:05 − 9:40 = 3:65, so it takes 4 hours and 5 minutes.");
  addResponse("About four hours.");
  at("query").focus();
}

function start() {
  addResponse();
  addResponse();
  at("add").addEventListener("click", () => addResponse().focus());
  at("example").addEventListener("click", example);
  at("stop").addEventListener("click", () => running?.abort());
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) run();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
    if (event.key === "Escape") running?.abort();
  });
  fetch("page/about.json").then((answer) => answer.json()).then((about) => {
    at("model").textContent = about.model;
    at("token-label").hidden = !about.token;
  });
}

start();
