// The page from top to bottom.

const THEMES = ["auto", "light", "dark"];

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const sections = [
    ["Overview", "", overview(data)],
    ["Learning", "", grid(...lineCards("Learning", data))],
    [
      "pass@k",
      "How often one of k samples is right: the unbiased estimator, with 95 % bootstrap intervals over problems.",
      passAtK(data),
    ],
    ["Verifier", "What became of the sampled answers.", grid(...verifierCards(data))],
    [
      "Engine and trainer",
      "Rollouts are sampled by another program than the one that is trained. How far apart they are.",
      grid(...lineCards("Engine and trainer", data)),
    ],
    [
      "Estimators",
      "What sampled tokens are worth as estimates of what the objective is about.",
      grid(...lineCards("Estimators", data)),
    ],
    ["Optimisation", "", grid(...lineCards("Optimisation", data))],
    ["Resharding", "The trainer's weights on their way into the engine, at every step.", grid(...reshardCards(data))],
    ["Time", "Where each step's seconds went.", grid(...timeCards(data))],
    [
      "Rollouts",
      "Completions as they were sampled, token by token, before the step trained on them.",
      rolloutSection(data),
    ],
    ["Settings", "", settings(data)],
  ].filter(([, , content]) => content && content.childElementCount);
  document.getElementById("top").append(...heading(data, sections));
  document
    .getElementById("main")
    .append(
      ...sections.map(([title, words, content]) =>
        el("section", { id: anchor(title) }, el("h2", {}, title), words ? el("p", {}, words) : null, content),
      ),
    );
}

const anchor = (title) => title.toLowerCase().replace(/[^a-z]+/g, "-");
const grid = (...cards) => el("div", { class: "grid" }, ...cards);

function heading(data, sections) {
  const title = data.runs.length === 1 ? data.runs[0].name : `${data.runs.length} runs`;
  const nav = el(
    "nav",
    { "aria-label": "Sections" },
    ...sections.map(([name]) => el("a", { href: `#${anchor(name)}` }, name)),
  );
  const smoothing = segments(
    "Smoothing",
    [
      [0, "off"],
      [0.6, "0.6"],
      [0.9, "0.9"],
    ],
    0,
    (weight) => {
      state.smoothing = weight;
      drawn.forEach((each) => each.redraw());
    },
  );
  const theme = segments(
    "Theme",
    THEMES.map((name) => [name, name]),
    storedTheme(),
    setTheme,
  );
  setTheme(storedTheme());
  return [el("h1", {}, title), nav, el("div", { class: "controls" }, smoothing, theme)];
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = "auto";

function storedTheme() {
  try {
    const stored = localStorage.getItem("megatron_rapo-theme");
    return THEMES.includes(stored) ? stored : "auto";
  } catch {
    return "auto";
  } // a file may have no storage
}

function setTheme(name) {
  chosenTheme = name;
  try {
    localStorage.setItem("megatron_rapo-theme", name);
  } catch {
    /* it is forgotten, then */
  }
  document.documentElement.dataset.theme = name === "auto" ? (prefersDark.matches ? "dark" : "light") : name;
}
prefersDark.addEventListener("change", () => setTheme(chosenTheme));

main();
