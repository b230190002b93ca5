// The Pareto picture: what each measured mix is worth to two tasks on the validation data.

import { byId, drawing, element, enclosed, freshId, quoted, visible } from "./elements.js";
import { score } from "./format.js";
import { distance, parse } from "./mix.js";

const [WIDTH, HEIGHT] = [320, 250];
const EDGE = { left: 46, right: 12, top: 12, bottom: 38 };
const FORMS = ["powers", "sum"];
const SAME = 1e-3; // mixes nearer than this are the same for the eye

/** The picture; `choose(mix)` is told of the point a reader takes. `mark(mix)` marks the point nearest to a mix. */
export function pareto(model, choose) {
  const names = model.tasks.map((task) => task.name);
  const points = (model.mix_points ?? []).map((point) => ({ ...point, usual: point.mix === model.mix }));
  const measured = names.filter((name) => points.some((point) => Number.isFinite(point.scores[name])));
  if (!points.length || measured.length < 2) {
    byId("front").hidden = true;
    return { mark: () => {} };
  }
  const root = byId("pareto");
  const caption = element("p", { class: "small-text caption" });
  const frame = element("div", { class: "picture" });
  const axes = [measured[0], measured[1]];
  let nearest = null;
  let focused = 0;

  root.append(intro());
  if (measured.length > 2) root.append(choosers());
  root.append(frame, caption, legend());

  function intro() {
    const text = "Each point is one mix, measured on validation data. Take a point to set the sliders to it.";
    return element("p", { class: "muted small-text" }, text);
  }
  function choosers() {
    const chooser = (place, label) => {
      const id = freshId();
      const select = element("select", { id }, ...measured.map((name) => element("option", {}, visible(name))));
      select.selectedIndex = measured.indexOf(axes[place]);
      select.addEventListener("change", () => {
        axes[place] = measured[select.selectedIndex];
        draw();
      });
      return element("label", { for: id }, `${label} `, select);
    };
    return element("div", { class: "choosers" }, chooser(0, "Across"), chooser(1, "Up"));
  }
  function axisName(name) {
    const metric = model.mix_metrics?.[name];
    return metric ? `${enclosed(name)} · ${enclosed(metric)}` : enclosed(name);
  }
  function notes(point) {
    const found = [
      point.front && "no mix beats it",
      point.usual && "the default",
      point.chosen && "the search's choice",
    ];
    return found.some(Boolean) ? ` (${found.filter(Boolean).join(", ")})` : "";
  }
  function sentence(point) {
    const values = measured.map((name) => `${visible(name)} ${score(point.scores[name])}`).join(", ");
    return `${visible(point.mix)}: ${values}${notes(point)}`;
  }
  function tell(point) {
    const own = nearest !== null && points[nearest.place] === point;
    const lead = !own ? "Measured" : nearest.exact ? "Your mix" : "Nearest measured mix";
    const values = measured
      .map((name) => ["; ", quoted(name), ` ${score(point.scores[name])}`])
      .flat()
      .slice(1);
    const mix = element("code", {}, quoted(point.mix));
    caption.replaceChildren(element("span", { class: "muted" }, `${lead}: `), mix, " — ", ...values, notes(point));
  }
  function settle() {
    if (nearest === null)
      caption.replaceChildren(element("span", { class: "muted" }, "No measured mix is of the form of this one."));
    else tell(points[nearest.place]);
  }

  function draw() {
    const within = points.filter((p) => axes.every((name) => Number.isFinite(p.scores[name])));
    const [x, y] = axes.map((name, n) =>
      scale(
        within.map((p) => p.scores[name]),
        n,
      ),
    );
    const at = (point) => [x.to(point.scores[axes[0]]), y.to(point.scores[axes[1]])];
    const order = [...within].sort((a, b) => a.scores[axes[0]] - b.scores[axes[0]]);
    const svg = drawing("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "listbox",
      "aria-label": `Measured mixes by ${axisName(axes[0])} and ${axisName(axes[1])}`,
      "aria-orientation": "horizontal",
    });
    svg.append(...grid(x, y, axes.map(axisName)));
    if (measured.length === 2) {
      const front = order
        .filter((p) => p.front)
        .map((p) => at(p).join(","))
        .join(" ");
      svg.append(drawing("polyline", { class: "frontline", points: front, "aria-hidden": "true" }));
    }
    const dots = order.map((point) => dot(point, at(point)));
    svg.append(...dots);
    focused = Math.max(
      0,
      order.findIndex((p) => nearest && p === points[nearest.place]),
    );
    dots[focused]?.setAttribute("tabindex", "0");
    svg.addEventListener("keydown", (event) => key(event, dots, order));
    const held = frame.contains(document.activeElement);
    frame.replaceChildren(svg);
    settle();
    if (held) dots[focused]?.focus();
  }
  function dot(point, [x, y]) {
    const here = nearest !== null && points[nearest.place] === point;
    const node = drawing(
      "g",
      {
        role: "option",
        tabindex: "-1",
        "aria-selected": String(here),
        "aria-label": sentence(point),
        class: ["dot", point.front && "front", point.usual && "default", here && "here"].filter(Boolean).join(" "),
      },
      drawing("circle", { class: "reach", cx: x, cy: y, r: 9 }),
    );
    if (here) node.append(drawing("circle", { class: "ring", cx: x, cy: y, r: 8 }));
    node.append(
      point.usual
        ? drawing("rect", {
            class: "shape",
            x: x - 4.5,
            y: y - 4.5,
            width: 9,
            height: 9,
            transform: `rotate(45 ${x} ${y})`,
          })
        : drawing("circle", { class: "shape", cx: x, cy: y, r: 4 }),
    );
    node.addEventListener("click", () => choose(point.mix));
    node.addEventListener("pointerenter", () => tell(point));
    node.addEventListener("pointerleave", settle);
    node.addEventListener("focus", () => tell(point));
    node.addEventListener("blur", settle);
    return node;
  }
  function key(event, dots, order) {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    const place = event.key === "Home" ? 0 : event.key === "End" ? dots.length - 1 : focused + (step ?? 0);
    if (["Enter", " "].includes(event.key)) {
      event.preventDefault();
      choose(order[focused].mix);
    } else if (step || ["Home", "End"].includes(event.key)) {
      event.preventDefault();
      dots[focused].setAttribute("tabindex", "-1");
      focused = Math.min(dots.length - 1, Math.max(0, place));
      dots[focused].setAttribute("tabindex", "0");
      dots[focused].focus();
    }
  }
  function mark(mix) {
    const found = nearestTo(points, mix, names);
    const same = found?.place === nearest?.place && found?.exact === nearest?.exact && frame.children.length;
    nearest = found;
    if (!same) draw();
  }
  return { mark };
}

/** The point whose mix is nearest to `mix`: { place, exact }; null where none is of its form. */
function nearestTo(points, mix, names) {
  const written = points.findIndex((point) => point.mix === mix);
  if (written >= 0) return { place: written, exact: true };
  const far = points.map((point) =>
    Math.min(
      ...FORMS.map((form) => {
        const [one, other] = [mix, point.mix].map((text) => parse(text, names, form));
        return one?.form === form && other?.form === form ? distance(one, other) : Infinity;
      }),
    ),
  );
  const least = Math.min(...far);
  return Number.isFinite(least) ? { place: far.indexOf(least), exact: least < SAME } : null;
}

/** The map of values to the picture along one axis (0 across, 1 up), with a few round ticks. */
function scale(values, axis) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  const [from, to] = [low - room, high + room];
  const [start, end] = axis === 0 ? [EDGE.left, WIDTH - EDGE.right] : [HEIGHT - EDGE.bottom, EDGE.top];
  const rough = (to - from) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const ticks = [];
  for (let n = Math.ceil(from / step); n * step <= to; n += 1) ticks.push(n * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const place = (value) => start + ((value - from) / (to - from)) * (end - start);
  return { to: place, ticks: ticks.map((value) => [place(value), value.toFixed(decimals)]) };
}

function grid(x, y, [across, up]) {
  const [bottom, right] = [HEIGHT - EDGE.bottom, WIDTH - EDGE.right];
  const lines = [
    ...x.ticks.map(([at]) => drawing("line", { x1: at, x2: at, y1: EDGE.top, y2: bottom })),
    ...y.ticks.map(([at]) => drawing("line", { x1: EDGE.left, x2: right, y1: at, y2: at })),
  ];
  const text = [
    ...x.ticks.map(([at, label]) => drawing("text", { x: at, y: bottom + 14, "text-anchor": "middle" }, label)),
    ...y.ticks.map(([at, label]) => drawing("text", { x: EDGE.left - 6, y: at + 3.5, "text-anchor": "end" }, label)),
    drawing(
      "text",
      { class: "axis", x: (EDGE.left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
      `${across} →`,
    ),
    drawing(
      "text",
      {
        class: "axis",
        x: 0,
        y: 0,
        "text-anchor": "middle",
        transform: `translate(11 ${(EDGE.top + bottom) / 2}) rotate(-90)`,
      },
      `${up} →`,
    ),
  ];
  return [
    drawing("g", { class: "grid", "aria-hidden": "true" }, ...lines),
    drawing("g", { class: "ticks", "aria-hidden": "true" }, ...text),
  ];
}

function legend() {
  const mark = (kind, text) =>
    element("li", {}, drawing("svg", { viewBox: "0 0 18 18", class: "key", "aria-hidden": "true" }, ...kind), text);
  const circle = (classes, r) => drawing("circle", { class: classes, cx: 9, cy: 9, r });
  return element(
    "ul",
    { class: "legend small-text" },
    mark([drawing("g", { class: "dot front" }, circle("shape", 4))], "no mix beats it"),
    mark([drawing("g", { class: "dot" }, circle("shape", 4))], "beaten by another"),
    mark(
      [
        drawing(
          "g",
          { class: "dot front default" },
          drawing("rect", { class: "shape", x: 4.5, y: 4.5, width: 9, height: 9, transform: "rotate(45 9 9)" }),
        ),
      ],
      "the default",
    ),
    mark([drawing("g", { class: "dot here" }, circle("ring", 7))], "your mix, or the nearest"),
  );
}
