"use strict";
const at = (id) => document.getElementById(id);
const KEY = "vae-edge-token";
const COUNTS = ["normal", "anomalous", "not inspectable", "error"];
let since = 0, started = null, answered = null, timer = null;
let bundles = {}, rates = {}, chosen = null;
const pictures = new Map(); // From the number of an image to the promise of its address.

const css = (verdict) => verdict.replace(" ", "-");
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], {hourCycle: "h23"});
const moment = (seconds) => {
  const then = new Date(seconds * 1000);
  const isToday = then.toDateString() === new Date().toDateString();
  return isToday ? clock(seconds) : then.toLocaleString([], {hourCycle: "h23"});
};
const short = (number, digits) => number === null ? "not a number" : String(Number(number.toPrecision(digits)));
const milliseconds = (seconds) => {
  const ms = seconds * 1000;
  return ms < 10 ? ms.toFixed(1) : String(Math.round(ms));
};

async function get(path) {
  const token = sessionStorage.getItem(KEY);
  const response = await fetch(path, {
    cache: "no-store", credentials: "omit", headers: token ? {Authorization: "Bearer " + token} : {},
    signal: AbortSignal.timeout(10000),
  });
  if (!response.ok) throw Object.assign(new Error(path), {status: response.status});
  return response;
}

function addressOf(number) {
  if (!pictures.has(number)) {
    const address = get("page/image/" + number).then((response) => response.blob()).then(URL.createObjectURL);
    address.catch(() => pictures.delete(number));
    pictures.set(number, address);
  }
  return pictures.get(number);
}

function forget(kept) {
  for (const [number, address] of pictures) {
    if (kept.has(number)) continue;
    pictures.delete(number);
    address.then(URL.revokeObjectURL, () => {});
  }
}

function put(image, number, alt) {
  image.dataset.number = number;
  addressOf(number).then((address) => {
    if (image.dataset.number !== String(number)) return; // A newer one came meanwhile.
    image.src = address;
    image.alt = alt;
    image.hidden = false;
    if (image.id === "picture") at("none").hidden = true;
  }, () => {});
}

function showLast(last) {
  at("card").hidden = last === null;
  if (last === null) {
    at("picture").hidden = true;
    at("picture").dataset.number = "";
    at("none").hidden = false;
    return;
  }
  at("card").className = "card " + css(last.verdict);
  at("verdict").textContent = last.verdict;
  at("score").textContent = short(last.score, 4);
  at("threshold").textContent = short(last.threshold, 4);
  at("p").textContent = short(last.p_value, 3);
  at("time").textContent = moment(last.time_s);
  at("because").hidden = last.because.length === 0;
  at("because").replaceChildren(...last.because.map((reason) => {
    const item = document.createElement("li");
    item.textContent = reason;
    return item;
  }));
  put(at("picture"), last.image, "Last picture with its anomaly map: " + last.verdict);
}

function showAnomalies(anomalies) {
  const list = at("anomalies");
  const there = new Map([...list.children].map((item) => [item.dataset.number, item]));
  list.replaceChildren(...anomalies.map((anomaly) => {
    const known = there.get(String(anomaly.image));
    if (known && !known.firstChild.hidden) return known;
    const item = document.createElement("li");
    item.dataset.number = anomaly.image;
    const image = document.createElement("img"), words = document.createElement("span");
    const time = document.createElement("time"), score = document.createElement("b");
    time.textContent = moment(anomaly.time_s);
    time.dateTime = new Date(anomaly.time_s * 1000).toISOString();
    score.textContent = short(anomaly.score, 4);
    score.title = "score";
    words.append(time, score);
    image.alt = "";
    item.append(image, words);
    put(image, anomaly.image, "Anomaly with score " + short(anomaly.score, 4));
    return item;
  }));
  at("no-anomalies").hidden = anomalies.length > 0;
}

function showDrift(drift) {
  at("drift").hidden = drift === null;
  if (drift === null) return;
  at("drift-card").className = "card " + (drift.alarm ? "not-inspectable" : "normal");
  at("drift-alarm").textContent = !drift.alarm ? "No drift"
    : "The process has drifted" + (drift.since_s === null ? "" : "; alarm since " + moment(drift.since_s));
  at("drift-size").textContent = drift.size;
  at("drift-size").hidden = !drift.alarm;
  at("drift-evidence").textContent = drift.evidence;
}

function show() {
  const bundle = bundles[chosen];
  at("name").textContent = chosen;
  document.title = chosen + " - vae-edge";
  at("started").textContent = moment(started);
  for (const verdict of COUNTS) at(css(verdict)).textContent = bundle.counts[verdict].toLocaleString("en");
  at("rate").textContent = rates[chosen].toFixed(rates[chosen] < 10 ? 1 : 0);
  at("latency").textContent = bundle.p50_s === null ? "none yet"
    : milliseconds(bundle.p50_s) + " / " + milliseconds(bundle.p99_s) + " ms";
  if (!bundle.has_gate) at("not-inspectable").textContent = "not checked";
  showDrift(bundle.drift);
  showLast(bundle.last);
  showAnomalies(bundle.anomalies);
  forget(new Set([bundle.last, ...bundle.anomalies].filter(Boolean).map((shown) => shown.image)));
}

function take(state) {
  if (started !== state.started_s) { // Another start of the server, whose numbers begin again.
    const isFirst = started === null;
    started = state.started_s;
    forget(new Set());
    bundles = {};
    if (!isFirst && since !== 0) { since = 0; return false; }
  }
  since = state.version;
  rates = state.rates;
  Object.assign(bundles, state.bundles);
  const names = Object.keys(rates);
  if (!(chosen in rates)) chosen = names[0];
  if (at("bundle").length !== names.length) at("bundle").replaceChildren(...names.map((name) => new Option(name)));
  at("bundle").value = chosen;
  at("choice").hidden = names.length < 2;
  return true;
}

function ask(text) {
  at("asking").textContent = text;
  at("ask").hidden = false;
  at("connection").hidden = true;
  document.querySelectorAll("[data-needs]").forEach((part) => { part.hidden = true; });
  forget(new Set());
  at("anomalies").replaceChildren();
  at("token").focus();
}

async function poll() {
  clearTimeout(timer);
  try {
    const state = await (await get("page/state?since=" + since)).json();
    answered = Date.now() / 1000;
    at("ask").hidden = true;
    at("connection").hidden = true;
    if (take(state)) {
      document.querySelectorAll("[data-needs]").forEach((part) => { part.hidden = false; });
      show();
    }
  } catch (error) {
    if (error.status === 401) {
      ask(sessionStorage.getItem(KEY) ? "The server does not take this token." :
        "This server needs its token. It stays in this tab and is sent to this server alone.");
      sessionStorage.removeItem(KEY);
      since = 0;
      return;
    }
    at("connection").textContent = answered === null ? "The server does not answer."
      : "The server has not answered since " + moment(answered) + "; what follows is from then.";
    at("connection").hidden = false;
  }
  timer = setTimeout(poll, 1000);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("token").value.trim());
  at("token").value = "";
  poll();
});
at("bundle").addEventListener("change", () => { chosen = at("bundle").value; show(); });
poll();
