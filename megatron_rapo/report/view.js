// The page from top to bottom.

const THEMES = ["auto", "light", "dark"];

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const sections = [
    ["Overview", "", overview(data)],
    ["Learning", "", grid(...lineCards("Learning", data))],
    ["pass@k", "How often one of k samples is right: the unbiased estimator, with 95 % bootstrap intervals over problems.", passAtK(data)],
    ["Verifier", "What became of the sampled answers.", grid(...verifierCards(data))],
    ["Engine and trainer", "Rollouts are sampled by another program than the one that is trained. How far apart they are.", grid(...lineCards("Engine and trainer", data))],
    ["Estimators", "What sampled tokens are worth as estimates of what the objective is about.", grid(...lineCards("Estimators", data))],
    ["Optimisation", "", grid(...lineCards("Optimisation", data))],
    ["Resharding", "The trainer's weights on their way into the engine, at every step.", grid(...reshardCards(data))],
    ["Time", "Where each step's seconds went.", grid(...timeCards(data))],
    ["Rollouts", "Completions as they were sampled, token by token, before the step trained on them.", rolloutSection(data)],
    ["Settings", "", settings(data)],
  ].filter(([, , content]) => content && content.childElementCount);
  document.getElementById("top").append(...heading(data, sections));
  document.getElementById("main").append(...sections.map(([title, words, content]) =>
    el("section", { id: anchor(title) }, el("h2", {}, title), words ? el("p", {}, words) : null, content)));
}

const anchor = (title) => title.toLowerCase().replace(/[^a-z]+/g, "-");
const grid = (...cards) => el("div", { class: "grid" }, ...cards);

function heading(data, sections) {
  const title = data.runs.length === 1 ? data.runs[0].name : `${data.runs.length} runs`;
  const nav = el("nav", { "aria-label": "Sections" }, ...sections.map(([name]) => el("a", { href: `#${anchor(name)}` }, name)));
  const smoothing = segments("Smoothing", [[0, "off"], [0.6, "0.6"], [0.9, "0.9"]], 0, (weight) => {
    state.smoothing = weight;
    drawn.forEach((each) => each.redraw());
  });
  const theme = segments("Theme", THEMES.map((name) => [name, name]), storedTheme(), setTheme);
  setTheme(storedTheme());
  return [el("h1", {}, title), nav, el("div", { class: "controls" }, smoothing, theme)];
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = "auto";

function storedTheme() {
  try {
    const stored = localStorage.getItem("megatron_rapo-theme");
    return THEMES.includes(stored) ? stored : "auto";
  } catch { return "auto"; }  // a file may have no storage
}

function setTheme(name) {
  chosenTheme = name;
  try { localStorage.setItem("megatron_rapo-theme", name); } catch { /* it is forgotten, then */ }
  document.documentElement.dataset.theme = name === "auto" ? (prefersDark.matches ? "dark" : "light") : name;
}
prefersDark.addEventListener("change", () => setTheme(chosenTheme));

function overview(data) {
  return el("div", {}, ...data.runs.flatMap((run, r) => [data.runs.length > 1 ? runName(run, r) : null, tiles(run)]));
}

function runName(run, r) {
  return el("p", { class: "runname" }, swatch({ colour: colour(r) }), run.name);
}

function tiles(run) {
  const curve = (name) => (run.curves[name] ? run.curves[name].values.filter((v) => v !== null) : []);
  const last = (name) => curve(name).at(-1), first = (name) => curve(name)[0];
  const change = (name) => (curve(name).length ? [brief(last(name)), `from ${brief(first(name))}`] : null);
  const steps = run.curves["seconds/step"] || { steps: [], values: [] };
  const planned = run.settings["run.steps"];
  const passes = Object.entries(run.summary).filter(([name]) => name.startsWith("pass@"))
    .map(([name, when]) => [name, [brief(when.after ?? when.before), when.after === undefined ? "before training" : `from ${brief(when.before)}`]]);
  const gap = run.curves["rollout/logprob_gap_max"], gaps = gap ? (gap.high || gap.values).filter((v) => v !== null) : [];
  const shown = [
    ["steps", [number(steps.steps.at(-1) || 0), planned ? `of ${number(planned)}` : ""]],
    ["reward", change("reward/mean")], ...passes, ["entropy, nats", change("policy/entropy")], ["KL, nats", change("policy/kl")],
    ["completion, tokens", change("rollout/completion_tokens")],
    ["largest gap, nats", gaps.length ? [brief(Math.max(...gaps)), "engine to trainer"] : null],
    ["tokens per second", curve("throughput/tokens_per_s").length ? [number(Math.round(mean(curve("throughput/tokens_per_s")))), "mean"] : null],
    ["a step", steps.values.length ? [duration(mean(steps.values)), "mean"] : null],
  ].filter(([, value]) => value);
  return el("dl", { class: "tiles" }, ...shown.map(([name, [value, more]]) =>
    el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, el("small", {}, more)))));
}

function duration(seconds) {
  if (seconds < 120) return `${number(Number(seconds.toPrecision(3)))} s`;
  return seconds < 7200 ? `${number(Number((seconds / 60).toPrecision(3)))} min` : `${number(Number((seconds / 3600).toPrecision(3)))} h`;
}

function lineCards(section, data) {
  return Object.entries(data.charts[section]).map(([title, names]) => lineCard(title, names, data)).filter((each) => each);
}

function passAtK(data) {
  const others = data.evaluations.filter((e) => ofRun(e, data) < 0);  // the base, say: neither in a run's colour nor solid
  const series = data.evaluations.map((e) => ({
    label: e.label, ...(ofRun(e, data) < 0 ? { colour: colour(6 - others.indexOf(e)), dash: 1 } : { colour: colour(ofRun(e, data)) }), x: e.k, y: e.pass_at, low: e.low, high: e.high, dots: true,
    title: `${e.model} on ${e.problems} problems of ${e.data}, ${e.samples} samples of each`,
  }));
  const cards = [];
  if (series.length) cards.push(passCard("pass@k with intervals", series, "From the files of the evaluate command; the band is the interval."));
  data.runs.forEach((run, r) => {
    const found = Object.entries(run.summary).filter(([name]) => name.startsWith("pass@"));
    if (!found.length) return;
    const k = found.map(([name]) => Number(name.slice(5)));
    const of = (when, dash, i) => ({ label: `${when} training`, colour: colour(i), dash, x: k, y: found.map(([, v]) => v[when] ?? null), dots: true });
    const title = data.runs.length === 1 ? "Before and after training" : `Before and after · ${run.name}`;
    cards.push(passCard(title, [of("before", 1, 6), of("after", 0, r)], "As the run itself measured on its held-out problems."));
  });
  return grid(...cards);
}

/** Which run the evaluation lay in the folder of; -1 for none. */
const ofRun = (evaluation, data) => data.runs.findIndex((run) => evaluation.label.split(": ")[0] === run.name);

function passCard(title, series, meaning) {
  return card(title, meaning, { title, series, log2x: true, xName: "k =", height: 230 });
}

function verifierCards(data) {
  const { Verdicts: _, ...others } = data.charts.Verifier;
  const meaning = "Every completion has one verdict; pass rate is those found right.";
  return [...stackCards("Verdicts", data, { share: true, meaning }),
    ...Object.entries(others).map(([title, names]) => lineCard(title, names, data)).filter((each) => each)];
}

function reshardCards(data) {
  const time = data.charts.Time, first = data.runs[0];
  const copies = [...new Set(data.runs.map((run) => run.machine.copy_gb_per_s).filter((v) => v))];
  const marks = copies.map((value) => ({ value, label: `a plain copy, ${copies.length > 1 ? "on one of the machines, " : ""}${brief(value)} GB/s` }));
  const speed = median(first, "reshard/transfer_gb_per_s");
  const share = speed && copies.length === 1 ? `, ${Math.round((100 * speed) / copies[0])} % of what the machine copies` : "";
  const parts = time.Resharding.map((name) => `${name.slice(8, -2)} ${brief(median(first, name) * 1000)} ms`);
  const whose = data.runs.length > 1 ? ` (${first.name})` : "";
  return [
    lineCard("Transfer against a plain copy, GB/s", time["Resharding, GB/s"], data, { marks, fromZero: true, meaning: `Copied, sent and received by the first process. Median ${brief(speed)} GB/s${share}${whose}.` }),
    ...stackCards("Seconds by part", data, { meaning: `Moving, packing by the engine, proof of every tensor. Medians: ${parts.join(", ")}${whose}.` }),
    lineCard("Moved by the first process, MiB", ["reshard/copied_mib", "reshard/sent_mib", "reshard/received_mib"], data, { fromZero: true }),
  ].filter((each) => each);
}

function median(run, name) {
  const values = run.curves[name] ? run.curves[name].values.filter((v) => v !== null).sort((a, b) => a - b) : [];
  return values.length ? values[Math.floor(values.length / 2)] : null;
}

function timeCards(data) {
  const throughput = data.charts.Time.Throughput;
  return [...stackCards("Seconds by phase", data, { meaning: "One after the other on the first process; what is missing to a step's whole duration was timed as none of them." }),
    lineCard("Throughput", throughput, data, { fromZero: true })].filter((each) => each);
}

function settings(data) {
  const single = data.runs.length === 1;
  const columns = single ? ["this run", "default"] : data.runs.map((run) => run.name);
  const words = single ? "Settings that are not at their defaults." : "Settings that the runs do not share.";
  const changed = data.differences.length ? table(["setting", ...columns], data.differences.map((d) => [d.name, ...d.values])) : el("p", { class: "empty" }, "None.");
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.settings)))];
  const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const all = table(["setting", ...data.runs.map((run) => run.name)], names.map((name) => [name, ...data.runs.map((run) => text(run.settings[name]))]));
  const made = data.runs.filter((run) => run.machine.device).map((run) => el("p", { class: "meaning" },
    `${run.name}: ${run.machine.processes} processes on ${run.machine.device}; ${Object.entries(run.machine.versions || {}).map(([p, v]) => `${p} ${v}`).join(", ")}`));
  return el("div", { class: "card" }, el("p", { class: "meaning" }, words), changed, el("details", {}, el("summary", {}, `All ${names.length} settings`), all), ...made);
}

function table(columns, rows) {
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...columns.map((c) => el("th", { scope: "col" }, c)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", { class: "mono" }, cell)))))));
}

main();
