// What the sections hold that are not plain cards of curves.

function overview(data) {
  return el("div", {}, ...data.runs.flatMap((run, r) => [data.runs.length > 1 ? runName(run, r) : null, tiles(run)]));
}

function runName(run, r) {
  return el("p", { class: "runname" }, swatch({ colour: colour(r) }), run.name);
}

function tiles(run) {
  const curve = (name) => (run.curves[name] ? run.curves[name].values.filter((v) => v !== null) : []);
  const last = (name) => curve(name).at(-1),
    first = (name) => curve(name)[0];
  const change = (name) => (curve(name).length ? [brief(last(name)), `from ${brief(first(name))}`] : null);
  const steps = run.curves["seconds/step"] || { steps: [], values: [] };
  const planned = run.settings["run.steps"];
  const passes = Object.entries(run.summary)
    .filter(([name]) => name.startsWith("pass@"))
    .map(([name, when]) => [
      name,
      [brief(when.after ?? when.before), when.after === undefined ? "before training" : `from ${brief(when.before)}`],
    ]);
  const gap = run.curves["rollout/logprob_gap_max"],
    gaps = gap ? (gap.high || gap.values).filter((v) => v !== null) : [];
  const shown = [
    ["steps", [number(steps.steps.at(-1) || 0), planned ? `of ${number(planned)}` : ""]],
    ["reward", change("reward/mean")],
    ...passes,
    ["entropy, nats", change("policy/entropy")],
    ["KL, nats", change("policy/kl")],
    ["completion, tokens", change("rollout/completion_tokens")],
    ["largest gap, nats", gaps.length ? [brief(Math.max(...gaps)), "engine to trainer"] : null],
    [
      "tokens per second",
      curve("throughput/tokens_per_s").length
        ? [number(Math.round(mean(curve("throughput/tokens_per_s")))), "mean"]
        : null,
    ],
    ["a step", steps.values.length ? [duration(mean(steps.values)), "mean"] : null],
  ].filter(([, value]) => value);
  return el(
    "dl",
    { class: "tiles" },
    ...shown.map(([name, [value, more]]) =>
      el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, el("small", {}, more))),
    ),
  );
}

function duration(seconds) {
  if (seconds < 120) return `${number(Number(seconds.toPrecision(3)))} s`;
  return seconds < 7200
    ? `${number(Number((seconds / 60).toPrecision(3)))} min`
    : `${number(Number((seconds / 3600).toPrecision(3)))} h`;
}

function lineCards(section, data) {
  return Object.entries(data.charts[section])
    .map(([title, names]) => lineCard(title, names, data))
    .filter((each) => each);
}

function passAtK(data) {
  const others = data.evaluations.filter((e) => e.run < 0); // the base, say: dashed, in no run's colour
  const series = data.evaluations.map((e) => ({
    label: e.label,
    colour: colour(e.run < 0 ? 6 - others.indexOf(e) : e.run),
    dash: e.run < 0 || e.earlier ? 1 : 0,
    x: e.k,
    y: e.pass_at,
    low: e.low,
    high: e.high,
    dots: true,
    title: `${e.model} on ${e.problems} problems of ${e.data}, ${e.samples} samples of each`,
  }));
  return grid(...(series.length ? [passCard("pass@k with intervals", series, "The band is the interval.")] : []));
}

function passCard(title, series, meaning) {
  return card(title, meaning, { title, series, log2x: true, xName: "k =", height: 230 });
}

function verifierCards(data) {
  const { Verdicts: _, ...others } = data.charts.Verifier;
  const meaning = "Every completion has one verdict; pass rate is those found right.";
  return [
    ...stackCards("Verdicts", data, () => meaning, { share: true }),
    ...Object.entries(others)
      .map(([title, names]) => lineCard(title, names, data))
      .filter((each) => each),
  ];
}

function reshardCards(data) {
  const time = data.charts.Time,
    first = data.runs[0];
  const copies = [...new Set(data.runs.map((run) => run.machine.copy_gb_per_s).filter((v) => v))];
  const marks = copies.map((value) => ({
    value,
    label: `a plain copy, ${copies.length > 1 ? "on one of the machines, " : ""}${brief(value)} GB/s`,
  }));
  const speed = median(first, "reshard/transfer_gb_per_s");
  const share =
    speed && copies.length === 1 ? `, ${Math.round((100 * speed) / copies[0])} % of what the machine copies` : "";
  const parts = (run) => time.Resharding.map((name) => `${name.slice(8, -2)} ${brief(median(run, name) * 1000)} ms`);
  const whose = data.runs.length > 1 ? ` (${first.name})` : "";
  return [
    lineCard("Transfer against a plain copy, GB/s", time["Resharding, GB/s"], data, {
      marks,
      fromZero: true,
      meaning: `Copied, sent and received by the first process. Median ${brief(speed)} GB/s${share}${whose}.`,
    }),
    ...stackCards(
      "Seconds by part",
      data,
      (run) => `Moving, packing by the engine, proof of every tensor. Medians: ${parts(run).join(", ")}.`,
    ),
    lineCard(
      "Moved by the first process, MiB",
      ["reshard/copied_mib", "reshard/sent_mib", "reshard/received_mib"],
      data,
      { fromZero: true },
    ),
  ].filter((each) => each);
}

function median(run, name) {
  const values = run.curves[name] ? run.curves[name].values.filter((v) => v !== null).sort((a, b) => a - b) : [];
  return values.length ? values[Math.floor(values.length / 2)] : null;
}

function timeCards(data) {
  const throughput = data.charts.Time.Throughput;
  return [
    ...stackCards(
      "Seconds by phase",
      data,
      () =>
        "One after the other on the first process; what is missing to the whole step was timed as none of them.",
    ),
    lineCard("Throughput", throughput, data, { fromZero: true }),
  ].filter((each) => each);
}

function settings(data) {
  const single = data.runs.length === 1;
  const columns = single ? ["this run", "default"] : data.runs.map((run) => run.name);
  const words = single ? "Settings that are not at their defaults." : "Settings that the runs do not share.";
  const changed = data.differences.length
    ? table(
        ["setting", ...columns],
        data.differences.map((d) => [d.name, ...d.values]),
      )
    : el("p", { class: "empty" }, "None.");
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.settings)))];
  const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const all = table(
    ["setting", ...data.runs.map((run) => run.name)],
    names.map((name) => [name, ...data.runs.map((run) => text(run.settings[name]))]),
  );
  const made = data.runs
    .filter((run) => run.machine.device)
    .map((run) =>
      el(
        "p",
        { class: "meaning" },
        `${run.name}: ${count(run.machine.processes, "process", "processes")} on ${run.machine.device}; ${Object.entries(
          run.machine.versions || {},
        )
          .map(([p, v]) => `${p} ${v}`)
          .join(", ")}`,
      ),
    );
  return el(
    "div",
    { class: "card" },
    el("p", { class: "meaning" }, words),
    changed,
    ...changesOnTheWay(data),
    el("details", {}, el("summary", {}, `All ${names.length} settings`), all),
    ...made,
  );
}

function changesOnTheWay(data) {
  const rows = data.runs.flatMap((run) => run.changes.map((c) => [run.name, c.step, c.name, c.before, c.after]));
  if (!rows.length) return [];
  return [
    el("p", { class: "meaning" }, "Settings that a resumed run changed, with the first step under the new value."),
    table(["run", "from step", "setting", "before", "after"], rows),
  ];
}

function table(columns, rows) {
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...columns.map((c) => el("th", { scope: "col" }, c)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", { class: "mono" }, cell))))),
    ),
  );
}
