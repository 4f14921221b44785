// What a person decided: shown, kept over a reload, exported as a file with ids and no row text.

class Decisions {
  constructor(rows, choice, onChange, onOpen) {
    Object.assign(this, { rows, choice, onChange, onOpen, exported: new Map(choice.ruled) });
    this.key = `clues ${rows.header.silo} ${rows.header.recipe} ${rows.n} ${rows.id(0)}`;
    this.restore();
    const get = (id) => document.getElementById(id);
    Object.assign(this, { table: get("decisions"), none: get("none"), button: get("export"), take: get("take"), unsaved: get("unsaved"), command: get("command") });
    this.reasons = make("datalist");
    this.reasons.id = "reasons";
    document.body.append(this.reasons);
    this.button.addEventListener("click", () => this.save());
    this.take.addEventListener("click", () => {
      for (const [id, keep, why] of this.waiting()) this.set(id, { keep, why });
      this.button.focus();
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

  set(id, decision) {
    this.choice.decide(id, decision);
    this.remember();
    this.draw();
    this.onChange();
  }

  static same(a, b) {
    return a?.keep === b?.keep && a?.why === b?.why;
  }

  differs(from) {
    const ids = new Set([...from.keys(), ...this.choice.decided.keys()]);
    return [...ids].some((id) => !Decisions.same(from.get(id), this.choice.decided.get(id)));
  }

  isUnsaved() {
    return this.differs(this.exported);
  }

  state(id) {
    const [old, own] = [this.choice.ruled.get(id), this.choice.decided.get(id)];
    if (!own) return "taken back";
    return !old ? "new" : Decisions.same(old, own) ? "in force" : "changed";
  }

  draw() {
    const { decided, ruled } = this.choice;
    const ids = [...new Set([...ruled.keys(), ...decided.keys()])];
    this.table.hidden = !ids.length;
    this.none.hidden = Boolean(ids.length);
    this.table.tBodies[0].replaceChildren(...ids.map((id) => this.line(id)));
    const changed = this.differs(ruled);
    this.button.disabled = !changed && !decided.size;
    this.button.textContent = decided.size ? `Export ${COUNT.format(decided.size)} ${decided.size === 1 ? "decision" : "decisions"}` : changed ? "Export: no decision any more" : "Nothing to export";
    this.unsaved.textContent = this.isUnsaved() ? "Not exported yet." : changed ? "Exported, and not yet in force." : "";
    const waiting = this.waiting().length;
    this.take.hidden = !waiting;
    this.take.textContent = `Take over ${COUNT.format(waiting)} from another recipe`;
    this.take.title = "Decided when the rows had other scores, and not in force under this recipe";
    this.reasons.replaceChildren(...[...new Set([...decided.values()].map((d) => d.why))].map((why) => Object.assign(make("option"), { value: why })));
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
    undo.addEventListener("click", () => this.set(id, this.choice.decided.has(id) ? null : this.choice.ruled.get(id)));
    const last = make("td", "number screen");
    last.append(undo);
    line.append(name, make("td", "", own.keep ? "keep" : "drop"), make("td", "reason", own.why), make("td", "faint", this.state(id)), last);
    return line;
  }

  content() {
    const overrides = [...this.choice.decided].map(([id, { keep, why }]) => ({ id, keep, reason: why }));
    return { format: "clues-overrides", version: 1, silo: this.rows.header.silo, recipe_hash: this.rows.header.recipe, overrides };
  }

  save() {
    const name = `overrides-${this.rows.header.silo}.json`;
    const blob = new Blob([`${JSON.stringify(this.content(), null, 2)}\n`], { type: "application/json" });
    const link = Object.assign(make("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.exported = new Map(this.choice.decided);
    this.command.hidden = false;
    this.command.textContent = `clues select CONFIG --overrides ${name}   # puts them in force\nclues run CONFIG   # trains and measures anew`;
    this.draw();
  }
}
