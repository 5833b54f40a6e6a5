// Page to chat with: sends the conversation, and shows each token as it comes, shaded by its load.
"use strict";

const at = id => document.getElementById(id);
const log = at("log"), question = at("question"), send = at("send"), bytes = at("bytes");
let model = null, messages = [], running = null;

const percent = share => `${Math.round(share * 100)}%`;

function amount(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  for (; bytes >= 1000 && step < units.length - 1; step++) bytes /= 1000;
  return `${bytes.toPrecision(3)} ${units[step]}`;
}

function tell(error) {
  at("error").textContent = error;
  at("error").hidden = !error;
}

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (answer.ok) return answer;
  if (answer.status === 401) at("access").hidden = false;
  const content = await answer.json().catch(() => null);
  throw new Error(content?.error?.message ?? `the server answered ${answer.status}`);
}

// Data of server-sent events, each read as JSON.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function add(kind, text = "") {
  const message = document.createElement("div");
  message.className = `message ${kind}`;
  message.append(text);
  log.append(message);
  log.scrollTop = log.scrollHeight;
  return message;
}

function addToken(message, text, told) {
  const token = document.createElement("span");
  token.className = "token";
  token.textContent = text;
  if (told) {
    token.style.setProperty("--load", told.load);
    token.title = `load ${told.load.toFixed(2)}, ${percent(told.read)} of the bytes read`;
  }
  message.append(token);
}

function showDial() {
  at("share").textContent = percent(bytes.value);
}

async function findModel() {
  const list = await (await ask("/v1/models")).json();
  model = list.data[0];
  at("access").hidden = true;
  at("model").textContent = model.id;
  document.title = `${model.id} - CLADA`;
  if (model.least_bytes === null) bytes.disabled = true;
  else {
    // A share below the least that was calibrated is refused.
    bytes.min = Math.ceil(model.least_bytes * 100) / 100;
    bytes.value = Math.max(bytes.min, 0.7);
  }
  showDial();
}

async function generate(text) {
  messages.push({ role: "user", content: text });
  add("user", text);
  const message = add("assistant");
  const begun = performance.now();
  let answer = "", tokens = 0, read = 0, last = null, failed = false;
  running = new AbortController();
  send.textContent = "Stop";
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  if (!bytes.disabled) body.clada = { bytes: Number(bytes.value) };
  try {
    const asked = model.can_chat
      ? ask("/v1/chat/completions", { ...body, messages }, running.signal)
      : ask("/v1/completions", { ...body, prompt: text, max_tokens: 128 }, running.signal);
    for await (const event of events(await asked)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) last = event;
      for (const choice of event.choices) {
        const piece = choice.delta ? choice.delta.content : choice.text, told = choice.clada.tokens[0];
        answer += piece;
        addToken(message, piece, told);
        if (told) {
          tokens += 1;
          read += told.read * model.weight_bytes;
          at("counts").textContent = `${tokens} tokens, ${amount(read)} read`;
        }
      }
      log.scrollTop = log.scrollHeight;
    }
    tell("");
  } catch (error) {
    failed = error.name !== "AbortError";
    if (failed) tell(error.message);
  }
  running = null;
  send.textContent = "Send";
  if (failed && !tokens) {
    // It can be asked again, as it was not read.
    messages.pop();
    message.previousSibling?.remove();
    message.remove();
    question.value ||= text;
    return;
  }
  messages.push({ role: "assistant", content: answer });
  const facts = document.createElement("span"), seconds = (performance.now() - begun) / 1000;
  facts.className = "facts";
  facts.textContent = `${tokens} tokens in ${seconds.toFixed(1)} s; ${amount(read / Math.max(tokens, 1))} a token, `
    + `${percent(read / Math.max(tokens, 1) / model.weight_bytes)} of ${amount(model.weight_bytes)}`
    + (last ? `; ${last.usage.prompt_tokens_details.cached_tokens} of ${last.usage.prompt_tokens} prompt tokens were read before` : "");
  message.append(facts);
  log.scrollTop = log.scrollHeight;
}

at("form").addEventListener("submit", async event => {
  event.preventDefault();
  if (running) return running.abort();
  const text = question.value;
  if (!text.trim()) return;
  try {
    if (!model) await findModel();
  } catch (error) {
    return tell(error.message);
  }
  question.value = "";
  await generate(text);
});

question.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) at("form").requestSubmit();
});

at("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  log.replaceChildren();
  at("counts").textContent = "";
  tell("");
});

bytes.addEventListener("input", showDial);
findModel().catch(error => tell(error.message));
