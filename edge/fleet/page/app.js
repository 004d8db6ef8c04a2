// The fleet's page: asks the server every two seconds and shows what it says. Words that came from devices are put
// on the page as text, never as HTML; there is no innerHTML here.

const EVERY_MS = 2000;
const OUTCOMES = ["confirmed", "failed", "silent", "waiting"];
const HEALTH = {
  good: ["good", "well"], failing: ["bad", "rejected or fell back"], errors: ["bad", "too many errors"],
  silent: ["warn", "silent"], empty: ["", "no bundle yet"], brought: ["", "flashed by hand"],
};
const STATUS = { running: "good", paused: "warn", done: "good", stopped: "bad", aborted: "bad" };
const main = document.getElementById("main");
const link = document.getElementById("link");
let token = sessionStorage.getItem("token") || "";
let shown = "";
let timer = 0;
let filters = { group: "", health: "", text: "", start: 0 };
let groups = [];

// --- making elements

function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((each) => each !== null && each !== undefined && each !== ""));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
const short = (digest) => (digest ? h("code", { title: digest }, digest.slice(0, 12)) : "–");
const plural = (n, one) => `${number(n)} ${one}${n === 1 ? "" : "s"}`;

function ms(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

function ago(date) {
  const s = Math.max(0, (Date.now() - date) / 1000);
  if (s < 90) return `${Math.round(s)} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  return s < 129600 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

function when(ns) {
  if (!ns) return "never";
  const date = new Date(ns / 1e6);
  return h("time", { datetime: date.toISOString(), title: date.toISOString(), class: "fixed" }, ago(date));
}

function badge(word, kind) {
  return h("span", { class: `badge ${kind}` }, word);
}

function table(caption, headings, rows) {
  const heads = headings.map(([text, kind]) => h("th", { scope: "col", class: kind }, text));
  const lines = rows.map((row) => h("tr", {}, row.map((cell, place) => (
    h(place ? "td" : "th", place ? { class: headings[place][1] } : { scope: "row" }, cell)))));
  const made = h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

function stack(parts, label) {
  const total = parts.reduce((sum, [, n]) => sum + n, 0);
  const bar = svg("svg", { class: "stack", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img",
    "aria-label": label });
  let x = 0;
  for (const [kind, n] of parts) {
    const width = total ? (1000 * n) / total : 0;
    if (n) bar.append(svg("rect", { class: kind, x, y: 0, width, height: 10 }));
    x += width;
  }
  return bar;
}

// --- asking

class Refused extends Error {}

async function ask(path, method = "GET") {
  const answer = await fetch(`/admin/v1/${path}`, { method, headers: { authorization: `Bearer ${token}` } });
  if (answer.status === 401) throw new Refused("the token is wrong");
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || `status ${answer.status}`);
  return body;
}

function say(text, lost = false) {
  if (link.textContent !== text) link.textContent = text;
  link.classList.toggle("lost", lost);
}

// --- overview

function waves(rollout) {
  return h("ol", { class: "waves" }, rollout.waves.map((wave, place) => {
    const parts = [...OUTCOMES, "later"].map((each) => [each, wave[each]]);
    const words = OUTCOMES.filter((each) => wave[each]).map((each) => `${number(wave[each])} ${each}`);
    const text = words.join(", ") || (wave.state === "later" ? "not yet begun" : "no more devices than before");
    const adds = parts.reduce((sum, [, n]) => sum + n, 0);
    return h("li", { class: `wave ${wave.state}`, "aria-current": wave.state === "now" ? "step" : null },
      h("p", {}, h("b", {}, `Wave ${place + 1}`), h("span", { class: "note" }, ` to ${wave.label}`)),
      stack(parts, `wave ${place + 1}: ${text}`),
      h("p", { class: "said" }, `${plural(adds, "device")}: ${text}`));
  }));
}

function planned(plan) {
  const minutes = (s) => (s < 120 ? `${number(s)} s` : `${number(Math.round(s / 6) / 10)} min`);
  const soak = plan.soak_s ? `, and hold for ${minutes(plan.soak_s)}` : "";
  return `A wave passes when ${plan.success} confirm${soak}. A device fails with more than ${plan.errors} errors, `
    + `or after ${minutes(plan.silence_s)} of silence.`;
}

function actions(rollout) {
  const button = (action, text, kind) => h("button", { type: "button", class: kind,
    "data-key": `${action} ${rollout.id}`, onclick: () => act(rollout, action) }, text);
  const made = [];
  if (rollout.status === "running") made.push(button("pause", "Pause", ""));
  if (rollout.status === "paused") made.push(button("resume", "Resume", "main"));
  made.push(button("abort", "Abort and return", "danger"));
  return h("div", { class: "buttons" }, made);
}

function failures(rollout) {
  if (!rollout.failures.length) return null;
  const rows = rollout.failures.slice(0, 200).map((each) => [
    h("a", { href: `#/device/${encodeURIComponent(each.device)}` }, each.name),
    badge(each.outcome, each.outcome === "failed" ? "bad" : "warn"), each.reason]);
  const caption = rollout.failures.length > 200 ? "The first 200 devices that failed" : "Devices that failed";
  return h("details", { "data-key": `failures ${rollout.id}` },
    h("summary", { "data-key": `summary ${rollout.id}` }, `${plural(rollout.failures.length, "device")} failed`),
    table(caption, [["device", ""], ["outcome", ""], ["why", "wide"]], rows));
}

function rolloutCard(rollout, bundles) {
  const bundle = bundles[rollout.digest];
  const live = rollout.status === "running" || rollout.status === "paused";
  const name = bundle ? `${bundle.name} release ${bundle.release}` : rollout.id;
  const back = !live && rollout.status !== "done"
    ? h("p", { role: "status" }, rollout.running_it
      ? `${plural(rollout.running_it, "device")} still to return.` : "Every device has returned.") : null;
  return h("section", { "aria-labelledby": `t-${rollout.id}` },
    h("div", { class: "title" }, h("h2", { id: `t-${rollout.id}` }, name),
      badge(rollout.status, STATUS[rollout.status]),
      h("span", { class: "note" }, `group ${rollout.group}, `, short(rollout.digest), ", began ",
        when(rollout.began_ns))),
    rollout.reason && rollout.status !== "done" && rollout.status !== "paused"
      ? h("p", { class: "problem" }, rollout.reason) : null,
    h("p", { class: "note" }, planned(rollout.plan)),
    h("p", {}, `${number(rollout.confirmed)} of ${plural(rollout.devices, "device")} confirmed, `
      + `${number(rollout.failed)} failed, ${number(rollout.silent)} silent, ${number(rollout.waiting)} under way.`),
    back, waves(rollout),
    h("p", { class: "note keys" }, OUTCOMES.map((each) => h("span", {}, h("i", { class: `key ${each}` }), each))),
    live ? actions(rollout) : null, failures(rollout));
}

function groupTable(view) {
  const rows = view.groups.flatMap((group) => (group.bundles.length ? group.bundles : [null]).map((each) => {
    const bundle = each && view.bundles[each.digest];
    return [group.name, each ? short(each.digest) : "–",
      bundle ? `${bundle.name} ${bundle.target} release ${bundle.release}` : "–",
      each && each.digest && each.digest === group.confirmed ? "✓ confirmed" : "",
      each ? badge(HEALTH[each.health][1], HEALTH[each.health][0]) : "–", number(each ? each.devices : 0)];
  }));
  return table("Devices by group, bundle and health", [["group", ""], ["runs", ""], ["bundle", "text"],
    ["done", ""], ["health", ""], ["devices", "n"]], rows);
}

function logTable(view) {
  const detail = ({ kind, body }) => {
    if (kind === "rollout_step") return `${body.what}: ${body.device ? `${body.device} ` : ""}${body.detail}`;
    return Object.entries(body).filter(([, value]) => typeof value !== "object")
      .map(([key, value]) => `${key} ${String(value).slice(0, key === "digest" ? 12 : 60)}`).join(", ");
  };
  return table("What happened, newest first", [["what", ""], ["when", "fixed"], ["about", "fixed"], ["detail", "wide"]],
    view.log.map((each) => [h("span", { class: "fixed" }, each.kind.replace("_", " ")), when(each.at_ns),
      each.kind === "bundle" ? short(each.subject) : each.subject.slice(0, 40), detail(each)]));
}

function overview(view) {
  groups = view.groups.map((group) => group.name);
  const live = view.rollouts.filter((each) => each.status === "running" || each.status === "paused");
  const cards = live.length ? live : view.rollouts.slice(0, 1);
  const past = view.rollouts.filter((each) => !cards.includes(each));
  const tiles = Object.entries(HEALTH).filter(([key]) => view.health[key]).map(([key, [, text]]) => h("li", {},
    h("a", { href: `#/devices?health=${key}`, "data-key": `tile ${key}` }, h("b", {}, number(view.health[key])),
      h("span", {}, text))));
  return [
    h("h1", {}, "Overview"),
    h("p", { class: "lead" }, `${plural(view.devices, "device")} in ${plural(view.groups.length, "group")}.`),
    h("section", { "aria-label": "Health" }, h("h2", {}, "Health"),
      tiles.length ? h("ul", { class: "tiles" }, tiles)
        : h("p", { class: "note" }, "No device yet. Let one in: ", h("code", {}, "kit devices add NAME"))),
    cards.length ? cards.map((each) => rolloutCard(each, view.bundles))
      : h("section", {}, h("h2", {}, "Rollouts"), h("p", { class: "note" }, "None yet. Begin one: ",
        h("code", {}, "kit fleet rollout BUNDLE --group GROUP"))),
    h("section", { "aria-label": "Bundles" }, h("h2", {}, "Bundles"), groupTable(view)),
    past.length ? h("section", { "aria-label": "Earlier rollouts" }, h("h2", {}, "Earlier rollouts"),
      table("Rollouts that have ended", [["rollout", ""], ["group", ""], ["status", ""], ["confirmed", "n"],
        ["failed", "n"], ["silent", "n"], ["why", "wide"]], past.map((each) => [each.id, each.group,
        badge(each.status, STATUS[each.status]), number(each.confirmed), number(each.failed), number(each.silent),
        each.reason]))) : null,
    h("section", { "aria-label": "Log" }, h("h2", {}, "Log"), logTable(view)),
  ];
}

function act(rollout, action) {
  const words = {
    pause: ["Pause the rollout?", "No further device begins. Those that have the bundle keep it.", "Pause"],
    resume: ["Resume the rollout?", "It goes on where it was; the pause counts for no deadline.", "Resume"],
    abort: ["Abort the rollout?", `Every device that has taken ${rollout.id} returns to what it ran before.`,
      "Abort and return"],
  }[action];
  const dialog = document.getElementById("ask");
  document.getElementById("ask-title").textContent = words[0];
  document.getElementById("ask-text").textContent = words[1];
  const yes = document.getElementById("ask-yes");
  yes.textContent = words[2];
  yes.className = action === "abort" ? "danger" : "main";
  yes.onclick = async () => {
    dialog.close();
    try {
      await ask(`rollouts/${encodeURIComponent(rollout.id)}/${action}`, "POST");
      say(`${action} done`);
    } catch (error) {
      say(error.message, true);
    }
    look();
  };
  dialog.showModal();
}

// --- devices

function devices(view) {
  const choice = (name, label, values) => h("label", {}, label, h("select", { "data-key": name,
    onchange: (event) => { filters = { ...filters, [name]: event.target.value, start: 0 }; look(); } },
  values.map(([value, text]) => h("option", { value, selected: value === filters[name] }, text))));
  const rows = view.devices.map((each) => [
    h("a", { href: `#/device/${encodeURIComponent(each.id)}`, "data-key": each.id }, each.name), each.group,
    badge(HEALTH[each.health][1], HEALTH[each.health][0]), short(each.digest), number(each.release || null),
    number(each.answers), number(each.errors), ms(each.p95_ms), when(each.heard_ns)]);
  const last = view.start + view.devices.length;
  const turn = (text, start, there) => h("button", { type: "button", "data-key": text, disabled: !there,
    onclick: () => { filters = { ...filters, start }; look(); } }, text);
  return [
    h("h1", {}, "Devices"),
    h("section", { "aria-label": "Devices" },
      h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
        h("label", {}, "Name holds", h("input", { type: "search", value: filters.text, "data-key": "text",
          autocomplete: "off", oninput: (event) => { filters = { ...filters, text: event.target.value, start: 0 }; look(); } })),
        choice("group", "Group", [["", "all"], ...groups.map((each) => [each, each])]),
        choice("health", "Health", [["", "any"], ...Object.entries(HEALTH).map(([key, [, text]]) => [key, text])])),
      rows.length ? table(`Devices ${number(view.start + 1)} to ${number(last)} of ${number(view.total)}`,
        [["device", ""], ["group", ""], ["health", ""], ["runs", ""], ["release", "n"], ["answers", "n"],
          ["errors", "n"], ["p95 ms", "n"], ["heard", "fixed"]], rows)
        : h("p", { class: "note" }, "No device is so."),
      h("div", { class: "pages" }, turn("Back", Math.max(0, view.start - 100), view.start > 0),
        turn("On", last, last < view.total))),
  ];
}

// --- one device

const W = 520, H = 170, LEFT = 46, BOTTOM = 22, TOP = 10;

function scale(rows, values) {
  const from = rows[0].at_s, to = rows[rows.length - 1].at_s;
  const most = Math.max(...values.filter((each) => each !== null), 0) || 1;
  return {
    x: (row) => LEFT + (to === from ? 0.5 : (row.at_s - from) / (to - from)) * (W - LEFT - 8),
    y: (value) => TOP + (1 - value / most) * (H - TOP - BOTTOM),
    most,
  };
}

function frame(rows, most, unit, label) {
  const made = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  for (const share of [0, 0.5, 1]) {
    const y = TOP + (1 - share) * (H - TOP - BOTTOM);
    made.append(svg("line", { class: "grid", x1: LEFT, x2: W - 8, y1: y, y2: y }));
    const text = svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" });
    text.textContent = (most * share).toLocaleString("en", { maximumSignificantDigits: 2 });
    made.append(text);
  }
  const time = (row) => new Date(row.at_s * 1000).toISOString().slice(5, 16).replace("T", " ");
  for (const [row, x, anchor] of [[rows[0], LEFT, "start"], [rows[rows.length - 1], W - 8, "end"]]) {
    const text = svg("text", { x, y: H - 5, "text-anchor": anchor });
    text.textContent = `${time(row)} UTC`;
    made.append(text);
  }
  return made;
}

function latencies(rows) {
  const known = rows.filter((row) => row.p50_ms !== null);
  if (known.length < 2) return h("p", { class: "note" }, "Too few windows for a drawing.");
  const { x, y, most } = scale(known, known.map((row) => row.p95_ms));
  const last = known[known.length - 1];
  const made = frame(known, most, "ms", `latency over ${known.length} windows; last p50 ${ms(last.p50_ms)} ms, p95 ${ms(last.p95_ms)} ms`);
  for (const [key, kind] of [["p50_ms", "one"], ["p95_ms", "two"]]) {
    made.append(svg("polyline", { class: kind, points: known.map((row) => `${x(row)},${y(row[key])}`).join(" ") }));
  }
  return h("figure", {}, h("figcaption", {}, "Latency, ms"), made,
    h("p", { class: "note keys" }, h("span", {}, h("i", { class: "key one" }), "p50"),
      h("span", {}, h("i", { class: "key two" }), "p95")));
}

function answers(rows) {
  if (rows.length < 2) return null;
  const { y, most } = scale(rows, rows.map((row) => row.answers));
  const total = rows.reduce((sum, row) => sum + row.answers, 0);
  const wrong = rows.reduce((sum, row) => sum + row.errors, 0);
  const made = frame(rows, most, "", `${number(total)} answers in ${rows.length} windows, ${number(wrong)} of them errors`);
  const slot = (W - LEFT - 8) / rows.length;
  const width = Math.max(1, slot - 1.5);
  for (const [place, row] of rows.entries()) {
    const left = LEFT + place * slot + (slot - width) / 2;
    made.append(svg("rect", { class: "block", x: left, y: y(row.answers), width, height: y(0) - y(row.answers) }));
    if (row.errors) made.append(svg("rect", { class: "bad", x: left, y: y(Math.min(row.errors, most)), width,
      height: y(0) - y(Math.min(row.errors, most)) }));
  }
  return h("figure", {}, h("figcaption", {}, "Answers per window"), made,
    h("p", { class: "note keys" }, h("span", {}, h("i", { class: "key one" }), "answers"),
      h("span", {}, h("i", { class: "key bad" }), "errors")));
}

function meter(index, threshold) {
  const most = Math.max(index, threshold) * 1.15 || 1;
  const made = svg("svg", { class: "meter", viewBox: "0 0 120 10", "aria-hidden": "true" });
  made.append(svg("rect", { class: "track", x: 0, y: 0, width: 120, height: 10 }),
    svg("rect", { class: index > threshold ? "over" : "value", x: 0, y: 0, width: (120 * index) / most, height: 10 }),
    svg("line", { class: "mark", x1: (120 * threshold) / most, x2: (120 * threshold) / most, y1: 0, y2: 10 }));
  return made;
}

function drift(rows) {
  if (!rows.length) {
    return h("p", { class: "note" }, "Nothing to compare yet: the bundle has no profile, or the device has sent no window.");
  }
  const figure = (value) => (value === null ? "–" : value.toFixed(3));
  return table("What it sees beside what the model was made with", [["column", ""], ["of", ""], ["", ""],
    ["index", "n"], ["threshold", "n"], ["drifted", ""], ["values", "n"]], rows.map((each) => [each.name, each.role,
    each.index === null ? "" : meter(each.index, each.threshold), figure(each.index), figure(each.threshold),
    badge(each.drifted ? "drifted" : "no", each.drifted ? "bad" : "good"), number(each.n)]));
}

function devicePage(device) {
  const machine = device.status.machine || {};
  const engines = machine.engines ? Object.entries(machine.engines).map(([name, version]) => `${name} ${version}`) : [];
  const facts = [["Group", device.group], ["Runs", short(device.digest)], ["Release", number(device.release || null)],
    ["Can go back to", short(device.previous)], ["Phase", device.phase], ["Answers", number(device.answers)],
    ["Errors", number(device.errors)], ["p50, p95", `${ms(device.p50_ms)}, ${ms(device.p95_ms)} ms`],
    ["Agent", device.status.agent || "–"], ["Machine", [machine.machine, machine.python && `Python ${machine.python}`,
      ...engines].filter(Boolean).join(", ") || "–"], ["Heard", when(device.heard_ns)]];
  const report = device.status.last_report || {};
  return [
    h("p", { class: "up" }, h("a", { href: "#/devices", "data-key": "back" }, "All devices")),
    h("div", { class: "title" }, h("h1", {}, device.name), badge(HEALTH[device.health][1], HEALTH[device.health][0])),
    report.detail ? h("p", { class: "lead" }, `Last report: ${report.status}: ${report.detail}`) : null,
    h("section", { "aria-label": "State" }, h("h2", {}, "State"),
      h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))))),
    h("section", { "aria-label": "Latency and answers" }, h("h2", {}, "Latency and answers"),
      h("div", { class: "charts" }, latencies(device.windows), answers(device.windows))),
    h("section", { "aria-label": "Drift" }, h("h2", {}, "Drift"), drift(device.drift)),
    h("section", { "aria-label": "History" }, h("h2", {}, "History"),
      table("What happened on it, newest first", [["what", ""], ["when", "fixed"], ["bundle", ""], ["detail", "wide"]],
        device.moments.slice(0, 50).map((each) => [each.what.replace("_", " "), when(each.at_ns), short(each.digest),
          each.detail]))),
    device.rollouts.length ? h("section", { "aria-label": "Rollouts" }, h("h2", {}, "Rollouts"),
      table("Rollouts that reached it", [["rollout", ""], ["outcome", ""], ["why", "wide"]],
        device.rollouts.map((each) => [each.id, badge(each.outcome, each.outcome === "confirmed" ? "good"
          : each.outcome === "waiting" ? "" : "bad"), each.reason]))) : null,
  ];
}

// --- showing, following, signing in

function show(parts) {
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : "";
  const range = document.activeElement && document.activeElement.type === "search"
    ? [document.activeElement.selectionStart, document.activeElement.selectionEnd] : null;
  const open = [...main.querySelectorAll("details[open]")].map((each) => each.dataset.key);
  const scrolled = [...main.querySelectorAll(".scroll")].map((each) => [each.getAttribute("aria-label"), each.scrollLeft]);
  main.replaceChildren(...parts.flat().filter(Boolean));
  for (const each of main.querySelectorAll("details")) each.open = open.includes(each.dataset.key);
  for (const [label, left] of scrolled) {
    const same = [...main.querySelectorAll(".scroll")].find((each) => each.getAttribute("aria-label") === label);
    if (same) same.scrollLeft = left;
  }
  const again = focused && [...main.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused);
  if (again) {
    again.focus({ preventScroll: true });
    if (range && again.type === "search") again.setSelectionRange(...range);
  }
}

function signIn(problem) {
  clearTimeout(timer);
  shown = "";
  document.getElementById("nav").hidden = true;
  document.getElementById("leave").hidden = true;
  say("");
  const input = h("input", { type: "password", id: "token", autocomplete: "off", required: true,
    "aria-describedby": "token-help" });
  const form = h("form", { class: "sign", onsubmit: (event) => {
    event.preventDefault();
    token = input.value.trim();
    sessionStorage.setItem("token", token);
    look();
  } }, h("label", { for: "token" }, "Token"), input,
  h("p", { class: "note", id: "token-help" }, "It stands in the file that ", h("code", {}, "kit fleet serve"), " names."),
  problem ? h("p", { class: "problem", role: "alert" }, problem) : null,
  h("div", {}, h("button", { type: "submit", class: "main" }, "Open")));
  show([h("section", { "aria-labelledby": "sign-title" }, h("h1", { id: "sign-title" }, "Open the fleet"), form)]);
  input.focus();
}

function route() {
  const [path, query] = location.hash.slice(1).split("?");
  const device = path.match(/^\/device\/(.+)$/);
  if (device) return { page: "device", path: `devices/${encodeURIComponent(decodeURIComponent(device[1]))}`, draw: devicePage };
  if (path === "/devices") {
    if (query) {
      filters = { group: "", health: "", text: "", start: 0, ...Object.fromEntries(new URLSearchParams(query)) };
      history.replaceState(null, "", "#/devices");
    }
    return { page: "devices", path: `devices?${new URLSearchParams(filters)}`, draw: devices };
  }
  return { page: "overview", path: "overview", draw: overview };
}

let asked = 0;

async function look() {
  clearTimeout(timer);
  if (!token) return signIn("");
  const now = ++asked;
  const { page, path, draw } = route();
  try {
    if (page === "devices" && !groups.length) groups = (await ask("overview")).groups.map((group) => group.name);
    const view = await ask(path);
    if (now !== asked) return;
    document.getElementById("nav").hidden = false;
    document.getElementById("leave").hidden = false;
    for (const each of document.querySelectorAll("nav a")) {
      if (each.dataset.page === page) each.setAttribute("aria-current", "page");
      else each.removeAttribute("aria-current");
    }
    const { now_ns: ignored, ...rest } = view;
    const text = path + JSON.stringify(rest);
    if (text !== shown) {
      const first = !shown.startsWith(path.split("?")[0]);
      show(draw(view));
      document.title = `${main.querySelector("h1").textContent} · Fleet`;
      if (first && shown) main.focus();
      shown = text;
    }
    for (const each of main.querySelectorAll("time")) each.textContent = ago(new Date(each.dateTime));
    say("live");
  } catch (error) {
    if (now !== asked) return;
    if (error instanceof Refused) {
      token = "";
      sessionStorage.removeItem("token");
      return signIn(error.message);
    }
    if (error instanceof TypeError) say("the server does not answer; trying again", true);
    else {
      say(error.message, true);
      if (!shown.startsWith(path)) show([h("h1", {}, "Not there"), h("p", { class: "problem" }, error.message)]);
    }
  }
  timer = setTimeout(look, EVERY_MS);
}

document.getElementById("ask-no").addEventListener("click", () => document.getElementById("ask").close());
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
document.getElementById("leave").addEventListener("click", () => {
  token = "";
  sessionStorage.removeItem("token");
  signIn("");
});
window.addEventListener("hashchange", look);
const given = location.hash.match(/^#token=([\w-]+)(.*)$/);
if (given) {
  token = given[1];
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", `#${given[2].replace(/^&/, "") || "/"}`);
}
look();
