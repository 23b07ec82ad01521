"use strict";
// Everything that comes from the service is put in as text, never as markup.
const STAGES = ["circuit", "groups", "update", "verdict", "commit"];
const WORDS = { open: "waiting", running: "under way", held: "held, not verified", committed: "done", cancelled: "cancelled" };
const LIMIT = 500;
const AGAIN_MS = 3000;
const within = new Map(); // batch -> share of its stage that is done
const byId = (id) => document.getElementById(id);
let source = null;
let timer = 0;

async function get(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (answer.status === 401) throw new Error("login");
  if (!answer.ok) throw new Error("status " + answer.status);
  return answer.json();
}

function cell(row, text, label) {
  const made = document.createElement(label ? "td" : "th");
  if (label) made.dataset.label = label;
  else made.scope = "row";
  made.textContent = text;
  row.append(made);
  return made;
}

function progressOf(batch, stage) {
  const at = STAGES.indexOf(stage);
  return at < 0 ? 0 : (at + (within.get(batch) || 0)) / STAGES.length;
}

// Reasons as a list; what stands between backquotes is a command.
function reasons(text) {
  const list = document.createElement("ul");
  for (const reason of text.split("; ")) {
    const line = document.createElement("li");
    reason.split("`").forEach((part, k) => {
      const piece = document.createElement(k % 2 ? "code" : "span");
      piece.textContent = part;
      line.append(piece);
    });
    list.append(line);
  }
  return list;
}

function linkTo(address, text) {
  const link = document.createElement("a");
  link.href = address;
  link.target = "_blank";
  link.rel = "noopener";
  link.textContent = text;
  return link;
}

function rowOf(request, stages, today) {
  const row = document.createElement("tr");
  row.dataset.state = request.state;
  cell(row, request.id);
  const state = cell(row, WORDS[request.state] || request.state, "State");
  state.className = "state";
  if (request.detail) state.append(reasons(request.detail));
  cell(row, request.n_ids + " " + (request.n_ids === 1 ? request.kind.slice(0, -1) : request.kind), "Asks for");
  cell(row, request.received.slice(0, 10), "Received");
  const due = cell(row, request.due || "no date", "Due");
  const waits = request.state !== "committed" && request.state !== "cancelled";
  if (waits && request.due && request.due < today) {
    due.className = "overdue";
    due.append(" (overdue)");
  }
  const place = cell(row, "", "Progress");
  if (request.state === "running") {
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.dataset.batch = request.batch;
    bar.dataset.stage = stages[request.batch] || "";
    bar.value = progressOf(request.batch, bar.dataset.stage);
    bar.setAttribute("aria-label", "progress of " + request.id);
    place.append(bar, " " + (bar.dataset.stage || "start"));
  } else if (request.finished) place.append("finished " + request.finished.slice(0, 10));
  const papers = cell(row, "", "Papers");
  if (request.report) papers.append(linkTo(request.report, "report"));
  if (request.record) papers.append(linkTo(request.record, "record"));
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

function next(status, counts) {
  const rule = status.schedule;
  const inMinutes = Math.max(1, Math.round(rule.every_s / 60));
  if (status.retrain_due) return status.retrain_due.replaceAll("`", "");
  if (status.running) return "a run is under way";
  if (rule.failures) return "the last run broke off; it is tried again";
  const said = [];
  // What is held is not tried again by itself: the same batch is judged the same.
  if (counts.open && rule.every_s !== null) said.push("a run, at most every " + inMinutes + " min");
  else if (counts.open && rule.before_days !== null) said.push("a run, " + rule.before_days + " day(s) before a date");
  else if (counts.open) said.push("waits for a run by hand");
  if (counts.held && rule.retrain_before_days !== null) {
    said.push("for what is held, a retrain " + rule.retrain_before_days + " day(s) before its date");
  } else if (counts.held) said.push("held until more comes in, or a retrain, or the policy allows it");
  return said.join("; ") || "nothing is due";
}

async function show() {
  const [status, listed] = await Promise.all([get("/status"), get("/requests?limit=" + LIMIT)]);
  const stages = Object.fromEntries(status.batches.map((batch) => [batch.id, batch.stage]));
  const today = new Date().toISOString().slice(0, 10);
  byId("rows").replaceChildren(...listed.requests.map((request) => rowOf(request, stages, today)));
  byId("none").hidden = listed.requests.length > 0;
  const counts = status.requests;
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  byId("more").hidden = total <= LIMIT;
  byId("more").textContent = "The first " + LIMIT + " of " + total + ".";
  const waiting = counts.open + counts.held;
  byId("summary").textContent =
    waiting + " waiting, " + counts.running + " under way, " + counts.committed + " done" +
    (status.overdue ? ", " + status.overdue + " overdue" : "");
  const drift = status.drift;
  byId("facts").replaceChildren(
    fact("Version in force", status.version.slice(0, 16)),
    fact("Drift since the last training", drift.distance.toFixed(3) + " of " + drift.distance_budget),
    fact("Records in the chain", String(status.records)),
    fact("Next", next(status, counts))
  );
  byId("login").hidden = true;
  byId("content").hidden = false;
  return status.last_event;
}

function soon() {
  // Many events come together; one look is enough for them.
  if (!timer) timer = setTimeout(() => { timer = 0; show().catch(failed); }, 250);
}

function listen(after) {
  if (source) source.close();
  source = new EventSource("/events?after=" + after);
  for (const kind of ["request", "batch", "stage", "version", "data"]) source.addEventListener(kind, soon);
  source.addEventListener("stage", (event) => within.delete(JSON.parse(event.data).batch));
  source.addEventListener("progress", (event) => {
    const told = JSON.parse(event.data);
    within.set(told.batch, told.total ? Math.min(1, told.done / told.total) : 0);
    for (const bar of document.querySelectorAll("progress")) {
      if (bar.dataset.batch === told.batch) bar.value = progressOf(told.batch, bar.dataset.stage);
    }
  });
  source.addEventListener("error", () => {
    soon(); // lost: the look says whether the service or the session is gone
    // A browser tries again by itself only where the connection broke, not where a proxy answered with an error.
    if (source.readyState === EventSource.CLOSED) again();
  });
}

function again() {
  setTimeout(() => {
    show().then(listen).catch((error) => {
      failed(error);
      if (error.message !== "login") again();
    });
  }, AGAIN_MS);
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
