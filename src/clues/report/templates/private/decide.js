// The form that decides, about one row or about many at once.

const CHIPS = {
  keep: ["right as it is", "unusual, but right", "short, but right"],
  drop: ["wrong", "refuses", "cut off", "repeated", "off the subject", "other language", "not readable"],
};
const WAYS = { score: "as it is", keep: "keep", drop: "set aside" };

// A form; `decide(way, why)` is called with "score", "keep" or "drop".
function decisionForm({ own, cannotKeep, many, decide }) {
  const form = make("form", "decide screen");
  const set = make("fieldset");
  const ways = make("div", "ways");
  for (const [value, text] of Object.entries(WAYS)) {
    const label = make("label");
    const input = make("input");
    Object.assign(input, { type: "radio", name: "way", value, disabled: cannotKeep && value === "keep" });
    input.checked = value === (own ? (own.keep ? "keep" : "drop") : "score");
    label.append(input, text);
    ways.append(label);
  }
  const legend = make("legend");
  legend.append(term("decision", many ? `Your decision about ${rowsOf(many)}` : "Your decision"));
  set.append(legend, ways);
  const chips = make("div", "chips");
  chips.setAttribute("role", "group");
  chips.setAttribute("aria-label", "Common reasons");
  const reason = make("label", "reason", "Reason (stays in this silo)");
  const field = make("input", "field");
  Object.assign(field, { type: "text", name: "reason", maxLength: 1000, value: own?.why ?? "", autocomplete: "off" });
  field.setAttribute("list", "reasons");
  reason.append(field);
  const problem = make("p", "problem");
  problem.setAttribute("role", "alert");
  const button = make("button", "main");
  button.type = "submit";
  const go = make("div", "go");
  go.append(button);
  const drawChips = () => {
    const way = form.elements.way.value;
    chips.replaceChildren(...(CHIPS[way] ?? []).map((text) => {
      const chip = make("button", "preset", text);
      chip.type = "button";
      chip.addEventListener("click", () => {
        field.value = text;
        button.focus();
      });
      return chip;
    }));
    reason.hidden = way === "score";
    button.textContent = many ? `Decide about ${rowsOf(many)}` : own ? "Change the decision" : way === "score" ? "Leave as it is" : "Decide";
  };
  form.append(set, chips, reason, go, problem);
  if (cannotKeep) form.append(make("p", "hint", "A row without a score cannot be kept: nothing can be trained on it."));
  form.addEventListener("change", drawChips);
  drawChips();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [way, why] = [form.elements.way.value, field.value.trim()];
    if (way !== "score" && !why) {
      problem.textContent = "Say why: the reason is put beside the row in decisions.csv.";
      field.focus();
      return;
    }
    decide(way, why);
  });
  form.ask = (way) => {
    const input = form.querySelector(`input[value="${way}"]`);
    if (!input || input.disabled) return;
    input.checked = true;
    drawChips();
    field.focus();
  };
  return form;
}

const decisionOf = (way, why) => (way === "score" ? null : { keep: way === "keep", why });

// Several rows at once: which are ticked, and the form about them.
class Several {
  constructor(rows, choice, onDecide, onTick) {
    Object.assign(this, { rows, choice, onDecide, onTick, ticked: new Set() });
    const get = (id) => document.getElementById(id);
    Object.assign(this, { all: get("tick-all"), none: get("tick-none"), box: get("several") });
    this.all.addEventListener("click", () => this.tick(this.found, true));
    this.none.addEventListener("click", () => {
      this.tick([...this.ticked], false);
      this.all.focus();
    });
  }

  // What the list shows now, so that all of it can be ticked.
  offer(found) {
    this.found = found;
    this.draw();
  }

  tick(rows, on) {
    for (const row of rows) on ? this.ticked.add(row) : this.ticked.delete(row);
    this.draw();
    this.onTick();
  }

  toggle(row) {
    this.tick([row], !this.ticked.has(row));
  }

  draw() {
    const n = this.ticked.size;
    this.all.disabled = !this.found?.length || this.found.every((row) => this.ticked.has(row));
    this.all.textContent = this.found?.length > 1 ? `Tick all ${COUNT.format(this.found.length)}` : "Tick it";
    this.none.hidden = !n;
    this.box.hidden = !n;
    if (!n) {
      this.box.replaceChildren();
      return;
    }
    const able = [...this.ticked].filter((row) => this.rows.canBeKept(row));
    this.box.replaceChildren(decisionForm({
      many: n,
      cannotKeep: !able.length,
      decide: (way, why) => {
        const of = way === "keep" ? able : [...this.ticked];
        const ids = new Set(of.map((row) => this.rows.id(row)));
        this.tick([...this.ticked], false);
        this.onDecide([...ids], decisionOf(way, why));
        this.all.focus();
      },
    }));
  }
}
