// Making elements. Text is always text: nothing that comes from data is ever
// read as markup.

const PATHS = {
  back: "M15 5l-7 7 7 7",
  chevron: "M9 5l7 7-7 7",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l4.5 4.5",
  share: "M12 15V4M8 7.5L12 3.5l4 4M6 12v8h12v-8",
  leave: "M13 4h6v16h-6M9 8l-4 4 4 4M5 12h10",
  retry: "M19 8a8 8 0 1 0 1 5M19.5 3.5V8.5H14.5",
  terminal: "M4 6l5 6-5 6M12 18h8",
  wave: "M4 10v4M8 6.5v11M12 4v16M16 7.5v9M20 10v4",
};

/** An element with attributes and children; what is null or false is left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A drawing that says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

/** A button with an icon. */
export function button(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "button", onclick, ...attributes }, icon(name), h("span", {}, label));
}

let heardTimer = null;

/** Says something to a screen reader. */
export function say(text) {
  const heard = document.getElementById("heard");
  heard.textContent = "";
  clearTimeout(heardTimer);
  // The same words said again are only heard when they were gone in between.
  heardTimer = setTimeout(() => {
    heard.textContent = text;
  }, 50);
}

/** Copies a text; where the browser does not let us, the text is selected for the reader. */
export async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    if (shown) getSelection().selectAllChildren(shown);
    return Boolean(shown) && document.execCommand("copy");
  }
}

/** A button that copies, and says so. */
export function copyButton(label, text, shown = null) {
  const name = h("span", {}, label);
  let back = null;
  const show = (words, drawing) => {
    name.textContent = words;
    made.replaceChildren(icon(drawing), name);
    made.classList.toggle("done", drawing === "check");
  };
  const made = h("button", { type: "button", class: "button" }, icon("copy"), name);
  made.addEventListener("click", async () => {
    const done = await copy(text(), shown);
    show(done ? "Copied" : "Press Ctrl+C", done ? "check" : "copy");
    say(name.textContent);
    clearTimeout(back);
    back = setTimeout(() => show(label, "copy"), 2_000);
  });
  return made;
}
