"use strict";
// Elements and numbers. What comes from a run only ever becomes text: nothing on this page parses markup.

function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A group of buttons of which one is pressed. */
function segments(label, choices, chosen, choose) {
  const buttons = choices.map(([value, text]) =>
    el("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => press(value) }, text),
  );
  function press(value) {
    choices.forEach(([each], i) => buttons[i].setAttribute("aria-pressed", String(each === value)));
    choose(value);
  }
  return el(
    "div",
    { class: "segments", role: "group", "aria-label": label },
    el("span", { "aria-hidden": "true" }, label),
    ...buttons,
  );
}

function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

/** Spell a tick of an axis whose ticks are multiples of `step`, exactly. */
function tickText(value, step = value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) {
    const unit = 10 ** Math.floor(Math.log10(size) + 1e-9);
    return `${(value / unit).toFixed(decimals(step / unit))}e${Math.round(Math.log10(unit))}`;
  }
  if (size >= 1e4) return `${(value / 1000).toFixed(decimals(step / 1000))}k`;
  return value.toFixed(decimals(step));
}

/** As many as a multiple of `step` needs. */
function decimals(step) {
  for (let count = 0; count < 6; count++) {
    const scaled = step * 10 ** count;
    if (Math.abs(scaled - Math.round(scaled)) < 1e-6 * scaled) return count;
  }
  return 6;
}

const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;

/** A short form, where a glance must do. */
function brief(value) {
  return value === undefined || value === null || Number.isInteger(value)
    ? number(value)
    : number(Number(value.toPrecision(3)));
}

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough) || 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { values: found, step };
}

/** Text with what cannot be seen made visible, and nothing that reorders a line. */
function visible(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(
      /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/gu,
      (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`,
    );
}
