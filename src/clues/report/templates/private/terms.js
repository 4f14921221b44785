// Words that the page explains: one box for all of them, on hover, focus or touch.

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// A word with its explanation from the list at the page's end.
function term(name, text = name) {
  const element = make("span", "term", text);
  element.dataset.term = name;
  return explained(element);
}

function explained(element) {
  element.tabIndex = 0;
  element.setAttribute("role", "note");
  element.setAttribute("aria-describedby", `term-${element.dataset.term.replaceAll(" ", "-")}`);
  return element;
}

class Terms {
  constructor() {
    this.box = make("div", "tip screen");
    this.box.hidden = true;
    this.box.setAttribute("aria-hidden", "true"); // a reader of the screen has the description
    document.body.append(this.box);
    for (const element of document.querySelectorAll(".term")) explained(element);
    const about = (event) => event.target.closest?.(".term");
    for (const kind of ["pointerover", "focusin", "click"]) {
      document.addEventListener(kind, (event) => {
        const element = about(event);
        if (element) this.show(element);
        else if (kind === "click") this.hide();
      });
    }
    document.addEventListener("pointerout", (event) => about(event) && about(event) !== document.activeElement && this.hide());
    document.addEventListener("focusout", (event) => about(event) && this.hide());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    document.addEventListener("scroll", () => {
      // What Escape has put away stays away, and the box goes along with its word.
      if (this.box.hidden) return;
      const word = document.activeElement;
      word?.matches(".term") ? this.show(word) : this.hide();
    }, { capture: true, passive: true });
  }

  show(element) {
    const meaning = document.getElementById(element.getAttribute("aria-describedby"));
    if (!meaning) return;
    this.box.textContent = meaning.textContent;
    this.box.hidden = false;
    const [word, tip] = [element.getBoundingClientRect(), this.box.getBoundingClientRect()];
    const left = Math.min(Math.max(8, word.left), document.documentElement.clientWidth - tip.width - 8);
    const below = word.bottom + 6;
    const top = below + tip.height < window.innerHeight ? below : Math.max(8, word.top - tip.height - 6);
    Object.assign(this.box.style, { left: `${Math.max(8, left)}px`, top: `${top}px` });
  }

  hide() {
    this.box.hidden = true;
  }
}
