// Light and dark: the system's wish until the reader chooses.

const CHOICE = "polytask-theme";

/** Makes `button` switch between light and dark. */
export function theme(button) {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = localStorage.getItem(CHOICE);
  if (chosen) root.dataset.theme = chosen;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const tell = () => button.setAttribute("aria-pressed", String(dark()));
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem(CHOICE, root.dataset.theme);
    tell();
  });
  system.addEventListener("change", tell);
  tell();
}
