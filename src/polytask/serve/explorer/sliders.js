// One slider per task: its exponent or weight in the mix, and what the shown list is worth to the task.

import { byId, element, freshId, property, quoted, visible } from "./elements.js";
import { change, meaning, prediction } from "./format.js";
import { commonForm, parse, write } from "./mix.js";

const STEP = 0.05;
const TYPING = 500; // ms after the last key before a formula is asked about

/** The panel of sliders and the formula; `changed(text)` is told of every new mix. */
export function sliders(model, changed) {
  const names = model.tasks.map((task) => task.name);
  const usual = commonForm([model.mix, ...(model.mix_points ?? []).map((point) => point.mix)], names);
  const initial = parse(model.mix, names, usual);
  const formula = byId("mix");
  const rows = model.tasks.map((task) => row(task, (value) => move(task.name, value)));
  byId("sliders").append(...rows.map((each) => each.node));
  let current = null; // what the sliders say: a form and its weights
  let typing = 0;

  function move(name, value) {
    current.weights.set(name, value);
    tell(write(current.form, current.weights), current);
    changed(formula.value);
  }
  function tell(text, parsed) {
    formula.value = text;
    byId("mix-note").textContent = parsed
      ? explained(parsed.form)
      : "The sliders cannot write this formula: moving one replaces it by a product of powers.";
    byId("sliders").classList.toggle("apart", !parsed);
    refuse("");
    for (const each of rows) each.set(current, initial);
  }
  function set(text) {
    const parsed = parse(text, names, initial?.form ?? usual);
    current = parsed ? ordered(parsed, initial) : { form: "powers", weights: new Map(names.map((name) => [name, 1])) };
    tell(text, parsed);
  }
  function type() {
    clearTimeout(typing);
    if (!formula.value.trim()) return refuse("Write a formula over the tasks, or go back to the default");
    set(formula.value);
    changed(formula.value);
  }
  function refuse(message) {
    byId("mix-error").textContent = visible(message);
    formula.toggleAttribute("aria-invalid", message !== "");
  }
  formula.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(type, TYPING);
  });
  formula.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    type();
  });
  byId("reset").addEventListener("click", () => {
    set(model.mix);
    changed(model.mix);
  });
  set(model.mix);
  return {
    set,
    refuse,
    expect: (means) => rows.forEach((each) => each.expect(means.get(each.name))),
  };
}

function explained(form) {
  return form === "powers"
    ? "A product of powers: an exponent of 0 leaves a task out, a larger one lets it decide more."
    : "A weighted sum: a weight of 0 leaves a task out, a larger one lets it decide more.";
}

/** The weights in the order of the default mix, so that going back to it writes it as it was. */
function ordered(parsed, initial) {
  const order = [...(initial ?? parsed).weights.keys()];
  return { form: parsed.form, weights: new Map(order.map((name) => [name, parsed.weights.get(name)])) };
}

function row(task, moved) {
  const [inputId, valueId] = [freshId(), freshId()];
  const input = element("input", { type: "range", id: inputId, step: STEP, "aria-describedby": valueId });
  const weight = element("output", { for: inputId, class: "weight" });
  const expected = element("span", { class: "expected" }, "–");
  const against = element("span", { class: "change" });
  const beam = element("span", { class: "beam", "aria-hidden": "true" }, element("span"));
  const kind = element("span", { class: "muted" }, `mean ${meaning(task.kind)} `);
  const node = element(
    "div",
    { class: "slider" },
    element("label", { for: inputId }, quoted(task.name)),
    weight,
    element("span", { class: "track" }, input),
    element("p", { id: valueId, class: "worth" }, kind, expected, " ", against),
    beam,
  );
  input.addEventListener("input", () => moved(Number(input.value)));
  return {
    node,
    name: task.name,
    set: ({ form, weights }, initial) =>
      place(
        { input, weight, node },
        form,
        weights.get(task.name),
        initial?.form === form ? initial.weights.get(task.name) : null,
      ),
    expect: (mean) => worth({ expected, against, beam }, mean, task.kind),
  };
}

function place({ input, weight, node }, form, value, usual) {
  const widest = Math.max(form === "powers" ? 2 : 1, Math.abs(value), Math.abs(usual ?? 0));
  const [low, high] = [value < 0 || usual < 0 ? -widest : 0, widest];
  input.min = low;
  input.max = high;
  input.value = value; // the thumb snaps to a step; the mix keeps the exact value until the thumb is moved
  const word = form === "powers" ? "exponent" : "weight";
  const apart = usual !== null && usual !== value ? ` (default ${short(usual)})` : "";
  weight.textContent = `${word} ${short(value)}${apart}`;
  input.setAttribute("aria-valuetext", weight.textContent);
  node.classList.toggle("marked", usual !== null);
  property(node, "--usual", usual === null ? 0 : (usual - low) / (high - low));
}

function short(value) {
  return Number(value.toFixed(4));
}

/** `mean`: { shown, usual, spread } of the task over the list, over the default mix's list, and their values' range. */
function worth({ expected, against, beam }, mean, kind) {
  expected.textContent = mean ? prediction(mean.shown, kind) : "–";
  const moved = mean ? mean.shown - mean.usual : 0;
  const text = mean ? change(moved, mean.shown, kind) : "";
  const sign = !text || text === "no change" ? 0 : Math.sign(moved);
  against.textContent = sign > 0 ? `▲ ${text}` : sign < 0 ? `▼ ${text}` : text;
  for (const node of [against, beam]) {
    node.classList.toggle("up", sign > 0);
    node.classList.toggle("down", sign < 0);
  }
  property(beam, "--change", sign ? Math.max(-1, Math.min(1, moved / (mean.spread || 1))) : 0);
}
