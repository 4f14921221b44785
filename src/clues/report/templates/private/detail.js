// One row in full, and the form to decide about it.

// Text with the searched words marked; always text nodes, whatever the row contains.
function marked(parent, text, words) {
  const lower = text.toLowerCase();
  // Where lower case has another length the places would be wrong: then nothing is marked.
  const wanted = lower.length === text.length ? words : [];
  let at = 0;
  while (at < text.length) {
    let [next, length] = [text.length, 0];
    for (const word of wanted) {
      const found = lower.indexOf(word, at);
      if (found >= 0 && (found < next || (found === next && word.length > length))) [next, length] = [found, word.length];
    }
    if (next > at) parent.append(text.slice(at, next));
    if (length) parent.append(make("mark", "", text.slice(next, next + length)));
    at = next + length;
  }
}

class Detail {
  constructor(box, rows, choice, onDecide) {
    Object.assign(this, { box, rows, choice, onDecide, row: -1, words: [] });
  }

  show(row) {
    const isNew = row !== this.row;
    const top = this.box.querySelector(".read")?.scrollTop ?? 0;
    this.row = row;
    const { rows, choice } = this;
    const head = make("h3", "", `Row ${COUNT.format(row + 1)} `);
    const kept = choice.keptHere(row);
    head.append(make("span", `chip ${kept ? "kept" : "dropped"}`, kept ? "kept" : "dropped"));
    if (kept !== choice.keptNow(row)) head.append(" ", make("span", "chip change", kept ? "dropped in force" : "kept in force"));
    const parts = [head, make("p", "why", choice.reason(row)), make("div", "read")];
    const scores = rows.turnScores(row);
    const worst = Math.min(...scores.values());
    for (const [turn, { role, content }] of rows.turns(row).entries()) {
      const text = make("p", "text");
      text.dir = "auto";
      let done = 0;
      for (const [start, end, says] of rows.marks(row, turn)) {
        if (start < done || end > content.length) continue;
        marked(text, content.slice(done, start), this.words);
        const place = make("span", "found-here");
        place.title = says;
        marked(place, content.slice(start, end), this.words);
        text.append(place);
        done = end;
      }
      marked(text, content.slice(done), this.words);
      const named = make("h4", "", role);
      if (scores.has(turn)) named.append(" ", this.ofTurn(row, scores.get(turn), worst));
      parts[2].append(named, text);
    }
    parts[2].append(this.facts(row), this.terms(row));
    // It scrolls, so the keyboard must reach it.
    Object.assign(parts[2], { tabIndex: 0, role: "group", ariaLabel: `Text of row ${row + 1}` });
    parts.push(this.form(row));
    this.box.replaceChildren(...parts);
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

  facts(row) {
    const { rows } = this;
    const list = make("dl");
    const add = (name, value) => list.append(make("dt", "", name), make("dd", "", value));
    if (rows.header.cutAfter) add("Text", `may be cut: this page shows ${COUNT.format(rows.header.cutAfter)} characters a row`);
    if (rows.arrays.tokens[row]) add("Length", `${COUNT.format(rows.arrays.response[row])} of ${COUNT.format(rows.arrays.tokens[row])} tokens are response`);
    rows.header.losses.forEach((name, k) => add(`Loss ${name}`, `${shown(rows.losses[k][row])} nats`));
    if (rows.header.kinds) add("Known damage", rows.label(row) === "clean" ? "none" : rows.label(row));
    add("Id", rows.id(row));
    const same = rows.withId(rows.id(row)).length;
    if (same > 1) add("Same text", rowsOf(same));
    return list;
  }

  terms(row) {
    const { header, terms, traces } = this.rows;
    const box = make("div");
    box.append(make("h4", "", ""), this.sums(row, "The score is the sum of", header.terms, terms));
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
      const cell = make("th", "", name);
      cell.scope = "row";
      line.append(cell, make("td", "number", shown(arrays[k][row])));
    });
    return table;
  }

  form(row) {
    const { rows, choice } = this;
    const id = rows.id(row);
    const own = choice.decided.get(id);
    const form = make("form", "decide screen");
    const set = make("fieldset");
    set.style.cssText = "border: 0; margin: 0; padding: 0";
    const ways = make("div", "ways");
    const unscored = Number.isNaN(rows.score[row]);
    for (const [value, text] of [["score", "as the score says"], ["keep", "keep"], ["drop", "drop"]]) {
      const label = make("label");
      const input = make("input");
      Object.assign(input, { type: "radio", name: "way", value, disabled: unscored && value === "keep" });
      input.checked = value === (own ? (own.keep ? "keep" : "drop") : "score");
      label.append(input, text);
      ways.append(label);
    }
    const reason = make("label", "reason", "Reason (stays in this silo)");
    const field = make("input", "field");
    Object.assign(field, { type: "text", name: "reason", maxLength: 1000, value: own?.why ?? "", autocomplete: "off" });
    field.setAttribute("list", "reasons");
    reason.append(field);
    const problem = make("p", "problem");
    problem.setAttribute("role", "alert");
    const go = make("div", "go");
    const button = make("button", "", own ? "Change the decision" : "Decide");
    button.type = "submit";
    go.append(button);
    set.append(make("legend", "", "Your decision"), ways);
    form.append(set, reason, go, problem);
    if (unscored) form.append(make("p", "hint", "A row without a score cannot be kept: nothing can be trained on it."));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const way = form.elements.way.value;
      const why = field.value.trim();
      if (way !== "score" && !why) {
        problem.textContent = "Say why: the reason is put beside the row in decisions.csv.";
        field.focus();
        return;
      }
      this.onDecide(id, way === "score" ? null : { keep: way === "keep", why });
    });
    return form;
  }

  // From the keyboard: set the way and ask for the reason.
  ask(way) {
    const form = this.box.querySelector("form");
    const input = form?.querySelector(`input[value="${way}"]`);
    if (!input || input.disabled) return;
    input.checked = true;
    form.elements.reason.focus();
  }
}
