// A search box that proposes what it finds, after the combobox pattern of the ARIA Authoring Practices.

import { newest } from "./api.js";
import { element, freshId } from "./elements.js";

/**
 * Fills `root` with a labelled search box. `find(text, signal)` resolves to matches, `show(match)` is the element of
 * one, and `pick(match)` is told of the reader's choice and answers with the text to leave in the box.
 */
export function search(root, { label, hint, find, show, pick }) {
  const [inputId, listId] = [freshId(), freshId()];
  const list = element("ul", { id: listId, role: "listbox", "aria-label": label, class: "matches", hidden: true });
  const told = element("p", { class: "quiet", role: "status" });
  const input = element("input", {
    id: inputId,
    type: "text",
    role: "combobox",
    placeholder: hint,
    autocomplete: "off",
    spellcheck: "false",
    "aria-autocomplete": "list",
    "aria-expanded": "false",
    "aria-controls": listId,
  });
  root.append(element("label", { for: inputId, class: "block" }, label), input, list, told);
  let matches = [];
  let active = -1;

  const ask = newest({
    ask: find,
    show: (found, text) => text === input.value && offer(found),
    fail: refuse,
    wait: 80,
  });

  function offer(found) {
    if (document.activeElement !== input) return;
    matches = found;
    list.replaceChildren(...found.map(option));
    if (!found.length) list.append(element("li", { class: "none", role: "presentation" }, "Nothing found"));
    told.textContent = found.length === 1 ? "1 match" : `${found.length} matches`;
    open(true);
  }
  function refuse(error) {
    list.replaceChildren(element("li", { class: "none", role: "presentation" }, error.message));
    told.textContent = error.message;
    matches = [];
    open(true);
  }
  function option(match, place) {
    const node = element("li", { id: freshId(), role: "option", "aria-selected": "false" }, show(match));
    node.addEventListener("mousedown", (event) => event.preventDefault()); // the box keeps the focus
    node.addEventListener("click", () => choose(place));
    return node;
  }
  function open(yes) {
    list.hidden = !yes;
    input.setAttribute("aria-expanded", String(yes));
    point(-1);
  }
  function point(place) {
    const options = list.querySelectorAll("[role=option]");
    options[active]?.setAttribute("aria-selected", "false");
    active = place;
    options[active]?.setAttribute("aria-selected", "true");
    options[active]?.scrollIntoView({ block: "nearest" });
    if (active < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", options[active].id);
  }
  function choose(place) {
    input.value = pick(matches[place]);
    open(false);
  }
  function key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (list.hidden) ask(input.value);
      else if (matches.length) point((active + step + matches.length + (active < 0 && step < 0)) % matches.length);
    } else if (event.key === "Enter" && !list.hidden && matches.length) {
      event.preventDefault();
      choose(Math.max(active, 0));
    } else if (event.key === "Escape" && !list.hidden) {
      open(false);
    }
  }
  input.addEventListener("input", () => ask(input.value));
  input.addEventListener("click", () => list.hidden && ask(input.value));
  input.addEventListener("focus", () => input.select());
  input.addEventListener("keydown", key);
  input.addEventListener("blur", () => open(false));
  return {
    set: (text) => {
      input.value = text;
    },
  };
}
