// Puts the page together: one view (who is asked for, with which mix and options), and what follows when it changes.

import { about } from "./about.js";
import { readAddress, writeAddress } from "./address.js";
import { client, newest } from "./api.js";
import { byId, element, visible } from "./elements.js";
import { change, prediction } from "./format.js";
import { describe, title } from "./items.js";
import { difference, means, recommendations } from "./list.js";
import { pareto } from "./pareto.js";
import { past } from "./past.js";
import { search } from "./search.js";
import { sliders } from "./sliders.js";
import { theme } from "./theme.js";
import { tokenPrompt } from "./token.js";
import { whyPanel } from "./why.js";

const LENGTHS = [5, 10, 20, 50, 100];
const MATCHES = 12;
const QUIET = 900; // ms without a change before the new list is read aloud

const view = { user: null, newcomer: false, picks: [], mix: "", k: 10, unseen: true, diversity: 0, cold: true };
let version = null;

theme(byId("theme"));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment holds the view
  byId("list-heading").focus();
});
for (const link of document.querySelectorAll('nav a[href^="#"]')) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const heading = byId(link.getAttribute("href").slice(1));
    heading.focus();
    heading.scrollIntoView();
  });
}
const api = client({ askToken: tokenPrompt(byId("token")), sawVersion });
start().catch((error) => notice(error.message));

function sawVersion(seen) {
  version ??= seen;
  if (seen === version) return;
  notice(
    `The server now has another version of the model (${seen.slice(0, 8)}). Load this page again to see its facts.`,
  );
}

function notice(text) {
  byId("notice").textContent = visible(text);
  byId("notice").hidden = false;
}

async function start() {
  const model = await api.get("v1/model");
  about(model);
  view.mix = model.mix;
  const panels = build(model);
  options(model, panels);
  await follow(model, panels, readAddress());
  addEventListener("hashchange", () => follow(model, panels, readAddress()).catch((error) => notice(error.message)));
  document.querySelector("main").removeAttribute("aria-busy");
}

/** Makes every panel and ties it to the view; answers with what {@link follow} needs of them. */
function build(model) {
  const steer = sliders(model, (mix) => {
    view.mix = mix;
    changed();
  });
  const picture = pareto(model, (mix) => {
    view.mix = mix;
    steer.set(mix);
    changed();
  });
  const list = recommendations(
    model,
    whyPanel(api, model, () => ({ user: view.cold ? null : view.user, mix: view.mix })),
  );
  const before = past(api, model, (id) => {
    view.picks = view.picks.filter((pick) => pick.id !== id);
    before.showPicks(view.picks);
    changed();
  });
  const describeMatch = (match) => describe(match.id, match.display, model);
  const find = (side) => async (text, signal) =>
    (await api.post("v1/search", { side, text, limit: MATCHES }, signal)).matches;
  const userBox = search(byId("find-user"), {
    label: "Find a user",
    hint: "Type an id, or press the arrow down",
    find: find("user"),
    show: (match) => describe(match.id, match.display, {}),
    pick: (match) => setUser(match),
  });
  search(byId("find-item"), {
    label: "Pick items the newcomer liked",
    hint: "Type a title",
    find: find("item"),
    show: describeMatch,
    pick: (match) => addPick(match),
  });
  const ask = (asked, signal) => answer(model, asked, signal);
  const refresh = newest({ ask, show, fail, subject: (asked) => asked.subject });
  let told = 0;

  function changed() {
    writeAddress({ ...view, mix: view.mix === model.mix ? null : view.mix });
    if (!view.newcomer && !view.user) return;
    byId("list").setAttribute("aria-busy", "true");
    refresh(question());
  }
  function setUser(match) {
    view.user = match;
    before.showHistory(match);
    userBox.set(title(match.id, null, model));
    changed();
    return title(match.id, null, model);
  }
  function addPick(match) {
    if (!view.picks.some((pick) => pick.id === match.id)) view.picks.push(match);
    before.showPicks(view.picks);
    changed();
    return "";
  }
  function show({ shown, usual }, asked) {
    const now = question();
    if (asked.subject !== now.subject) return;
    const worth = means(model.tasks, shown, usual);
    view.cold = shown.cold_start; // of somebody the model does not know nothing can be explained
    list.show(shown, usual, worth);
    list.refresh();
    steer.expect(worth);
    picture.mark(shown.mix);
    byId("list-error").textContent = "";
    byId("list-facts").textContent = [shown.cold_start && "cold start", difference(shown, usual)]
      .filter(Boolean)
      .join(" · ");
    if (asked.body.mix !== now.body.mix) return;
    steer.refuse("");
    byId("list").removeAttribute("aria-busy");
    clearTimeout(told);
    told = setTimeout(() => {
      byId("live").textContent = spoken(model, shown, usual, worth);
    }, QUIET);
  }
  function fail(error, asked) {
    if (asked.subject !== question().subject || asked.body.mix !== view.mix) return;
    byId("list").removeAttribute("aria-busy");
    const aboutMix = error.status === 400 && view.mix !== model.mix;
    if (aboutMix) steer.refuse(error.message);
    else byId("list-error").textContent = visible(error.message);
  }
  function become(newcomer) {
    view.newcomer = newcomer;
    byId("find-user").hidden = newcomer;
    byId("find-item").hidden = !newcomer;
    document.querySelector(`input[name=who][value=${newcomer ? "newcomer" : "user"}]`).checked = true;
    list.clear();
    if (newcomer) before.showPicks(view.picks);
    else if (view.user) before.showHistory(view.user);
    changed();
  }
  return { changed, become, setUser, steer };
}

/** The question the view asks now. `subject` is all of it but the mix: answers about another subject are dropped. */
function question() {
  const body = { k: view.k, exclude_seen: view.unseen, diversity: view.diversity, display: true };
  if (view.newcomer) body.history = view.picks.map((pick) => pick.id);
  else body.user_id = view.user?.id;
  return { subject: JSON.stringify(body), body: { ...body, mix: view.mix } };
}

const usualAnswers = { subject: null, answer: null };

/** The list for `asked`, and for the same subject under the default mix. */
async function answer(model, { subject, body }, signal) {
  if (usualAnswers.subject !== subject) {
    const found = await api.post("v1/recommend", { ...body, mix: model.mix }, signal);
    Object.assign(usualAnswers, { subject, answer: found });
  }
  const usual = usualAnswers.answer;
  return { usual, shown: body.mix === model.mix ? usual : await api.post("v1/recommend", body, signal) };
}

function spoken(model, shown, usual, worth) {
  const values = model.tasks
    .filter((task) => worth.has(task.name))
    .map(({ name, kind }) => {
      const { shown: now, usual: then } = worth.get(name);
      return `${visible(name)} ${prediction(now, kind)}, ${change(now - then, now, kind)}`;
    });
  return `${shown.items.length} recommendations, ${difference(shown, usual)}. ${values.join("; ")}.`;
}

function options(model, { changed, become }) {
  const most = model.limits?.k ?? 1000;
  byId("option-k").append(
    ...LENGTHS.filter((k) => k <= most).map((k) => element("option", { selected: k === view.k }, String(k))),
  );
  byId("option-k").addEventListener("change", (event) => {
    view.k = Number(event.target.value);
    changed();
  });
  byId("option-seen").addEventListener("change", (event) => {
    view.unseen = event.target.checked;
    changed();
  });
  byId("option-diversity").addEventListener("input", (event) => {
    view.diversity = Number(event.target.value);
    byId("diversity-shown").textContent = String(view.diversity);
    changed();
  });
  for (const radio of document.querySelectorAll("input[name=who]")) {
    radio.addEventListener("change", () => become(radio.value === "newcomer"));
  }
}

/** Shows the view an address names; without a user in it, the first one the server knows. */
async function follow(model, { become, setUser, steer }, said) {
  view.mix = said.mix ?? model.mix;
  steer.set(view.mix);
  if (said.picks) {
    view.picks = said.picks.map((id) => ({ id, display: null }));
    become(true);
    return;
  }
  const { matches } = await api.post("v1/search", { side: "user", text: said.user ?? "", limit: MATCHES });
  const named = said.user === null ? matches[0] : (matches.find(({ id }) => id === said.user) ?? { id: said.user });
  if (view.newcomer) become(false);
  if (named) setUser(named);
}
