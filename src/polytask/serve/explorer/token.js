// The prompt for a token, shown when the server answers 401.

/** A function that resolves to a token of the reader's; questions that wait at the same time share one prompt. */
export function tokenPrompt(dialog) {
  const form = dialog.querySelector("form");
  const input = dialog.querySelector("input");
  const note = dialog.querySelector("p");
  let open = null;
  let refused = null;

  function prompt() {
    if (refused !== null) note.textContent = "The server did not accept that token. Please try again.";
    input.value = "";
    dialog.showModal();
    return new Promise((resolve) => {
      form.onsubmit = (event) => {
        event.preventDefault();
        refused = input.value;
        open = null;
        dialog.close();
        resolve(input.value);
      };
    });
  }
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // nothing works without a token
  // A question refused with an older token than the one given since only needs to be asked again.
  return (sent) => (refused !== null && sent !== refused ? Promise.resolve(refused) : (open ??= prompt()));
}
