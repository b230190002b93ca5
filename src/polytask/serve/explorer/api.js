// The HTTP API of this server, and nothing else: no other address is ever asked.

const TOKEN = "polytask-token";
const PATIENCE = 3; // questions repeated where the server is busy

/** An answer that is an error: its HTTP status (0: no answer), code, and one line for people. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Whether `error` only says that a question was given up for a newer one. */
export function isStale(error) {
  return error.name === "AbortError";
}

/**
 * Asks the API. `askToken()` resolves to a token when the server wants one; `sawVersion(text)` is told the model
 * version of every answer.
 */
export function client({ askToken, sawVersion }) {
  async function call(path, body, signal) {
    for (let attempt = 1; ; attempt += 1) {
      const response = await send(path, body, signal);
      const answer = await response.json().catch(() => null);
      if (response.ok && answer !== null) {
        if (answer.model_version) sawVersion(answer.model_version);
        return answer;
      }
      if (response.status === 401) {
        sessionStorage.setItem(TOKEN, await askToken(sessionStorage.getItem(TOKEN)));
      } else if ([429, 503].includes(response.status) && attempt < PATIENCE) {
        await pause(1000 * Math.min(2, Number(response.headers.get("Retry-After")) || 0.5));
      } else {
        const { code = "unreadable", message = `The server answered ${response.status}` } = answer?.error ?? {};
        throw new ApiError(response.status, code, message);
      }
    }
  }
  return {
    get: (path, signal) => call(path, null, signal),
    post: (path, body, signal) => call(path, body, signal),
  };
}

async function send(path, body, signal) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, signal, cache: "no-store", referrerPolicy: "no-referrer" };
  if (body) request.body = JSON.stringify(body);
  try {
    return await fetch(new URL(path, document.baseURI), request);
  } catch (error) {
    if (isStale(error)) throw error;
    throw new ApiError(0, "unreachable", "The server does not answer");
  }
}

/**
 * A function to call at every move of a hand. One question is open at a time; those overtaken while it was open are
 * never asked, and the newest always is. One that is about something else than the newest, by `subject(question)`, is
 * given up at once. `ask(question, signal)` answers; `show(answer, question)` and `fail(error, question)` get what came
 * of it.
 */
export function newest({ ask, show, fail, subject = () => null, wait = 40 }) {
  let waiting = null; // { question }
  let asked = null;
  let asking = null;
  let busy = false;
  return async function next(question) {
    waiting = { question };
    if (asking && subject(asked) !== subject(question)) asking.abort();
    if (busy) return;
    busy = true;
    while (waiting) {
      await pause(wait);
      asked = waiting.question;
      waiting = null;
      asking = new AbortController();
      try {
        show(await ask(asked, asking.signal), asked);
      } catch (error) {
        if (!isStale(error)) fail(error, asked);
      }
      asking = null;
    }
    busy = false;
  };
}

/** Resolves after `ms` milliseconds. */
export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
