// The panel under a recommended item: what each task predicts, what the fused score is made of, and similar items.

import { isStale } from "./api.js";
import { drawing, element, quoted, visible } from "./elements.js";
import { prediction, score, signed } from "./format.js";
import { describe } from "./items.js";

const SIMILAR = 5;
const WIDTH = 120; // of the bars' drawing, in its own units

/**
 * A function that fills the panel of an item. `view()` tells the current user and mix; somebody the model does not know
 * has no user the API could explain, so there the predictions of the list stand alone.
 */
export function whyPanel(api, model, view) {
  const asked = new WeakMap();
  return async function fill(item, panel) {
    asked.get(panel)?.abort();
    const asking = new AbortController();
    asked.set(panel, asking);
    const { user, mix } = view();
    if (!panel.children.length) panel.append(element("p", { class: "muted" }, "Asking…"));
    try {
      const question = { user_id: user?.id, item_id: item.item_id, mix };
      const [told, alike] = await Promise.all([
        user
          ? api.post("v1/explain", question, asking.signal)
          : { tasks: known(item, model), parts: null, score: item.score },
        similar(api, model, item.item_id, asking.signal),
      ]);
      panel.replaceChildren(explanation(told), alike);
    } catch (error) {
      if (!isStale(error))
        panel.replaceChildren(element("p", { class: "error", role: "alert" }, visible(error.message)));
    }
  };
}

/** The items most like `id`, as a list under a heading; a model that knows none says why. */
export async function similar(api, model, id, signal) {
  const part = element("div", { class: "similar" }, element("h3", {}, "Similar items"));
  try {
    const { items } = await api.post("v1/similar", { item_id: id, k: SIMILAR, display: true }, signal);
    const list = element("ol", { class: "plain" });
    for (const item of items) {
      const near = element("span", { class: "muted near" }, score(item.score));
      list.append(element("li", {}, describe(item.item_id, item.display, model), near));
    }
    part.append(items.length ? list : element("p", { class: "muted" }, "None"));
  } catch (error) {
    if (isStale(error)) throw error;
    part.append(element("p", { class: "muted" }, visible(error.message)));
  }
  return part;
}

function known(item, model) {
  const label = { binary: "probability", ranking: "rank score" };
  return model.tasks.map(({ name, kind }) => ({
    task: name,
    kind,
    value: item.values[name],
    label: label[kind] ?? "value",
  }));
}

function explanation({ tasks, parts, score: fused, rank }) {
  const rows = tasks.map(({ task, kind, value, label }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, quoted(task)),
      element(
        "td",
        {},
        element("span", { class: "number" }, prediction(value, kind)),
        element("span", { class: "muted" }, ` ${visible(label)}`),
      ),
    ),
  );
  const predicted = table("What each task predicts", ["Task", "Prediction"], rows);
  const why = element("div", { class: "because wide" }, element("h3", {}, "Why this"), predicted);
  const place = rank ? `, rank ${rank}` : "";
  if (parts) why.append(composition(parts, fused, place));
  else
    why.append(
      element(
        "p",
        { class: "muted small-text" },
        `Fused score ${score(fused)}. Its parts are told for known users only.`,
      ),
    );
  return why;
}

/** What the score is made of: summands, or factors, whose parts are logarithms that add up to that of the score. */
function composition(parts, fused, place) {
  const total = parts.reduce((sum, { part }) => sum + part, 0);
  const adds = parts.length === 1 || Math.abs(total - fused) <= 1e-6 * Math.max(1, Math.abs(fused));
  const most = Math.max(...parts.map(({ part }) => Math.abs(part))) || 1;
  const rows = parts.map(({ text, part }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", {}, quoted(text))),
      element(
        "td",
        { class: "share" },
        bar(part / most),
        element("span", { class: "number" }, adds ? signed(part) : `× ${score(Math.exp(part))}`),
      ),
    ),
  );
  const kind = adds ? "Adds" : "Multiplies by";
  return table(`Score ${score(fused)}${place}: what it is made of`, ["Part of the mix", kind], rows);
}

function table(caption, columns, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...columns.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows),
  );
}

/** A bar from the middle: to the right what raises the score, to the left what lowers it; `length` is -1 to 1. */
function bar(length) {
  const half = WIDTH / 2;
  const ground = drawing("rect", { class: "ground", width: WIDTH, height: 10, rx: 3 });
  const filled = drawing("rect", {
    class: length < 0 ? "against" : "for",
    x: half + Math.min(0, length * half),
    width: Math.abs(length) * half,
    height: 10,
  });
  const middle = drawing("rect", { class: "middle", x: half - 0.75, width: 1.5, height: 10 });
  return drawing(
    "svg",
    { viewBox: `0 0 ${WIDTH} 10`, class: "sharebar", "aria-hidden": "true" },
    ground,
    filled,
    middle,
  );
}
