// What another threshold would keep: the slider, the figures, and a wish for it.

class WhatIf {
  constructor(rows, choice, { onMove, onRest, onWish }) {
    Object.assign(this, { rows, choice, onMove, onRest, onWish });
    this.wire();
  }

  wire() {
    const { low, high } = this.rows.header;
    const [slider, number] = [get("slider"), get("number")];
    const step = 10 ** Math.floor(Math.log10((high - low) / 200));
    Object.assign(slider, { min: low, max: high, step, value: this.choice.value, disabled: false });
    Object.assign(number, { disabled: false });
    slider.addEventListener("input", () => this.move(slider.valueAsNumber));
    number.addEventListener("change", () => this.move(Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : this.choice.inForce));
    get("back").addEventListener("click", () => {
      this.move(this.choice.inForce);
      slider.focus();
    });
    get("wish").addEventListener("click", () => this.onWish());
    const plot = get("plot");
    const drag = (event) => {
      const box = plot.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width;
      const [left, right] = this.span();
      this.move(low + ((place - left) / (right - left)) * (high - low));
    };
    plot.addEventListener("pointerdown", (event) => {
      plot.setPointerCapture(event.pointerId);
      drag(event);
    });
    plot.addEventListener("pointermove", (event) => plot.hasPointerCapture(event.pointerId) && drag(event));
    new ResizeObserver(() => this.drawThreshold()).observe(plot);
  }

  // Where the data area of the visible figure begins and ends, as shares of its width.
  span() {
    const charts = [...document.querySelectorAll(".chart")];
    const chart = charts.find((c) => c.clientWidth > 0) ?? charts[0];
    return [Number(chart.dataset.left), Number(chart.dataset.right)];
  }

  move(value) {
    // Moved within a tick of the one in force means that one, digit for digit.
    const { low, high } = this.rows.header;
    const near = Math.abs(value - this.choice.inForce) < (high - low) / 500;
    this.choice.value = near ? this.choice.inForce : Math.round(value * 1e4) / 1e4;
    if (!this.pending) {
      this.pending = requestAnimationFrame(() => {
        this.pending = 0;
        this.onMove();
        // The list follows when the slider rests: re-sorting 100,000 rows at every pixel helps nobody.
        clearTimeout(this.timer);
        this.timer = setTimeout(this.onRest, 120);
      });
    }
  }

  drawThreshold() {
    const { low, high } = this.rows.header;
    const value = this.choice.value;
    const [left, right] = this.span();
    const share = Math.max(0, Math.min(1, (value - low) / (high - low)));
    for (const chart of document.querySelectorAll(".chart")) {
      const gradient = chart.querySelector(".split");
      gradient.setAttribute("x1", 0);
      gradient.setAttribute("x2", chart.querySelector("svg").viewBox.baseVal.width);
      const [from, to] = [Number(chart.dataset.left), Number(chart.dataset.right)];
      for (const stop of gradient.children) stop.setAttribute("offset", from + share * (to - from));
    }
    const slider = get("slider").parentElement.style;
    slider.setProperty("--left", `${100 * left}%`);
    slider.setProperty("--right", `${100 * (1 - right)}%`);
    get("here").hidden = value === this.choice.inForce;
    get("here").style.left = `${100 * (left + share * (right - left))}%`;
    if (document.activeElement !== get("slider")) get("slider").value = value;
    get("slider").setAttribute("aria-valuetext", shown(value));
    if (document.activeElement !== get("number") || value === this.choice.inForce) get("number").value = Number.isFinite(value) ? Number(value.toFixed(4)) : "";
    get("back").disabled = value === this.choice.inForce;
    get("wish").disabled = value === this.choice.inForce;
  }

  drawFigures() {
    const [all] = this.choice.counts(null, 1);
    const plain = [
      ["kept", "Kept rows", all.now, all.here, (x) => COUNT.format(x)],
      ["set aside", "Set aside", all.n - all.now, all.n - all.here, (x) => COUNT.format(x)],
      ["keep rate", "Keep rate", all.now / all.n, all.here / all.n, percent],
    ];
    const more = [["threshold", "Threshold", this.choice.inForce, this.choice.value, shown]];
    if (this.rows.header.kinds) {
      more.push(["clean recall", "Clean recall", all.cleanNow / all.clean, all.cleanHere / all.clean, percent], ["precision", "Precision", all.cleanNow / all.now, all.cleanHere / all.here, percent]);
    }
    const few = all.here < this.rows.header.minKept || all.here === all.n;
    const moved = all.gained || all.lost ? `${rowsOf(all.gained)} would come in, ${rowsOf(all.lost)} would go out.` : "No row changes sides.";
    get("moved").textContent = few ? `${moved} A selection like this is refused: it keeps ${all.here === all.n ? "every row" : `fewer than ${COUNT.format(this.rows.header.minKept)} rows`}.` : moved;
    if (document.activeElement?.closest("#figures, #statistics")) return; // a word of it is being explained
    for (const [id, lines] of [["figures", plain], ["statistics", more]]) {
      get(id).tBodies[0].replaceChildren(...lines.map((line) => this.line(...line)));
    }
  }

  line(name, text, now, here, show) {
    const line = make("tr");
    const head = make("th");
    head.scope = "row";
    head.append(term(name, text));
    const cell = make("td", "number");
    cell.append(make("strong", "", show(here)));
    const change = Number.isFinite(here - now) ? here - now : 0;
    line.append(head, make("td", "number faint", show(now)), cell, make("td", "number change", change ? signed(change, show === percent ? `${(100 * change).toFixed(1)} points` : show(change)) : "\u2013"));
    return line;
  }

  // What a reader asks for; nothing where the slider stands at the threshold in force.
  wanted() {
    const { value, inForce } = this.choice;
    if (value === inForce || !Number.isFinite(inForce)) return null;
    const [all] = this.choice.counts(null, 1);
    return { threshold: value, in_force: inForce, kept: all.here, kept_in_force: all.now };
  }
}
