// What a known user did before, or what a newcomer picked: the panel beside the recommendations.

import { isStale } from "./api.js";
import { byId, element, visible } from "./elements.js";
import { describe, title } from "./items.js";
import { similar } from "./why.js";

const LENGTH = 50;

/** The panel of the past; `dropped(id)` is told which pick of a newcomer is taken back. */
export function past(api, model, dropped) {
  const root = byId("past");
  const facts = byId("past-facts");
  let asking = null;

  async function showHistory(user) {
    asking?.abort();
    asking = new AbortController();
    byId("past-heading").textContent = "History";
    try {
      const { items } = await api.post("v1/history", { user_id: user.id, limit: LENGTH }, asking.signal);
      facts.textContent = items.length < LENGTH ? `${items.length} items, newest first` : `the newest ${LENGTH}`;
      const who = user.display ? element("div", { class: "who-past" }, describe(user.id, user.display, {})) : "";
      root.replaceChildren(
        who,
        items.length ? rows(items) : element("p", { class: "muted" }, "Nothing in the training data."),
      );
    } catch (error) {
      if (isStale(error)) return;
      facts.textContent = "";
      root.replaceChildren(element("p", { class: "error", role: "alert" }, visible(error.message)));
    }
  }
  function rows(items) {
    return element(
      "ol",
      { class: "plain scroll", tabindex: "0", "aria-label": "History, newest first" },
      ...items.map((item) => pastItem(api, model, item)),
    );
  }
  function showPicks(picks) {
    asking?.abort();
    byId("past-heading").textContent = "Picked items";
    facts.textContent = picks.length ? `${picks.length}, the newest last` : "";
    const list = element(
      "ul",
      { class: "plain" },
      ...picks.map((pick) =>
        element(
          "li",
          { class: "pick" },
          describe(pick.id, pick.display, model),
          element(
            "button",
            {
              type: "button",
              class: "small",
              click: () => dropped(pick.id),
              "aria-label": `Take back ${title(pick.id, pick.display, model)}`,
            },
            "Take back",
          ),
        ),
      ),
    );
    const hint = element(
      "p",
      { class: "muted" },
      "Search for a few items the newcomer just saw or liked. Without any, the list shows what is popular.",
    );
    root.replaceChildren(picks.length ? list : hint);
  }
  return { showHistory, showPicks };
}

function pastItem(api, model, item) {
  const panel = element("div", { class: "panel", hidden: true });
  const name = title(item.item_id, item.display, model);
  const button = element(
    "button",
    { type: "button", class: "small ghost", "aria-expanded": "false", "aria-label": `Similar to ${name}` },
    "Similar",
  );
  button.addEventListener("click", async () => {
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden && !panel.children.length) panel.replaceChildren(await similar(api, model, item.item_id));
  });
  return element(
    "li",
    {},
    element("div", { class: "pick" }, describe(item.item_id, item.display, model), button),
    panel,
  );
}
