// Keep rates by a column of the rows.

class Groups {
  constructor(rows, choice, codes, onShow) {
    Object.assign(this, { rows, choice, codes, onShow });
    const select = get("by");
    select.replaceChildren(...rows.header.groupings.map((g, k) => Object.assign(make("option", "", g.name), { value: k })));
    select.disabled = false;
    select.addEventListener("change", () => this.draw());
  }

  draw() {
    const by = Number(get("by").value);
    const { values, note } = this.rows.header.groupings[by];
    const labels = this.rows.header.kinds;
    const counts = this.choice.counts(this.codes[by], values.length);
    get("by-note").textContent = note;
    const names = ["Group", "Rows", "Kept", "Keep rate", "", ...(labels ? ["Clean recall"] : [])];
    const head = make("tr");
    head.append(...names.map((name, k) => {
      const cell = make("th", k && k < 4 ? "number" : k === 4 ? "bar" : k ? "number" : "", name);
      cell.scope = "col";
      if (!name) cell.append(make("span", "unseen", "Keep rate as a bar"));
      return cell;
    }));
    get("groups").tHead.replaceChildren(head);
    get("groups").tBodies[0].replaceChildren(...values.flatMap((value, code) => {
      const count = counts[code];
      if (!count.n) return [];
      const line = make("tr");
      const name = make("th");
      name.scope = "row";
      const button = make("button", "link", value);
      button.type = "button";
      button.title = "Show these rows";
      button.addEventListener("click", () => this.onShow(by, code));
      name.append(button);
      const meter = make("div", "meter");
      const [bar, tick] = [make("b"), make("i")];
      bar.style.width = `${(100 * count.here) / count.n}%`;
      tick.style.left = `calc(${(100 * count.now) / count.n}% - 1px)`;
      meter.append(bar, tick);
      const cell = make("td", "bar");
      cell.append(meter);
      line.append(name, make("td", "number", COUNT.format(count.n)), make("td", "number", COUNT.format(count.here)), make("td", "number", percent(count.here / count.n)), cell);
      if (labels) line.append(make("td", "number", count.clean ? percent(count.cleanHere / count.clean) : "\u2013"));
      return [line];
    }));
  }
}
