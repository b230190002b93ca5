// How an item or user is named: its title where there is one, tags and year beside it, its raw id always.

import { element, quoted, visible } from "./elements.js";

const MOST_TAGS = 6; // of one column
const MOST_COLUMNS = 4;
const ADDRESS = /^https?:/; // says nothing about an item to people

/** The name of an item or user as plain text, for labels read aloud. */
export function title(id, display, model) {
  const column = model.display?.title;
  return visible((column && display?.[column]) || id);
}

/** An item or user as an element: title, then what the display columns hold, then the raw id. */
export function describe(id, display, model) {
  const column = model.display?.title;
  const named = column && display?.[column];
  const says = (value) => value !== null && value !== "" && !ADDRESS.test(value) && !named?.includes(`(${value})`);
  const rest = Object.entries(display ?? {}).filter(([key, value]) => key !== column && says(value));
  const order = model.display?.columns ?? [];
  rest.sort(([a], [b]) => place(order, a) - place(order, b));
  const details = element(
    "span",
    { class: "details" },
    ...rest.slice(0, MOST_COLUMNS).flatMap(([key, value]) => facts(key, value, !model.display)),
  );
  if (named) details.append(element("span", { class: "id", title: visible(id) }, "id ", quoted(id, "raw")));
  return element("span", { class: "described" }, quoted(named || id, named ? "name" : "name raw"), details);
}

function place(order, key) {
  const found = order.indexOf(key);
  return found < 0 ? order.length : found;
}

/** One value of a display column: a bag of categories becomes tags, anything else plain text, with its column's name
 * where nothing else says what it is. */
function facts(key, value, named) {
  const many = Array.isArray(value) ? value : String(value).split("|");
  const bag = Array.isArray(value) || many.length > 1 || /s$/.test(key);
  const shown = many.filter((part) => part !== "").slice(0, MOST_TAGS);
  const nodes = shown.map((part) =>
    element(
      "span",
      { class: bag ? "tag" : "fact", title: `${visible(key)}: ${visible(part)}` },
      named ? `${visible(key)} ` : null,
      quoted(part),
    ),
  );
  if (many.length > MOST_TAGS) nodes.push(element("span", { class: "fact" }, `+${many.length - MOST_TAGS}`));
  return nodes;
}
