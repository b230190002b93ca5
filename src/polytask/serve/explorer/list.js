// The recommended list: kept items glide to their new place, and each says how it moved against the default mix.

import { byId, element, freshId, property, quoted, visible } from "./elements.js";
import { meaning, prediction } from "./format.js";
import { describe, title } from "./items.js";

const GLIDE = { duration: 260, easing: "cubic-bezier(.2,.7,.2,1)" };

/**
 * Per task the mean over the shown list and over the list of the default mix, and the range of the values in both:
 * a Map of name to { shown, usual, spread }.
 */
export function means(tasks, shown, usual) {
  const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;
  const found = new Map();
  for (const { name } of tasks) {
    const [here, there] = [shown, usual].map(({ items }) =>
      items.map((item) => item.values[name]).filter(Number.isFinite),
    );
    if (!here.length || !there.length) continue;
    const every = [...here, ...there];
    const [low, high] = [Math.min(...every), Math.max(...every)];
    found.set(name, { shown: mean(here), usual: mean(there), low, high, spread: high - low });
  }
  return found;
}

/** The list of recommendations; `open(item, panel)` fills the panel of an item the reader asks about. */
export function recommendations(model, open) {
  const list = byId("list");
  const rows = new Map();

  /** Shows `shown` beside `usual`, the answer for the default mix; `worth` is what {@link means} says of both. */
  function show(shown, usual, worth) {
    const before = new Map([...rows].map(([id, row]) => [id, row.node.getBoundingClientRect().top]));
    const focused = document.activeElement;
    const kept = new Set(shown.items.map((item) => item.item_id));
    for (const id of rows.keys()) if (!kept.has(id)) rows.delete(id);
    const ranks = new Map(usual.items.map((item) => [item.item_id, item.rank]));
    for (const item of shown.items) {
      if (!rows.has(item.item_id)) rows.set(item.item_id, line(item, model, open));
      rows.get(item.item_id).set(item, ranks.get(item.item_id), worth);
    }
    list.replaceChildren(...shown.items.map((item) => rows.get(item.item_id).node));
    list.dataset.mix = shown.mix;
    if (list.contains(focused)) focused.focus({ preventScroll: true }); // a node that is moved loses the focus
    glide(rows, before);
  }
  return {
    show,
    refresh: () => rows.forEach((row) => row.refresh()),
    clear: () => {
      rows.clear();
      list.replaceChildren();
      delete list.dataset.mix;
    },
  };
}

/** How the shown list differs from the default mix's, in one line. */
export function difference(shown, usual) {
  const ranks = new Map(usual.items.map((item) => [item.item_id, item.rank]));
  const fresh = shown.items.filter((item) => !ranks.has(item.item_id)).length;
  const moved = shown.items.filter((item) => ranks.has(item.item_id) && ranks.get(item.item_id) !== item.rank).length;
  if (!fresh && !moved) return "same as with the default mix";
  return `against the default mix: ${fresh} new, ${moved} moved`;
}

function line(first, model, open) {
  const panelId = freshId();
  const name = title(first.item_id, first.display, model);
  const rank = element("span", { class: "rank" });
  const values = element("dl", { class: "values" });
  const moved = element("span", { class: "moved" });
  const panel = element("div", { class: "panel", id: panelId, hidden: true });
  const button = element(
    "button",
    {
      type: "button",
      class: "small",
      "aria-expanded": "false",
      "aria-controls": panelId,
      "aria-label": `Why this: ${name}`,
    },
    "Why this?",
  );
  const head = element(
    "div",
    { class: "head" },
    rank,
    describe(first.item_id, first.display, model),
    values,
    moved,
    button,
  );
  const node = element("li", {}, head, panel);
  let item = first;
  button.addEventListener("click", () => {
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) open(item, panel);
  });
  return {
    node,
    refresh: () => panel.hidden || open(item, panel),
    set: (next, usual, worth) => {
      item = next;
      rank.textContent = next.rank;
      values.replaceChildren(...model.tasks.map((task) => value(task, next.values[task.name], worth.get(task.name))));
      const [text, told, tone] = movement(next.rank, usual);
      moved.replaceChildren(
        element("span", { "aria-hidden": "true" }, text),
        element("span", { class: "quiet" }, told),
      );
      moved.className = `moved ${tone}`;
    },
  };
}

function value(task, number, range) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  const share = range && range.spread ? (number - range.low) / range.spread : 1;
  property(bar, "--share", Number.isFinite(number) ? 0.06 + 0.94 * share : 0);
  return element(
    "div",
    { title: `${visible(task.name)}: ${meaning(task.kind)}` },
    element("dt", {}, quoted(task.name)),
    element("dd", {}, prediction(number, task.kind), bar),
  );
}

function movement(rank, usual) {
  if (usual === undefined) return ["new", "not in the list of the default mix", "new"];
  const up = usual - rank;
  if (up === 0) return ["", "", ""];
  const told = `${up > 0 ? "up" : "down"} ${Math.abs(up)} against the default mix`;
  return [`${up > 0 ? "▲" : "▼"}\u2009${Math.abs(up)}`, told, up > 0 ? "up" : "down"];
}

function glide(rows, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [id, { node }] of rows) {
    if (!before.has(id)) {
      node.animate([{ opacity: 0 }, { opacity: 1 }], GLIDE);
      continue;
    }
    const way = before.get(id) - node.getBoundingClientRect().top;
    if (way) node.animate([{ transform: `translateY(${way}px)` }, { transform: "none" }], GLIDE);
  }
}
