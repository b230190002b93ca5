// Building the page. Names, ids and titles come from data anyone may have written: they enter as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** A new element. Attributes that are null or false are left out; children are nodes or text. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** A new SVG element, made like {@link element}. */
export function drawing(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** `text` with its control characters shown as pictures (a new line as ␊) and broken surrogates replaced. */
export function visible(text) {
  return String(text)
    .toWellFormed()
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCodePoint(0x2400 + c.codePointAt(0)))
    .replace(/[\u007f-\u009f]/g, "\u2421");
}

/** A string from the data as an element of its own, so that its writing direction cannot reorder its neighbors. */
export function quoted(text, classes = null) {
  return element("bdi", { class: classes }, visible(text));
}

/** `text` for a drawing, where {@link quoted} cannot be: cut to `most` characters, its writing direction kept in. */
export function enclosed(text, most = 22) {
  const whole = [...visible(text)];
  const cut = whole.length > most ? `${whole.slice(0, most - 1).join("")}…` : whole.join("");
  return `\u2068${cut}\u2069`;
}

/** The element whose id is `id` in the page's own HTML. */
export function byId(id) {
  return document.getElementById(id);
}

let made = 0;

/** An id no other element has; never made of data. */
export function freshId() {
  made += 1;
  return `made-${made}`;
}

/** Sets a CSS custom property, which the policy of this page allows where a style attribute is refused. */
export function property(node, name, value) {
  node.style.setProperty(name, String(value));
  return node;
}
