// What a person decided: shown, kept over a reload, exported as a file with ids and no row text.

class Decisions {
  constructor(rows, choice, key, { reading, onChange, onOpen }) {
    Object.assign(this, { rows, choice, reading, key, onChange, onOpen, wish: null, exported: new Map(choice.ruled), exportedWish: null });
    this.restore();
    for (const id of ["decisions", "none", "export", "take", "unsaved", "send-back", "command", "copy", "reviewer", "wished"]) this[id] = document.getElementById(id);
    this.reasons = make("datalist");
    this.reasons.id = "reasons";
    document.body.append(this.reasons);
    this.export.addEventListener("click", () => this.save());
    this.copy.addEventListener("click", () => this.copyCommand());
    this.reviewer.addEventListener("input", () => this.draw());
    this.take.addEventListener("click", () => {
      for (const [id, keep, why] of this.waiting()) this.set([id], { keep, why });
      this.export.focus();
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.isUnsaved()) event.preventDefault();
    });
  }

  // A reload must not lose an hour of reading; the tab's own storage ends with the tab.
  remember() {
    try {
      sessionStorage.setItem(this.key, JSON.stringify([...this.choice.decided]));
    } catch {
      this.key = ""; // storage is switched off: the page asks before it is left
    }
  }

  restore() {
    let stored = null;
    try {
      stored = JSON.parse(sessionStorage.getItem(this.key));
    } catch {
      return;
    }
    // What another selection put in force since then is not undone by an old tab.
    for (const [id, decision] of stored ?? []) {
      if (this.rows.withId(id).length && !this.choice.ruled.has(id)) this.choice.decide(id, decision);
    }
  }

  waiting() {
    return this.rows.header.waiting.filter(([id]) => this.rows.withId(id).length && !this.choice.decided.has(id));
  }

  // One decision about the rows of these ids; null takes back what was decided.
  set(ids, decision) {
    for (const id of ids) this.choice.decide(id, decision);
    this.remember();
    this.draw();
    this.onChange();
  }

  // A wish for another threshold, or null.
  ask(wish) {
    this.wish = wish;
    this.draw();
  }

  differs(from) {
    const ids = new Set([...from.keys(), ...this.choice.decided.keys()]);
    return [...ids].some((id) => !Choice.same(from.get(id), this.choice.decided.get(id)));
  }

  isUnsaved() {
    return this.differs(this.exported) || this.wish?.threshold !== this.exportedWish?.threshold;
  }

  state(id) {
    const [old, own] = [this.choice.ruled.get(id), this.choice.decided.get(id)];
    if (!own) return "taken back";
    return !old ? "new" : Choice.same(old, own) ? "in force" : "changed";
  }

  draw() {
    const { decided, ruled } = this.choice;
    const mine = new Map(this.choice.mine());
    const ids = [...new Set([...ruled.keys(), ...decided.keys()])].filter((id) => mine.has(id) || !decided.has(id));
    this.decisions.hidden = !ids.length;
    this.none.hidden = Boolean(ids.length);
    this.decisions.tBodies[0].replaceChildren(...ids.map((id) => this.line(id)));
    const changed = this.differs(ruled);
    const has = [];
    if (mine.size) has.push(`${COUNT.format(mine.size)} ${mine.size === 1 ? "decision" : "decisions"}`);
    else if (changed) has.push("no decision any more");
    if (this.wish) has.push("a wish");
    if (!has.length && this.reading.ids.size) has.push(`${rowsOf(this.reading.ids.size)} read, nothing to change`);
    this.export.disabled = !has.length;
    this.export.textContent = has.length ? `Export ${has.join(" and ")}` : "Nothing to export";
    this.unsaved.textContent = this.isUnsaved() ? "Not exported yet." : changed ? "Exported, and not yet in force." : "";
    this.drawWish();
    const waiting = this.waiting().length;
    this.take.hidden = !waiting;
    this.take.textContent = `Take over ${COUNT.format(waiting)} from another recipe`;
    this.take.title = "Decided when the rows had other scores, and not in force under this recipe";
    this["send-back"].hidden = !has.length;
    this.command.textContent = this.sentence();
    this.reasons.replaceChildren(...[...new Set([...mine.values()].map((d) => d.why))].map((why) => Object.assign(make("option"), { value: why })));
  }

  drawWish() {
    this.wished.hidden = !this.wish;
    if (!this.wish) return;
    const { threshold, in_force, kept, kept_in_force } = this.wish;
    const back = make("button", "", "Take back");
    back.type = "button";
    back.setAttribute("aria-label", "Take back the wish");
    back.addEventListener("click", () => this.ask(null));
    this.wished.replaceChildren(`Your wish: threshold ${shown(threshold)} instead of ${shown(in_force)}, which keeps ${rowsOf(kept)} instead of ${COUNT.format(kept_in_force)}. `, back);
  }

  line(id) {
    const own = this.choice.decided.get(id) ?? this.choice.ruled.get(id);
    const places = this.rows.withId(id);
    const line = make("tr");
    const name = make("th");
    name.scope = "row";
    const open = make("button", "link", `${COUNT.format(places[0] + 1)}${places.length > 1 ? ` and ${places.length - 1} more` : ""}`);
    open.type = "button";
    open.addEventListener("click", () => this.onOpen(places[0]));
    name.append(open);
    const undo = make("button", "", this.choice.decided.has(id) ? "Take back" : "Put back");
    undo.type = "button";
    undo.setAttribute("aria-label", `${undo.textContent} the decision about row ${places[0] + 1}`);
    undo.addEventListener("click", () => this.set([id], this.choice.decided.has(id) ? null : this.choice.ruled.get(id)));
    const last = make("td", "number screen");
    last.append(undo);
    line.append(name, make("td", "", own.keep ? "keep" : "set aside"), make("td", "reason", own.why), make("td", "faint", this.state(id)), last);
    return line;
  }

  content() {
    const overrides = this.choice.mine().map(([id, { keep, why }]) => ({ id, keep, reason: why }));
    const { silo, recipe } = this.rows.header;
    return { format: "clues-overrides", version: 1, silo, recipe_hash: recipe, reviewer: this.reviewer.value.trim(), overrides, read: this.reading.content(), wish: this.wish };
  }

  file() {
    const who = this.reviewer.value.trim().replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "");
    return `overrides-${this.rows.header.silo}${who ? `-${who}` : ""}.json`;
  }

  // What goes with the file, ready to be sent.
  sentence() {
    const decided = this.choice.mine();
    const wish = this.wish ? `, and I wish for threshold ${shown(this.wish.threshold)}` : "";
    const { silo, cleans } = this.rows.header;
    const told = `I have read ${rowsOf(this.reading.ids.size)} of ${cleans ?? silo} and decided about ${COUNT.format(decided.length)}${wish}; the file ${this.file()} says which and why.`;
    const next = cleans
      ? [`To put it in force: the same clues clean command as before, with --overrides ${this.file()} at its end`]
      : [`To put it in force: clues select CONFIG --overrides ${this.file()}`, "Then, where a joint model is trained: clues run CONFIG"];
    return [told, ...next].join("\n");
  }

  async copyCommand() {
    try {
      await navigator.clipboard.writeText(this.command.textContent);
      this.copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(this.command); // without a clipboard it can be copied by hand
      this.copy.textContent = "Selected: copy it with the keyboard";
    }
  }

  save() {
    const blob = new Blob([`${JSON.stringify(this.content(), null, 2)}\n`], { type: "application/json" });
    const link = Object.assign(make("a"), { href: URL.createObjectURL(blob), download: this.file() });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    Object.assign(this, { exported: new Map(this.choice.decided), exportedWish: this.wish });
    this.draw();
  }
}
