// One chart in SVG: lines (with bands) or stacked areas, with a read-out under the pointer and for the arrow keys.

const MARGIN = { left: 46, right: 10, top: 10, bottom: 24 };

/**
 * Draw into `host`, again whenever its width changes. `spec`:
 *   series    [{label, colour, dash, x, y, low, high, dots}]; low and high make a band
 *   stacked   areas on each other (all of one x); share: they are parts of 1
 *   log, log2x, fromZero, marks [{value, label}], xName, height, smoothing: () => weight
 */
function chart(host, spec) {
  const plot = el("div", { class: "plot" });
  host.append(plot);
  const self = { spec, redraw: () => draw(plot, spec) };
  new ResizeObserver(self.redraw).observe(plot);
  return self;
}

function draw(plot, spec) {
  const width = plot.clientWidth,
    height = spec.height || 190;
  if (width < 40) return;
  const scale = scales(spec, width, height);
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "img",
    tabindex: "0",
    "aria-label": spoken(spec),
  });
  picture.append(...axes(spec, scale, width, height));
  picture.append(...(spec.stacked ? areas(spec, scale) : lines(spec, scale)));
  plot.replaceChildren(picture);
  readOut(plot, picture, spec, scale, height);
}

function scales(spec, width, height) {
  const xs = spec.series.flatMap((s) => s.x),
    ys = extent(spec);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (!ys.length) [low, high] = [0, 1];
  if (spec.share) [low, high] = [0, 1];
  else if (spec.log) [low, high] = [low / 1.15, high * 1.15];
  else {
    if (spec.fromZero || spec.stacked) low = Math.min(0, low);
    const room = (high - low || Math.abs(high) || 1) * 0.07;
    high += room;
    low = low === 0 || (low > 0 && low - room < 0) ? 0 : low - room;
  }
  const first = Math.min(...xs),
    last = Math.max(...xs);
  const across = spec.log2x ? (x) => Math.log2(x) : (x) => x,
    up = spec.log ? Math.log10 : (y) => y;
  const inner = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  const place = (value, a, b, size) => (b === a ? size / 2 : ((value - a) / (b - a)) * size);
  return {
    x: (x) => MARGIN.left + place(across(x), across(first), across(last), inner[0]),
    y: (y) => MARGIN.top + inner[1] - place(up(y), up(low), up(high), inner[1]),
    first,
    last,
    low,
    high,
  };
}

function extent(spec) {
  const marks = (spec.marks || []).map((mark) => mark.value);
  if (spec.stacked) return [0, ...marks, ...totals(spec)];
  const values = spec.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]);
  return [...marks, ...values].filter((y) => y !== null && (!spec.log || y > 0));
}

function totals(spec) {
  return spec.series[0].x.map((_, i) => spec.series.reduce((sum, s) => sum + (s.y[i] || 0), 0));
}

function axes(spec, scale, width, height) {
  const parts = [],
    bottom = height - MARGIN.bottom;
  const vertical = spec.log ? decades(scale.low, scale.high) : ticks(scale.low, scale.high, 4);
  for (const value of vertical.values) {
    parts.push(
      svg("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: scale.y(value), y2: scale.y(value) }),
    );
    parts.push(
      svg("text", { x: MARGIN.left - 7, y: scale.y(value) + 4, "text-anchor": "end" }, tickText(value, vertical.step)),
    );
  }
  const across = spec.log2x
    ? { values: [...new Set(spec.series.flatMap((s) => s.x))].sort((a, b) => a - b), step: 1 }
    : ticks(scale.first, scale.last, Math.max(2, Math.min(6, width / 90)));
  for (const value of across.values.filter(Number.isInteger)) {
    parts.push(
      svg(
        "text",
        { x: scale.x(value), y: bottom + 16, "text-anchor": "middle" },
        tickText(value, Math.max(1, across.step)),
      ),
    );
  }
  parts.push(svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  for (const mark of spec.marks || []) {
    const y = scale.y(mark.value);
    parts.push(svg("line", { class: "mark", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
    parts.push(
      svg("text", { class: "marklabel", x: width - MARGIN.right, y: y - 5, "text-anchor": "end" }, mark.label),
    );
  }
  return parts;
}

function decades(low, high) {
  const values = [];
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power++) values.push(10 ** power);
  const every = Math.ceil(values.length / 5);
  const kept = values.filter((_, i) => i % every === 0);
  if (kept.length > 1) return { values: kept };
  return { values: [low * 1.15, high / 1.15], step: 10 ** (Math.floor(Math.log10(low)) - 1) }; // two digits
}

function lines(spec, scale) {
  const weight = spec.smoothing ? spec.smoothing() : 0,
    parts = [];
  for (const s of spec.series) {
    if (s.low) parts.push(svg("path", { class: "band", fill: s.colour, d: band(s, scale, spec.log) }));
  }
  for (const [i, s] of spec.series.entries()) {
    const style = {
      stroke: s.colour,
      "stroke-dasharray": ["", "8 3", "2 3"][s.dash || 0],
      "stroke-opacity": paled(spec, i),
    };
    const smooth = weight > 0 && !s.dots && s.y.length > 3;
    if (smooth) parts.push(svg("path", { class: "line raw", d: path(s.x, s.y, scale, spec), ...style }));
    parts.push(
      svg("path", { class: "line", d: path(s.x, smooth ? smoothed(s.y, weight) : s.y, scale, spec), ...style }),
    );
    if (s.dots || s.x.length < 3) {
      s.x.forEach(
        (x, j) =>
          s.y[j] !== null &&
          parts.push(
            svg("circle", {
              cx: scale.x(x),
              cy: scale.y(s.y[j]),
              r: 3,
              fill: s.colour,
              "fill-opacity": paled(spec, i),
            }),
          ),
      );
    }
  }
  return parts;
}

/** Of a series, while another one is pointed at. */
const paled = (spec, i) => (spec.emphasis === undefined || spec.emphasis === null || spec.emphasis === i ? null : 0.2);

function path(x, y, scale, spec) {
  let pen = "M",
    d = "";
  x.forEach((each, i) => {
    if (y[i] === null || (spec.log && y[i] <= 0)) {
      pen = "M";
      return;
    }
    d += `${pen}${scale.x(each).toFixed(1)},${scale.y(y[i]).toFixed(1)}`;
    pen = "L";
  });
  return d;
}

/** Between low and high, where they are known (and above 0 on a logarithmic axis). */
function band(s, scale, log = false) {
  const point = (x, y) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`;
  const known = s.x.map((_, i) => i).filter((i) => s.low[i] !== null && (!log || s.low[i] > 0));
  const up = known.map((i) => point(s.x[i], s.high[i])),
    down = known.map((i) => point(s.x[i], s.low[i])).reverse();
  return known.length ? `M${[...up, ...down].join("L")}Z` : "";
}

function areas(spec, scale) {
  let below = spec.series[0].x.map(() => 0);
  return spec.series.map((s, i) => {
    const above = below.map((y, i) => y + (s.y[i] || 0));
    const d = band({ x: s.x, low: below, high: above }, scale);
    below = above;
    return svg("path", { class: "area", fill: s.colour, d, "fill-opacity": paled(spec, i) });
  });
}

/** Exponential moving average, without its bias towards the start; a gap stays one. */
function smoothed(values, weight) {
  let sum = 0,
    count = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    count = weight * count + (1 - weight);
    return sum / count;
  });
}

function spoken(spec) {
  const parts = spec.series.slice(0, 8).map((s) => {
    const known = s.y.filter((y) => y !== null);
    return `${s.label}: from ${number(known[0])} to ${number(known[known.length - 1])}`;
  });
  return `${spec.title}. ${parts.join("; ")}. Arrow keys read values.`;
}

function readOut(plot, picture, spec, scale, height) {
  const xs = [...new Set(spec.series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const pointer = makePointer(plot, picture, spec, scale, height);
  let at = -1;
  const show = (index) => {
    at = Math.max(0, Math.min(xs.length - 1, index));
    pointer.show(xs[at]);
  };
  const hide = () => {
    at = -1;
    pointer.hide();
  };
  picture.addEventListener("pointermove", (event) => {
    const x = event.clientX - picture.getBoundingClientRect().left;
    const distances = xs.map((each) => Math.abs(scale.x(each) - x));
    show(distances.indexOf(distances.reduce((a, b) => Math.min(a, b))));
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? xs.length - 1 : at - 1, Home: 0, End: xs.length - 1 };
    if (event.key === "Escape") hide();
    else if (event.key in moves) {
      event.preventDefault();
      show(moves[event.key]);
    }
  });
}

/** The line, the dots and the numbers that show every series at one x. */
function makePointer(plot, picture, spec, scale, height) {
  const tip = el("div", { class: "tip", hidden: true, role: "status" });
  const cross = svg("line", { class: "cross", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  const dots = svg("g");
  picture.append(cross, dots);
  plot.append(tip);
  const drawable = ({ s, i }) => !spec.stacked && s.y[i] !== null && (!spec.log || s.y[i] > 0);
  function show(x) {
    const across = scale.x(x);
    for (const end of ["x1", "x2"]) cross.setAttribute(end, across);
    cross.setAttribute("visibility", "visible");
    const found = spec.series.map((s) => ({ s, i: s.x.indexOf(x) })).filter(({ i }) => i >= 0);
    const dot = ({ s, i }) => svg("circle", { cx: across, cy: scale.y(s.y[i]), r: 3.2, fill: s.colour });
    dots.replaceChildren(...found.filter(drawable).map(dot));
    const rows = found.map(({ s, i }) => tipRow(s, i));
    tip.replaceChildren(el("b", {}, `${spec.xName || "step"} ${x}`), ...(spec.stacked ? rows.reverse() : rows));
    tip.hidden = false;
    const left = across + 14 + tip.offsetWidth > plot.clientWidth ? across - 14 - tip.offsetWidth : across + 14;
    tip.style.left = `${Math.max(0, left)}px`;
  }
  function hide() {
    tip.hidden = true;
    cross.setAttribute("visibility", "hidden");
    dots.replaceChildren();
  }
  return { show, hide };
}

function tipRow(s, i) {
  const interval = s.low ? ` (${number(s.low[i])} to ${number(s.high[i])})` : "";
  return el(
    "div",
    {},
    swatch(s),
    el("span", { class: "name" }, s.label),
    el("span", { class: "value" }, number(s.y[i]) + interval),
  );
}

function swatch(s) {
  const mark = el("span", { class: `swatch ${s.area ? "area" : `dash${s.dash || 0}`}`, "aria-hidden": "true" });
  mark.style[s.area ? "background" : "borderColor"] = s.colour;
  return mark;
}
