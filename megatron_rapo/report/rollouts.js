// The browser of recorded completions: filters, a list, and one completion with its tokens coloured.

const MODES = {
  kl: {
    name: "KL estimate (k3), nats",
    of: (t) => (t.logRho === null ? null : Math.exp(Math.max(-30, Math.min(30, t.logRho))) - 1 - t.logRho),
  },
  rho: { name: "log ρ = reference − policy, nats", signed: true, of: (t) => t.logRho },
  gap: { name: "engine − trainer, nats", signed: true, of: (t) => t.gap },
  surprise: { name: "surprise = −log π, nats", of: (t) => (t.trainer === null ? null : -t.trainer) },
};
const VERDICTS = { correct: ["✓", "good"], wrong: ["✗", "bad"] };
const LISTED = 300;

function tokenNumbers(c, i) {
  const engine = c.engine_logp[i],
    trainer = c.trainer_logp[i],
    reference = c.reference_logp ? c.reference_logp[i] : null;
  const both = (a, b) => (a === null || b === null ? null : a - b);
  const stale = place(c, i) <= (c.stale_tokens || 0); // the engine had other weights than the trainer
  return { engine, trainer, reference, logRho: both(reference, trainer), gap: stale ? null : both(engine, trainer) };
}

function rolloutSection(data) {
  const all = data.runs.flatMap((run) => run.completions.map((c) => ({ ...c, run: run.name })));
  const recorded = data.runs.reduce((sum, run) => sum + run.recorded, 0);
  if (!all.length) return el("p", { class: "empty" }, "No completions were recorded (monitor.rollouts_every_steps).");
  for (const c of all) {
    const numbers = c.tokens.map((_, i) => tokenNumbers(c, i));
    c.numbers = numbers;
    c.meanKl = mean(numbers.map(MODES.kl.of));
    c.meanGap = mean(numbers.map((t) => (t.gap === null ? null : Math.abs(t.gap))));
  }
  const limits = Object.fromEntries(Object.entries(MODES).map(([mode, { of }]) => [mode, limit(all, of)]));
  const list = el("div", { class: "list", role: "listbox", "aria-label": "completions", tabindex: "0" });
  const detail = el("div", { class: "card detail", "aria-live": "off" });
  const count = el("span", { class: "count", role: "status" });
  const view = {
    all,
    shown: [],
    at: 0,
    mode: all.some((c) => c.reference_logp) ? "kl" : "gap",
    limits,
    list,
    detail,
    count,
    recorded,
  };
  const box = el("div", {}, filters(view, data), el("div", { class: "browser" }, list, detail));
  list.addEventListener("keydown", (event) => {
    const moves = {
      ArrowDown: view.at + 1,
      ArrowUp: view.at - 1,
      j: view.at + 1,
      k: view.at - 1,
      Home: 0,
      End: view.shown.length - 1,
    };
    if (event.key in moves) {
      event.preventDefault();
      select(view, moves[event.key]);
    }
  });
  return box;
}

function mean(values) {
  const known = values.filter((v) => v !== null);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
}

/** What the deepest colour stands for: nearly the largest of all, so that one token does not pale the others. */
function limit(all, of) {
  const sizes = all
    .flatMap((c) => c.numbers.map(of))
    .filter((v) => v !== null)
    .map(Math.abs)
    .sort((a, b) => a - b);
  return sizes.length ? sizes[Math.floor(0.995 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1 : 1;
}

function filters(view, data) {
  const steps = [...new Set(view.all.map((c) => c.step))].sort((a, b) => a - b);
  const verdicts = [...new Set(view.all.map((c) => c.verdict))].sort();
  const field = {
    run: choice(["all", ...data.runs.map((run) => run.name)]),
    step: choice(["all", ...steps]),
    verdict: choice(["all", ...verdicts]),
    least: el("input", { type: "number", step: "any", placeholder: "any" }),
    most: el("input", { type: "number", step: "any", placeholder: "any" }),
    problem: el("input", { type: "search", placeholder: "id or text" }),
    order: choice(["as sampled", "reward", "KL", "gap"]),
  };
  const apply = () =>
    filter(view, Object.fromEntries(Object.entries(field).map(([name, input]) => [name, input.value])));
  for (const input of Object.values(field)) input.addEventListener("input", apply);
  const labels = {
    run: "Run",
    step: "Step",
    verdict: "Verdict",
    least: "Reward from",
    most: "to",
    problem: "Problem",
    order: "Order",
  };
  const shown = Object.keys(field).filter((name) => name !== "run" || data.runs.length > 1);
  queueMicrotask(apply);
  return el(
    "div",
    { class: "filters" },
    ...shown.map((name) => el("label", {}, labels[name], field[name])),
    view.count,
  );
}

function choice(values) {
  return el("select", {}, ...values.map((value) => el("option", { value }, String(value).replaceAll("_", " "))));
}

function filter(view, by) {
  const words = by.problem.trim().toLowerCase(),
    orders = { reward: (c) => c.reward, KL: (c) => c.meanKl, gap: (c) => c.meanGap };
  view.shown = view.all.filter(
    (c) =>
      (by.run === "all" || c.run === by.run) &&
      (by.step === "all" || String(c.step) === by.step) &&
      (by.verdict === "all" || c.verdict === by.verdict) &&
      (by.least === "" || c.reward >= Number(by.least)) &&
      (by.most === "" || c.reward <= Number(by.most)) &&
      (!words || c.problem.toLowerCase().includes(words) || c.prompt.toLowerCase().includes(words)),
  );
  if (by.order in orders)
    view.shown.sort((a, b) => (orders[by.order](b) ?? -Infinity) - (orders[by.order](a) ?? -Infinity));
  const more = view.shown.length > LISTED ? `; the first ${LISTED} are listed` : "";
  const recorded = view.recorded > view.all.length ? ` (${view.recorded} recorded)` : "";
  view.count.textContent = `${view.shown.length} of ${view.all.length}${recorded}${more}`;
  view.list.replaceChildren(...view.shown.slice(0, LISTED).map((c, i) => option(view, c, i)));
  if (view.shown.length) select(view, 0);
  else view.detail.replaceChildren(el("p", { class: "empty" }, "Nothing is left; loosen a filter."));
}

function option(view, c, i) {
  const [glyph, kind] = VERDICTS[c.verdict] || ["?", "unsure"];
  return el(
    "div",
    { role: "option", id: `completion-${i}`, "aria-selected": "false", onclick: () => select(view, i) },
    el("span", { class: kind, "aria-label": c.verdict }, glyph),
    el("span", { class: "who" }, visible(`${c.problem} #${c.sample}`)),
    el("span", {}, number(c.reward)),
    el("span", { class: "sub" }, `step ${c.step} · ${c.tokens.length + c.cut} tokens · KL ${number(c.meanKl)}`),
  );
}

function select(view, index) {
  const most = Math.min(view.shown.length, LISTED) - 1;
  view.list.children[view.at]?.setAttribute("aria-selected", "false");
  view.at = Math.max(0, Math.min(most, index));
  const chosen = view.list.children[view.at];
  chosen.setAttribute("aria-selected", "true");
  view.list.setAttribute("aria-activedescendant", chosen.id);
  const above = chosen.offsetTop - view.list.offsetTop;
  if (above < view.list.scrollTop || above + chosen.offsetHeight > view.list.scrollTop + view.list.clientHeight)
    view.list.scrollTop = above - 40;
  showCompletion(view, view.shown[view.at]);
}

function showCompletion(view, c) {
  const [glyph, kind] = VERDICTS[c.verdict] || ["?", "unsure"];
  const facts = {
    answer: c.answer === null ? "none" : visible(c.answer),
    "reference answer": visible(c.reference_answer),
    reward: number(c.reward),
    ...(Object.keys(c.terms).length > 1
      ? {
          "made of": Object.entries(c.terms)
            .map(([name, v]) => `${name} ${number(v)}`)
            .join(", "),
        }
      : {}),
    advantage: number(c.advantage),
    phi: number(c.phi),
    tokens: [
      c.tokens.length + c.cut,
      c.truncated && "cut off by the limit",
      !c.in_loss && "not in the loss",
      c.stale_tokens > 0 && `the first ${c.stale_tokens} from weights of earlier steps`,
    ]
      .filter((each) => each !== false)
      .join(", "),
    "mean KL": number(c.meanKl),
    "mean |gap|": number(c.meanGap),
  };
  const run = view.all.some((other) => other.run !== c.run) ? `, ${c.run}` : "";
  const where = `${visible(c.problem)}, sample ${c.sample}, step ${c.step}${run}`;
  view.detail.replaceChildren(
    el("h3", {}, el("span", { class: kind }, `${glyph} ${c.verdict.replaceAll("_", " ")}`), el("small", {}, where)),
    el(
      "dl",
      { class: "facts" },
      ...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    el("div", {}, el("h4", {}, "Prompt"), el("pre", { class: "prompt" }, visible(c.prompt))),
    completionBox(view, c),
  );
}

function completionBox(view, c) {
  const modes = el(
    "select",
    { "aria-label": "tokens coloured by" },
    ...Object.entries(MODES).map(([value, mode]) => el("option", { value, selected: value === view.mode }, mode.name)),
  );
  const tokens = el("div", {
    class: "tokens",
    tabindex: "0",
    role: "group",
    "aria-label": "Completion; arrow keys read tokens",
  });
  const scale = el("span", { class: "scale" }),
    readout = el("div", { class: "readout", role: "status" });
  const spans = c.tokens.map((text, i) => el("span", { "data-i": i }, shownToken(text)));
  tokens.append(...spans);
  if (c.cut) spans[c.cut_at].before(el("i", { class: "cut" }, `\n… ${c.cut} tokens left out …\n`));
  const curve = el("div", { class: "bytoken" });
  const paint = () => {
    colourTokens(view, c, spans, scale);
    chart(curve, tokenCurve(view, c));
  };
  modes.addEventListener("input", () => {
    view.mode = modes.value;
    curve.replaceChildren();
    paint();
  });
  paint();
  tokenKeys(c, tokens, spans, readout);
  return el("div", {}, el("h4", {}, "Completion", modes, scale), tokens, readout, curve);
}

/** What the tokens are coloured by, as a curve over them: where in a long completion to look. */
function tokenCurve(view, c) {
  const { name, of, signed } = MODES[view.mode];
  const x = c.tokens.map((_, i) => place(c, i)),
    y = c.numbers.map(of);
  if (c.cut) {
    // the line is broken where tokens are left out
    x.splice(c.cut_at, 0, c.cut_at + 1);
    y.splice(c.cut_at, 0, null);
  }
  const series = [{ label: name, colour: signed ? "var(--c0)" : "var(--c1)", x, y }];
  return { title: name, series, xName: "token", height: 150, fromZero: true };
}

/** Of a token, from 1. */
const place = (c, i) => (i >= c.cut_at ? i + c.cut : i) + 1;

/** A line break is seen and made. */
const shownToken = (text) => visible(text).replaceAll("\n", "⏎\n");

function colourTokens(view, c, spans, scale) {
  const { of, signed } = MODES[view.mode],
    most = view.limits[view.mode];
  spans.forEach((span, i) => {
    const value = of(c.numbers[i]);
    const depth = value === null ? 0 : Math.min(1, Math.abs(value) / most);
    span.style.background = depth > 0.01 ? shade(value < 0 ? "low" : "high", depth) : "";
  });
  const bar = el("i", { "aria-hidden": "true" });
  const colours = [...(signed ? [shade("low", 1)] : []), "transparent", shade("high", 1)];
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  scale.replaceChildren(signed ? number(-most) : "0", bar, number(most));
}

const shade = (end, depth) => `rgba(var(--${end}-rgb), ${(0.62 * depth).toFixed(3)})`;

function tokenKeys(c, tokens, spans, readout) {
  let at = -1;
  const show = (index, scroll) => {
    spans[at]?.classList.remove("current");
    at = Math.max(0, Math.min(spans.length - 1, index));
    spans[at].classList.add("current");
    if (scroll) spans[at].scrollIntoView({ block: "nearest" });
    readout.replaceChildren(...tokenFacts(c, at));
  };
  readout.append("Point at a token, or move with the arrow keys.");
  tokens.addEventListener(
    "pointerover",
    (event) => event.target.dataset.i && show(Number(event.target.dataset.i), false),
  );
  tokens.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
    if (event.key in moves) {
      event.preventDefault();
      show(moves[event.key], true);
    }
  });
}

function tokenFacts(c, i) {
  const t = c.numbers[i];
  const facts = [
    ["token", `${place(c, i)} ${JSON.stringify(visible(c.tokens[i]))}`],
    ["KL", number(MODES.kl.of(t))],
    ["log ρ", number(t.logRho)],
    ["trainer", number(t.trainer)],
    ["engine", number(t.engine)],
    ["engine − trainer", number(t.gap)],
    ["reference", number(t.reference)],
  ];
  return facts.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, value)));
}
