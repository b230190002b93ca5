// What the page shows, kept in the fragment of its address so that a view can be shared.

/** `{ user, picks, mix }` as the fragment says; null for what it does not name. */
export function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  return { user: said.get("user"), picks: said.has("picks") ? said.getAll("pick") : null, mix: said.get("mix") };
}

/** Writes the view to the fragment without a step in the browser's history. */
export function writeAddress({ user, newcomer, picks, mix }) {
  const said = new URLSearchParams();
  if (newcomer) {
    said.set("picks", String(picks.length));
    for (const { id } of picks) said.append("pick", id);
  } else if (user) {
    said.set("user", user.id);
  }
  if (mix) said.set("mix", mix);
  history.replaceState(null, "", `#${said}`);
}
