"use strict";

// Reads /status every two seconds and shows it. Texts are set as text, never as HTML.
const REFRESH_MS = 2000;
const HEADLINES = {
  remote: "Qdrant answers",
  local: "Understudy answers",
  draining: "Qdrant is back: replaying what is pending",
};
const ALONE = "Local store: no Qdrant is configured";

const $ = (id) => document.getElementById(id);
const count = (value) => (value ?? 0).toLocaleString("en");
const set = (id, text) => { $(id).textContent = text; };

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes ?? 0, unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

const ago = (moment) => (moment ? `${span(Math.max(0, (Date.now() - new Date(moment)) / 1000))} ago` : "never");

function card(value, label, className = "") {
  const made = element("div", "", `card ${className}`);
  made.append(element("b", String(value)), element("span", label));
  return made;
}

function bar(value, most) {
  const made = document.createElement("progress");
  made.max = Math.max(most, 1);
  made.value = most ? Math.min(value, most) : 1;
  return made;
}

function left(status) {
  const seconds = status.replay?.left_seconds;
  return seconds === null || seconds === undefined ? "" : `, done in ${span(seconds)}`;
}

function cards(status) {
  const oldest = status.oldest_pending_age_seconds;
  const phase = String(status.breaker?.phase ?? status.breaker ?? "closed").replace("_", "-");
  const replica = status.replica ?? {};
  const held = Number(status.quarantine?.length ?? status.quarantine ?? 0);
  return [
    card(count(status.pending), status.pending ? `writes pending, oldest ${span(oldest)}${left(status)}` : "writes pending", status.pending ? "tone" : ""),
    card(ago(status.last_sync), "last sync"),
    card(phase, "circuit breaker", phase === "closed" ? "" : "bad"),
    card(count(held), "in quarantine", held ? "bad" : ""),
    card(replica.pid ? "running" : "away", `replica, ${count(replica.restarts)} ${replica.restarts === 1 ? "restart" : "restarts"}`, replica.pid ? "" : "bad"),
    card(size(status.wal?.bytes), "log on disk"),
  ];
}

function cursors(status) {
  const last = status.last_seq ?? 0;
  return [["acknowledged", last], ["at Qdrant", status.replayed_seq], ["in the replica", status.applied_seq]].map(
    ([label, at]) => {
      const row = element("div");
      row.append(element("span", label, "quiet"), bar(at ?? 0, last), element("output", count(at)));
      return row;
    });
}

function collections(status) {
  const rows = (status.collections ?? []).map((one) => {
    const row = element("tr");
    const state = String(one.completeness ?? "").toLowerCase();
    const tag = element("td");
    tag.append(element("span", state || "unknown", `tag ${state}`));
    const done = element("td");
    const whole = state === "complete" ? one.points : Math.max(one.expected_points ?? 0, one.points ?? 0);
    done.append(bar(one.points ?? 0, whole));
    const compared = one.verified_at ? `${span(Math.max(0, (Date.now() - new Date(one.verified_at)) / 1000))} ago` : "never";
    row.append(element("td", one.name), tag, element("td", count(one.points), "number"), done, element("td", one.index_state ?? ""), element("td", compared, "quiet"));
    return row;
  });
  if (rows.length) return rows;
  const none = element("tr"), cell = element("td", "none yet", "quiet");
  cell.colSpan = 6;
  none.append(cell);
  return [none];
}

function alerts(status) {
  const list = [];
  if (status.wal?.latched) list.push(`The log takes no more writes: ${status.wal.latched}. It tries again by itself; \`understudy wal reopen\` tries at once.`);
  if (Number(status.quarantine?.length ?? status.quarantine ?? 0)) list.push("Qdrant refused writes; they are kept. See: understudy wal quarantine list");
  if (status.conflicts?.kept) list.push(`Others changed ${count(status.conflicts.kept)} points that pending writes were about. See: understudy wal conflicts list`);
  if (status.replay?.last_error) list.push(`Replay: ${status.replay.last_error}`);
  return list;
}

function show(status) {
  const state = String(status.state ?? "unknown").toLowerCase();
  document.body.dataset.state = status.upstream ? state : "alone";
  const headline = status.upstream ? HEADLINES[state] ?? state : ALONE;
  document.title = `${status.upstream ? state : "local store"} · Understudy`;
  set("headline", headline);
  set("reason", status.reason ?? "");
  set("since", status.since ? `for ${span(Math.max(0, (Date.now() - new Date(status.since)) / 1000))}` : "");
  set("upstream", status.upstream ? `in front of ${status.upstream}` : "in front of nothing yet");
  set("version", `Understudy ${status.version ?? ""}`);
  const warnings = alerts(status);
  $("alerts").hidden = !warnings.length;
  $("alerts").replaceChildren(...warnings.map((text) => element("li", text)));
  $("cards").replaceChildren(...cards(status));
  $("cursors").replaceChildren(...cursors(status));
  $("collections").replaceChildren(...collections(status));
}

async function refresh() {
  try {
    const answer = await fetch("status", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    show(await answer.json());
    set("contact", `updated ${new Date().toLocaleTimeString()}`);
    $("contact").className = "quiet";
  } catch {
    set("contact", "Understudy does not answer");
    $("contact").className = "lost";
  }
  setTimeout(refresh, REFRESH_MS);
}

refresh();
