"use strict";
// Everything that comes from the service is put in as text, never as markup.
const STAGES = ["circuit", "groups", "update", "verdict", "commit"];
const WORDS = { open: "waiting", running: "under way", held: "held", committed: "done", cancelled: "cancelled" };
const byId = (id) => document.getElementById(id);
let source = null;
let timer = 0;

async function get(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (answer.status === 401) throw new Error("login");
  if (!answer.ok) throw new Error("status " + answer.status);
  return answer.json();
}

function cell(row, text, kind) {
  const made = document.createElement(kind || "td");
  if (kind === "th") made.scope = "row";
  made.textContent = text;
  row.append(made);
  return made;
}

function progressOf(request, stage) {
  if (request.state === "committed") return 1;
  if (request.state !== "running") return 0;
  return Math.max(0, STAGES.indexOf(stage)) / STAGES.length;
}

function rowOf(request, stages, today) {
  const row = document.createElement("tr");
  row.dataset.state = request.state;
  cell(row, request.id, "th");
  const state = cell(row, WORDS[request.state] || request.state);
  state.className = "state";
  if (request.detail) {
    const why = document.createElement("small");
    why.textContent = request.detail;
    state.append(why);
  }
  cell(row, request.n_ids + " " + (request.n_ids === 1 ? request.kind.slice(0, -1) : request.kind));
  cell(row, request.received.slice(0, 10));
  const due = cell(row, request.due || "no date");
  const waits = request.state !== "committed" && request.state !== "cancelled";
  if (waits && request.due && request.due < today) {
    due.className = "overdue";
    due.append(" (overdue)");
  }
  const stage = stages[request.batch] || null;
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = progressOf(request, stage);
  bar.setAttribute("aria-label", "progress of " + request.id);
  const place = cell(row, "");
  place.append(bar);
  if (request.state === "running") place.append(" " + (stage || "start"));
  const report = cell(row, "");
  if (request.state === "committed" && request.batch) {
    const link = document.createElement("a");
    link.href = "/reports/" + encodeURIComponent(request.batch) + "/report.html";
    link.target = "_blank";
    link.rel = "noopener";
    link.textContent = "report";
    report.append(link);
  }
  return row;
}

function fact(name, value) {
  const group = document.createElement("div");
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  group.append(term, text);
  return group;
}

async function show() {
  const [status, listed] = await Promise.all([get("/status"), get("/requests?limit=500")]);
  const stages = Object.fromEntries(status.batches.map((batch) => [batch.id, batch.stage]));
  const today = new Date().toISOString().slice(0, 10);
  byId("rows").replaceChildren(...listed.requests.map((request) => rowOf(request, stages, today)));
  byId("none").hidden = listed.requests.length > 0;
  const counts = status.requests;
  const waiting = counts.open + counts.held;
  byId("summary").textContent =
    waiting + " waiting, " + counts.running + " under way, " + counts.committed + " done" +
    (status.overdue ? ", " + status.overdue + " overdue" : "");
  const drift = status.drift;
  byId("facts").replaceChildren(
    fact("Version in force", status.version.slice(0, 16)),
    fact("Drift since the last training", drift.distance.toFixed(3) + " of " + drift.distance_budget),
    fact("Records in the chain", String(status.records)),
    fact("Next", status.retrain_due || (status.running ? "a run is under way" : "nothing is due"))
  );
  byId("login").hidden = true;
  byId("content").hidden = false;
}

function soon() {
  // Many events come together; one look is enough for them.
  if (!timer) timer = setTimeout(() => { timer = 0; show().catch(failed); }, 250);
}

function listen() {
  if (source) source.close();
  source = new EventSource("/events");
  for (const kind of ["request", "batch", "stage", "version", "data", "progress"]) source.addEventListener(kind, soon);
}

function failed(error) {
  if (error.message === "login") {
    byId("summary").textContent = "";
    byId("content").hidden = true;
    byId("login").hidden = false;
    byId("token").focus();
  } else {
    byId("summary").textContent = "The service cannot be reached.";
  }
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = byId("token").value;
  byId("token").value = "";
  const answer = await fetch("/session", { method: "POST", headers: { Authorization: "Bearer " + token } });
  byId("wrong").hidden = answer.ok;
  if (answer.ok) show().then(listen).catch(failed);
});

show().then(listen).catch(failed);
