// One row in full, with what was found in it marked, and the form to decide about it.

// Text with places marked; always text nodes, whatever the row contains. Places may overlap.
function marked(parent, text, places) {
  const ends = [...new Set([0, text.length, ...places.flatMap(([from, to]) => [from, to])])].filter((at) => at <= text.length).sort((a, b) => a - b);
  for (let k = 0; k + 1 < ends.length; k++) {
    const [from, to] = [ends[k], ends[k + 1]];
    const over = places.filter(([start, end]) => start <= from && end >= to);
    const piece = text.slice(from, to);
    if (!over.length) {
      parent.append(piece);
      continue;
    }
    const searched = over.some(([, , className]) => className === "searched");
    const element = make(searched ? "mark" : "span", over.map(([, , className]) => className).join(" "), piece);
    element.title = over.map(([, , , says]) => says).filter(Boolean).join("; ");
    parent.append(element);
  }
}

// Where the searched words stand.
function searched(text, words) {
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return []; // where lower case has another length the places would be wrong
  const found = [];
  for (const word of words) {
    for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + word.length)) found.push([at, at + word.length, "searched", ""]);
  }
  return found;
}

const ROLES = { user: "question", assistant: "answer" };
const LEVELS = ["found-here", "unlikely", "very-unlikely"];
const NARROW = window.matchMedia("(max-width: 60rem)");

class Detail {
  constructor(box, rows, choice, { onDecide, onNext, onShow }) {
    Object.assign(this, { box, rows, choice, onDecide, onNext, onShow, row: -1, words: [], isOver: false });
    NARROW.addEventListener("change", () => this.cover(false));
    box.addEventListener("keydown", (event) => event.key === "Escape" && this.isOver && this.cover(false));
  }

  // On a phone the row lies over the list, and the rest of the page waits.
  cover(over) {
    this.isOver = over && NARROW.matches;
    document.documentElement.classList.toggle("covered", this.isOver);
    for (let part = this.box; part !== document.body; part = part.parentElement) {
      for (const other of part.parentElement.children) if (other !== part && !other.matches("script, .tip")) other.inert = this.isOver;
    }
    if (this.isOver) this.box.querySelector(".close")?.focus();
    else if (over === false) document.getElementById("list").focus({ preventScroll: true });
  }

  show(row) {
    const isNew = row !== this.row;
    const top = this.box.querySelector(".read")?.scrollTop ?? 0;
    this.row = row;
    this.onShow(row);
    const { rows, choice } = this;
    const head = make("div", "head");
    const title = make("h3", "", `Row ${COUNT.format(row + 1)} `);
    const kept = choice.keptHere(row);
    title.append(make("span", `chip ${kept ? "kept" : "dropped"}`, kept ? "kept" : "set aside"));
    if (kept !== choice.keptNow(row)) title.append(" ", make("span", "chip change", kept ? "set aside in force" : "kept in force"));
    const close = make("button", "close", "Back");
    Object.assign(close, { type: "button", ariaLabel: "Back to the list" });
    close.addEventListener("click", () => this.cover(false));
    const next = make("button", "next", "Next");
    next.append(make("span", "wide", " undecided"));
    Object.assign(next, { type: "button", title: "n" });
    next.addEventListener("click", () => this.onNext());
    head.append(title, close, next);
    const parts = [head, make("p", "why", choice.reason(row)), make("div", "read")];
    const scores = rows.turnScores(row);
    const worst = Math.min(...scores.values());
    const turns = rows.turns(row);
    for (const [turn, { role, content }] of turns.entries()) {
      const text = make("p", "text");
      text.dir = "auto";
      const places = rows.marks(row, turn).filter(([, end]) => end <= content.length).map(([start, end, says, level]) => [start, end, LEVELS[level], says]);
      if (places.some(([, , className]) => className !== "found-here")) this.hasWords = row;
      marked(text, content, [...places, ...searched(content, this.words)]);
      const named = make("h4", "", ROLES[role] ?? role);
      if (scores.has(turn)) named.append(" ", this.ofTurn(row, scores.get(turn), worst));
      parts[2].append(named, text);
    }
    parts[2].append(this.facts(row, turns), this.numbers(row));
    // It scrolls, so the keyboard must reach it.
    Object.assign(parts[2], { tabIndex: 0, role: "group", ariaLabel: `Text of row ${row + 1}` });
    parts.push(this.form(row));
    const focused = this.box.contains(document.activeElement) ? document.activeElement.className : "";
    this.box.replaceChildren(...parts);
    if (focused === "next" || focused === "close") this.box.querySelector(`.${focused}`).focus();
    if (!isNew) this.box.querySelector(".read").scrollTop = top;
  }

  // The score of a turn, and what comes of it.
  ofTurn(row, score, worst) {
    const { low, untrained } = this.choice.turnIs(row, score);
    const says = [`turn score ${shown(score)}`];
    if (score === worst) says.push("the lowest");
    if (low) says.push("below the threshold");
    if (untrained) says.push("not trained");
    return make("span", low ? "turn-score low" : "turn-score", says.join(", "));
  }

  facts(row, turns) {
    const { rows } = this;
    const list = make("dl");
    const add = (name, value) => {
      const head = make("dt");
      head.append(name);
      list.append(head, make("dd", "", value));
    };
    const length = turns.reduce((n, { content }) => n + content.length, 0);
    if (rows.header.cutAfter && length >= rows.header.cutAfter) add("Text", `may be cut: this page shows ${COUNT.format(rows.header.cutAfter)} characters a row`);
    if (this.hasWords === row) add(term("unlikely words", "Marked words"), "unlikely to the model; the darker, the less likely");
    if (rows.header.kinds) add(term("known damage", "Known damage"), rows.label(row) === "clean" ? "none" : rows.label(row));
    const same = rows.withId(rows.id(row)).length;
    if (same > 1) add("Same text", rowsOf(same));
    return list;
  }

  // The numbers behind the reason: for whoever wants them.
  numbers(row) {
    const { rows } = this;
    const { header, terms, traces } = rows;
    const box = make("details", "numbers");
    box.open = this.wantsNumbers ?? false;
    box.addEventListener("toggle", () => (this.wantsNumbers = box.open));
    box.append(make("summary", "", "Numbers of this row"));
    const list = make("dl");
    const add = (name, value) => {
      const head = make("dt");
      head.append(name);
      list.append(head, make("dd", "", value));
    };
    add(term("score", "Score"), `${shown(rows.score[row])}; ${Number.isFinite(this.choice.inForce) ? `the threshold is ${shown(this.choice.inForce)}` : "no threshold is in force"}`);
    if (rows.arrays.tokens[row]) add(term("token", "Length"), `${COUNT.format(rows.arrays.response[row])} of ${COUNT.format(rows.arrays.tokens[row])} tokens are response`);
    header.losses.forEach((name, k) => add(term("loss", `Loss ${name}`), `${shown(rows.losses[k][row])} nats`));
    add("Id", rows.id(row));
    box.append(list, this.sums(row, "The score is the sum of", header.terms, terms));
    // Where the score is no sum over the checkpoints, they are shown beside it.
    if (traces.length && header.terms[0] !== header.traces[0]) {
      box.append(this.sums(row, "The influence is the sum of", header.traces, traces));
    }
    return box;
  }

  sums(row, title, names, arrays) {
    const table = make("table");
    table.createCaption().className = "unseen";
    table.caption.textContent = title;
    const head = table.createTHead().insertRow();
    for (const [text, className] of [[title, ""], ["", "number"]]) {
      const cell = make("th", className, text);
      cell.scope = "col";
      if (!text) cell.append(make("span", "unseen", "Term"));
      head.append(cell);
    }
    const body = table.createTBody();
    names.forEach((name, k) => {
      const line = body.insertRow();
      const cell = make("th");
      const known = name.startsWith("checkpoint") ? "checkpoint" : name;
      cell.append(document.getElementById(`term-${known}`) ? term(known, name) : name);
      cell.scope = "row";
      line.append(cell, make("td", "number", shown(arrays[k][row])));
    });
    return table;
  }

  form(row) {
    const id = this.rows.id(row);
    return decisionForm({
      own: this.choice.decided.get(id),
      cannotKeep: !this.rows.canBeKept(row),
      decide: (way, why) => this.onDecide(id, decisionOf(way, why)),
    });
  }

  // From the keyboard: set the way and ask for the reason.
  ask(way) {
    this.box.querySelector("form")?.ask(way);
  }
}
