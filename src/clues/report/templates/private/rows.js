// Rows by number: ids, texts, words for the reader. Nothing here knows of the threshold.

const TURN = "\u001e", ROLE = "\u001f";
const NUMBER = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const COUNT = new Intl.NumberFormat("en");
const MINUS = (text) => text.replace("-", "\u2212");
const shown = (x) => (Number.isFinite(x) ? MINUS(NUMBER.format(x)) : "\u2013");
const percent = (x) => (Number.isFinite(x) ? `${(100 * x).toFixed(1)} %` : "\u2013");
const signed = (x, text) => (x > 0 ? `+${text}` : x < 0 ? MINUS(text) : "\u00b10");
const rowsOf = (n) => `${COUNT.format(n)} ${n === 1 ? "row" : "rows"}`;

class Rows {
  constructor({ header, arrays }) {
    // What is compared with the threshold: the row's score, or that of one of its turns.
    Object.assign(this, { header, arrays, n: arrays.score.length, score: arrays.score, decides: arrays.decides ?? arrays.score });
    this.decoder = new TextDecoder();
    this.terms = header.terms.map((_, k) => arrays[`term${k}`]);
    this.traces = header.traces.map((_, k) => arrays[`trace${k}`]);
    this.losses = header.losses.map((_, k) => arrays[`loss${k}`]);
    // By score, the lowest first; rows without a score come last, as in the file.
    this.byScore = Uint32Array.from({ length: this.n }, (_, i) => i);
    this.byScore.sort((a, b) => {
      const [x, y] = [this.score[a], this.score[b]];
      return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) || a - b : x - y || a - b;
    });
    this.nScored = this.n;
    while (this.nScored && Number.isNaN(this.score[this.byScore[this.nScored - 1]])) this.nScored--;
  }

  id(row) {
    let text = "";
    for (let k = 8 * row; k < 8 * row + 8; k++) text += this.arrays.id[k].toString(16).padStart(2, "0");
    return text;
  }

  // Rows of a text, by content id: several where the very same text comes again.
  withId(id) {
    if (!this.places) {
      this.places = new Map();
      for (let row = 0; row < this.n; row++) {
        const key = this.id(row);
        if (this.places.has(key)) this.places.get(key).push(row);
        else this.places.set(key, [row]);
      }
    }
    return this.places.get(id) ?? [];
  }

  raw(row) {
    const { text, textEnd } = this.arrays;
    return this.decoder.decode(text.subarray(row ? textEnd[row - 1] : 0, textEnd[row]));
  }

  turns(row) {
    return this.raw(row).split(TURN).map((turn) => {
      const [role, content = ""] = turn.split(ROLE);
      return { role, content };
    });
  }

  // The reason that decisions.csv gives, as a sentence.
  storedReason(row) {
    const { reason, reasonEnd } = this.arrays;
    if (!reasonEnd.length) return "";
    const whole = this.decoder.decode(reason.subarray(row ? reasonEnd[row - 1] : 0, reasonEnd[row]));
    // Where words say why, the number stands with the other numbers.
    const text = whole.replace(/(.); score \S+ is (not )?below \S+$/, "$1");
    return text && `${text[0].toUpperCase()}${text.slice(1)}.`;
  }

  // Places of a row's turn that show what was found: [start, end, what it says, level], in order.
  marks(row, turn) {
    const { markRow, markTurn, markStart, markEnd, markSays, markLevel } = this.arrays;
    const found = [];
    for (let k = 0; k < markRow.length; k++) {
      if (markRow[k] === row && markTurn[k] === turn) found.push([markStart[k], markEnd[k], this.header.says[markSays[k]], markLevel[k]]);
    }
    return found.sort((a, b) => a[0] - b[0]);
  }

  // Scores of a row's turns by their place; empty where it has one turn, or turns have no scores.
  turnScores(row) {
    const { turnRow, turnPlace, turnScore } = this.arrays;
    // Lines are in the order of the rows.
    let [low, high] = [0, turnRow.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (turnRow[middle] < row) low = middle + 1;
      else high = middle;
    }
    const found = new Map();
    for (let k = low; k < turnRow.length && turnRow[k] === row; k++) found.set(turnPlace[k], turnScore[k]);
    return found;
  }

  // A person may keep it: it has a score, or was set aside before it got one.
  canBeKept(row) {
    return !Number.isNaN(this.score[row]) || Boolean(this.arrays.usable?.[row]);
  }

  whyUnscored(row) {
    return this.header.reasons[this.arrays.why[row] - 1] ?? "";
  }

  label(row) {
    if (!this.header.kinds) return null;
    const code = this.arrays.label[row];
    return code ? this.header.kinds[code - 1] : "clean";
  }

  // One lower-case text of all rows, and where each row begins in it; made at the first search.
  index() {
    if (!this.lower) {
      const parts = new Array(this.n);
      this.starts = new Uint32Array(this.n + 1);
      let at = 0;
      for (let row = 0; row < this.n; row++) {
        // Lower case first: it can be longer than the text was.
        parts[row] = `${this.id(row)}${TURN}${this.raw(row).toLowerCase()}`;
        this.starts[row] = at;
        at += parts[row].length + 1;
      }
      this.starts[this.n] = at;
      this.lower = parts.join(TURN);
    }
    return this.lower;
  }

  // 1 for every row that holds all words, null where no word is asked for.
  search(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return null;
    const text = this.index();
    // The longest word is in the fewest rows; only there the others are looked for.
    words.sort((a, b) => b.length - a.length);
    const hits = new Uint8Array(this.n);
    let row = 0;
    for (let at = text.indexOf(words[0]); at >= 0; at = text.indexOf(words[0], this.starts[row + 1])) {
      row = this.rowAt(at, row);
      const [from, to] = [this.starts[row], this.starts[row + 1]];
      hits[row] = words.slice(1).every((word) => {
        const found = text.indexOf(word, from);
        return found >= 0 && found < to;
      });
      if (row + 1 >= this.n) break;
    }
    return hits;
  }

  rowAt(place, from) {
    let [low, high] = [from, this.n - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= place) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
