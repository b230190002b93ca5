// What is known about the model: counts, transfer verdicts, tasks with their metrics, and the model card.

import { markdown } from "./card.js";
import { byId, element, quoted, visible } from "./elements.js";
import { count, meaning, score } from "./format.js";

const TONES = {
  "positive transfer": ["▲", "positive"],
  "negative transfer": ["▼", "negative"],
  equivalent: ["=", "same"],
  inconclusive: ["?", "open"],
  "nothing shared": ["–", "same"],
};

/** Fills the header and the sections under the list from the answer of /v1/model. */
export function about(model) {
  document.title = `${visible(model.name)} · polytask explorer`;
  byId("model-name").replaceChildren(quoted(model.name));
  const counted = { ...model.counts };
  if (typeof counted.rows === "object") {
    counted.rows = Object.values(counted.rows).reduce((total, part) => total + part, 0);
  }
  const facts = ["users", "items", "rows"].filter((key) => counted[key] !== undefined);
  byId("model-facts").replaceChildren(
    "version ",
    element("code", { title: visible(model.model_version) }, visible(model.model_version.slice(0, 8))),
    ...facts.map((key) => ` · ${count(counted[key])} ${key}`),
  );
  byId("verdicts").append(verdicts(model.verdicts ?? []));
  byId("tasks").append(tasks(model.tasks));
  const card = model.card ? markdown(model.card) : [element("p", { class: "muted" }, "The bundle has no card.")];
  byId("card").append(...card);
}

function verdicts(found) {
  if (!found.length) {
    const unknown = "No comparison with single-task models was stored with this model: what sharing did is not known. ";
    const text = `${unknown}Run polytask compare, and make the bundle with its report.`;
    return element("p", { class: "muted" }, text);
  }
  const rows = found.map(({ task, verdict, text }) => {
    const [mark, tone] = TONES[verdict] ?? ["", "same"];
    const chip = element(
      "span",
      { class: `verdict ${tone}` },
      element("span", { "aria-hidden": "true" }, `${mark} `),
      visible(verdict),
    );
    return [quoted(task), chip, element("div", { class: "words" }, visible(text ?? ""))];
  });
  return table(
    "What training the tasks together did to each, against a model of that task alone",
    ["Task", "Verdict", "In words"],
    rows,
  );
}

function tasks(found) {
  const parts = ["valid", "test"].filter((part) =>
    found.some((task) => Object.keys(task.metrics?.[part] ?? {}).length),
  );
  const rows = found.map((task) => [
    quoted(task.name),
    element(
      "span",
      {},
      `${meaning(task.kind)}${task.calibrated ? ", calibrated" : ""}`,
      element(
        "span",
        { class: "muted" },
        ` (${visible(task.kind)}${task.range ? `, ${task.range.join(" to ")}` : ""})`,
      ),
    ),
    ...parts.map((part) => metrics(task.metrics?.[part] ?? {})),
  ]);
  const names = { valid: "Validation", test: "Test" };
  return table(
    "What the model predicts, and how well",
    ["Task", "Predicts", ...parts.map((part) => names[part])],
    rows,
  );
}

function metrics(values) {
  const each = Object.entries(values).filter(([, value]) => Number.isFinite(value));
  if (!each.length) return "–";
  return element(
    "ul",
    { class: "plain metrics" },
    ...each.map(([name, value]) =>
      element("li", {}, `${visible(name)} `, element("span", { class: "number" }, score(value))),
    ),
  );
}

function table(caption, columns, rows) {
  const line = ([first, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...cells.map((cell) => element("td", {}, cell)));
  return element(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...columns.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map(line)),
    ),
  );
}
