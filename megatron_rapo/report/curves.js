// Cards of curves: which scalars, in which colours, with their meaning.

const COLOURS = 7;
const colour = (i) => `var(--c${i % COLOURS})`;

/** One colour for each part of a whole, the same in every run and report. */
const PART_COLOURS = {
  "reward/pass_rate": "var(--good)",
  "reward/wrong": "var(--c1)",
  "reward/no_answer": "var(--c8)",
  "reward/unevaluated": "var(--c5)",
  "reward/unparsable": "var(--c3)",
  "reward/timeout": "var(--c6)",
  "reshard/transfer_s": "var(--c0)",
  "reshard/engine_s": "var(--c5)",
  "reshard/proof_s": "var(--c3)",
  "seconds/rollout": "var(--c0)",
  "seconds/verify": "var(--c4)",
  "seconds/score": "var(--c2)",
  "seconds/train": "var(--c1)",
  "seconds/gradient_share": "var(--c5)",
  "seconds/reshard": "var(--c3)",
  "seconds/parity": "var(--c7)",
  "seconds/diagnose": "var(--c9)",
  "seconds/record": "var(--c10)",
  "seconds/evaluate": "var(--c11)",
  "seconds/checkpoint": "var(--c12)",
  "seconds/profile": "var(--c13)",
  "seconds/wait": "var(--c8)",
};
const OTHER_PART = "var(--c6)"; // of another version's run
const drawn = []; // charts that smoothing redraws
const state = { smoothing: 0 };

/** The scalars that CHARTS names so and some run has. */
function expand(names, runs) {
  const known = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  return names.flatMap((name) => known.filter((each) => (/[/@]$/.test(name) ? each.startsWith(name) : each === name)));
}

/** What tells the names of a chart apart. */
function shortNames(names) {
  if (names.length === 1) return [names[0].split("/").pop()];
  const last = names.map((name) => name.split("/").pop().replaceAll("_", " "));
  if (new Set(last).size < last.length) return names.map((name) => name.replaceAll("_", " "));
  let same = 0; // words that all begin with
  const words = last.map((name) => name.split(" "));
  while (words.every((w) => w.length > same + 1 && w[same] === words[0][same])) same++;
  return words.map((w) => w.slice(same).join(" "));
}

function lineSeries(names, runs) {
  const short = shortNames(names);
  return runs
    .flatMap((run, r) => names.map((name, n) => ({ run, r, name, n })))
    .filter(({ run, name }) => run.curves[name])
    .map(({ run, r, name, n }) => ({
      label: runs.length === 1 ? short[n] : names.length === 1 ? run.name : `${run.name} · ${short[n]}`,
      colour: colour(runs.length === 1 ? n : r),
      dash: n % 3,
      x: run.curves[name].steps,
      y: run.curves[name].values,
      low: run.curves[name].low,
      high: run.curves[name].high,
      dots: name.startsWith("eval/"),
      title: name,
    }));
}

/** One card of lines; null where no run has any of the scalars. */
function lineCard(title, names, data, extra = {}) {
  const found = expand(names, data.runs);
  if (!found.length) return null;
  const series = lineSeries(found, data.runs);
  const meaning = extra.meaning || (found.length === 1 ? data.meanings[found[0]] : "");
  return card(title, meaning, { title, series, smoothing: () => state.smoothing, ...extra }, data.meanings);
}

/** Stacked areas, one card for each run, which `meaning` describes. */
function stackCards(title, data, meaning, extra = {}) {
  return data.runs
    .filter((run) => Object.keys(run.stacks[title].values).length)
    .map((run) => {
      const { steps, values } = run.stacks[title],
        names = Object.keys(values),
        short = shortNames(names);
      const series = names.map((name, i) => ({
        label: short[i],
        colour: PART_COLOURS[name] || OTHER_PART,
        area: true,
        x: steps,
        y: values[name],
        title: name,
      }));
      const heading = data.runs.length === 1 ? title : `${title} · ${run.name}`;
      return card(heading, meaning(run), { title: heading, series, stacked: true, ...extra }, data.meanings);
    });
}

function card(title, meaning, spec, meanings = {}) {
  const known = spec.series.length === 1 ? spec.series[0].y.filter((y) => y !== null) : [];
  const heading = el(
    "h3",
    {},
    el("span", {}, title),
    el("span", { class: "latest" }, known.length ? brief(known[known.length - 1]) : ""),
  );
  const [first] = spec.series,
    ofFirst = meanings[first.title];
  const words = el("p", { class: "meaning" }, meaning || (ofFirst ? `${first.label}: ${ofFirst}` : ""));
  const box = el("div", { class: "card" }, heading, words);
  const made = { spec, redraw: () => {} };
  if (spec.series.length > 1) box.append(legend(made, words, meanings));
  Object.assign(made, chart(box, spec));
  if (spec.smoothing) drawn.push(made);
  if (!spec.stacked && wantsLog(spec)) heading.append(logButton(made));
  return box;
}

/** The series' names; pointing at one (or the Tab key) says what it means and pales the others. */
function legend(made, words, meanings) {
  const before = words.textContent;
  const point = (i) => {
    const meaning = i === null ? "" : meanings[made.spec.series[i].title] || made.spec.series[i].title || "";
    words.textContent = meaning ? `${made.spec.series[i].label}: ${meaning}` : before;
    made.spec.emphasis = i;
    made.redraw();
  };
  return el(
    "ul",
    { class: "legend" },
    ...made.spec.series.map((s, i) =>
      el(
        "li",
        {
          tabindex: "0",
          onpointerenter: () => point(i),
          onpointerleave: () => point(null),
          onfocus: () => point(i),
          onblur: () => point(null),
        },
        swatch(s),
        s.label,
      ),
    ),
  );
}

function wantsLog(spec) {
  const values = extent({ ...spec, marks: [] });
  return values.length > 3 && Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
}

function logButton(made) {
  const button = el("button", { type: "button", "aria-pressed": "false", title: "logarithmic axis" }, "log");
  button.addEventListener("click", () => {
    made.spec.log = !made.spec.log;
    button.setAttribute("aria-pressed", String(made.spec.log));
    made.redraw();
  });
  return button;
}
