"use strict";
// Rows one at a time; what is decided stays in this browser until it is saved as a file.
const source = document.getElementById("data");
const bytes = Uint8Array.from(atob(source.textContent), (c) => c.charCodeAt(0));
const rows = JSON.parse(new TextDecoder().decode(bytes));
const store = `clues-sample-${source.dataset.key}`;
const get = (id) => document.getElementById(id);
const make = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text });
let decided = {};
try {
  decided = JSON.parse(localStorage.getItem(store)) ?? {};
} catch {
  decided = {}; // a browser that keeps nothing for pages from disk
}
let at = 0;
let resting = false; // all rows are decided, and none was looked up again: a key decides nothing

function next(from) {
  for (let k = 0; k < rows.length; k++) if (!decided[(from + k) % rows.length]) return (from + k) % rows.length;
  return from % rows.length;
}

function draw() {
  const { row, turns } = rows[at];
  const box = get("row");
  box.replaceChildren();
  turns.forEach(([role, text], n) => {
    const last = n === turns.length - 1;
    const part = make("article", last ? "answer" : "");
    const words = make("p", "text", text);
    words.dir = "auto";
    part.append(make("h2", "", last ? "Answer" : role === "user" ? "Question" : role), words);
    box.append(part);
  });
  const way = decided[at];
  for (const button of document.querySelectorAll("[data-way]")) button.setAttribute("aria-pressed", String(button.dataset.way === way));
  const counts = { good: 0, bad: 0, skip: 0 };
  for (const one of Object.values(decided)) counts[one]++;
  const done = counts.good + counts.bad + counts.skip;
  get("progress").value = done;
  get("count").textContent = `${counts.good} good, ${counts.bad} bad, ${counts.skip} skipped`;
  const files = [["good", "checked.json"], ["bad", "rejected.json"]].filter(([kind]) => counts[kind]).map(([, name]) => name);
  const here = `Row ${at + 1} of ${rows.length} (row ${row} of the file)`;
  get("state").textContent = !resting
    ? `${here}.`
    : `All ${rows.length} rows are decided${files.length ? `: save ${files.join(" and ")} below` : ""}. ${here} is shown; the arrow keys go through them again.`;
  for (const button of document.querySelectorAll("[data-way]")) button.disabled = resting;
  for (const [id, kind] of [["save-good", "good"], ["save-bad", "bad"]]) get(id).disabled = !counts[kind];
}

function decide(way) {
  if (resting) return;
  decided[at] = way;
  try {
    localStorage.setItem(store, JSON.stringify(decided));
  } catch {
    get("state").textContent = "This browser keeps nothing for pages from disk: save before you close it.";
  }
  rest();
  if (!resting) at = next(at + 1);
  draw();
  window.scrollTo(0, 0);
}

function rest() {
  resting = Object.keys(decided).length === rows.length;
}

function save(kind, name) {
  const chosen = rows.filter((_, n) => decided[n] === kind).map((row) => row.record);
  const blob = new Blob([JSON.stringify(chosen, null, 1)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const button of document.querySelectorAll("[data-way]")) button.addEventListener("click", () => decide(button.dataset.way));
get("save-good").addEventListener("click", () => save("good", "checked.json"));
get("save-bad").addEventListener("click", () => save("bad", "rejected.json"));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const ways = { g: "good", b: "bad", s: "skip" };
  if (ways[event.key]) decide(ways[event.key]);
  else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    at = (at + (event.key === "ArrowLeft" ? rows.length - 1 : 1)) % rows.length;
    resting = false;
    draw();
  } else return;
  event.preventDefault();
});
at = next(0);
rest();
draw();
document.documentElement.dataset.ready = "1";
