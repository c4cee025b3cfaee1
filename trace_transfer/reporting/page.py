"""The frame of the report's page: its head, its styles, and the script that draws the plots."""

from __future__ import annotations

from string import Template

STYLE = """\
:root { color-scheme: light dark; --ink: #1a1a1a; --muted: #595959; --paper: #fff; --panel: #f5f6f7; --line: #d5d8db;
  --accent: #0b5cad; --warn: #8a4b00; --warn-paper: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --muted: #a8adb3; --paper: #15181b; --panel: #1f2428;
  --line: #3c4248; --accent: #74b6ff; --warn: #ffcf8f; --warn-paper: #38290f; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
main { max-width: 1240px; margin: 0 auto; padding: 20px 24px 60px; }
h1 { margin: 0 0 4px; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 44px 0 10px; padding-top: 10px; border-top: 1px solid var(--line); font-size: 20px; }
h3 { margin: 26px 0 6px; font-size: 16px; }
h4 { margin: 18px 0 4px; font-size: 15px; }
p, ul { margin: 6px 0 12px; max-width: 82ch; overflow-wrap: anywhere; }
ul { padding-left: 22px; }
li { margin: 2px 0; }
a { color: var(--accent); }
.lead, .note, figcaption { color: var(--muted); }
.note, figcaption { font-size: 14px; max-width: 100ch; }
.answer { margin: 4px 0 6px; padding: 6px 12px; border-left: 4px solid var(--accent); background: var(--panel); }
.warning { padding: 8px 12px; border-left: 4px solid var(--warn); background: var(--warn-paper); max-width: none; }
nav ol { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 14px 0; padding: 0; list-style: none; font-size: 14px; }
.scroll { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { padding: 2px 0 6px; text-align: left; color: var(--muted); }
th, td { padding: 4px 9px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; white-space: normal; }
.beside th, .beside td { padding: 2px 7px; }
.beside thead th { max-width: 13ch; }
th[scope=row], .text { text-align: left; }
th[scope=row] { font-weight: 500; }
td.text { white-space: normal; max-width: 70ch; overflow-wrap: break-word; }
.beside { display: flex; flex-wrap: wrap; gap: 4px 40px; }
.beside .scroll { max-width: 100%; }
figure { margin: 16px 0 22px; }
.plot { position: relative; width: 100%; }
.choose { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 8px; }
button, select { font: inherit; font-size: 14px; padding: 3px 11px; max-width: 100%; color: var(--ink);
  background: var(--paper);
  border: 1px solid var(--line); border-radius: 4px; cursor: pointer; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--paper); }
button:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); }
img { max-width: 100%; min-width: 420px; background: #fff; }
pre { overflow-x: auto; padding: 10px 14px; background: var(--panel); border: 1px solid var(--line); font-size: 13px; }
code { font-family: ui-monospace, monospace; font-size: 0.93em; }
th code, td code { overflow-wrap: break-word; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) { main { padding: 12px 12px 40px; } h1 { font-size: 22px; } }
@media print {
  :root { --ink: #000; --muted: #444; --paper: #fff; --panel: #f5f6f7; --line: #bbb; --accent: #0b5cad;
    --warn: #8a4b00; --warn-paper: #fff4e0; }
  @page { margin: 14mm; }
  body { font-size: 12px; }
  .note, figcaption { font-size: 11px; }
  h2 { margin-top: 26px; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, h4 { break-after: avoid; }
  figure, tr, .answer { break-inside: avoid; }
  button:not([aria-pressed=true]) { display: none; }
  .scroll { overflow: visible; }
  .plot { min-width: 0 !important; }
  table { font-size: 9.5px; }
  th, td { padding: 2px 5px; white-space: normal; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """\
"use strict";
const LIGHT = {ink: "#1a1a1a", muted: "#595959", paper: "#ffffff", line: "#d5d8db"};
const DARK = {ink: "#e8e8e8", muted: "#a8adb3", paper: "#15181b", line: "#3c4248"};
const PRINTED_WIDTH = 680;
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

/* A layout in the colours of the page; what is drawn inside cells keeps its own. */
function themed(spec) {
  const colours = dark.matches && !printing ? DARK : LIGHT, layout = structuredClone(spec.layout);
  layout.paper_bgcolor = "rgba(0,0,0,0)";
  if (!layout.plot_bgcolor || layout.plot_bgcolor === "white") layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = {...layout.font, color: colours.ink};
  layout.hoverlabel = {...layout.hoverlabel, bgcolor: colours.paper, bordercolor: colours.ink,
    font: {size: 13, color: colours.ink}};
  for (const key of Object.keys(layout).filter(key => /^[xy]axis/.test(key)))
    Object.assign(layout[key], {gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.muted});
  layout.modebar = {bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.ink};
  layout.height = spec.height;
  if (printing) Object.assign(layout, {width: spec.width, autosize: false});
  return layout;
}

const figures = [...document.querySelectorAll("figure > script")].map(script => {
  const figure = script.parentElement, plot = figure.querySelector(".plot");
  return {figure, plot, specs: JSON.parse(script.textContent), shown: 0};
});

function draw(one) {
  const spec = one.specs[one.shown];
  one.plot.style.height = spec.height + "px";
  one.plot.style.maxWidth = spec.width + "px";
  one.plot.style.zoom = printing ? Math.min(1, PRINTED_WIDTH / spec.width) : "";
  return Plotly.react(one.plot, structuredClone(spec.data), themed(spec), {displaylogo: false, responsive: true,
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]], toImageButtonOptions: {scale: 2}});
}

for (const one of figures) {
  const buttons = [...one.figure.querySelectorAll("button")];
  const list = one.figure.querySelector("select");
  if (list) list.addEventListener("change", () => { one.shown = Number(list.value); draw(one); });
  for (const button of buttons) button.addEventListener("click", () => {
    one.shown = Number(button.dataset.choice);
    buttons.forEach(other => other.setAttribute("aria-pressed", other === button));
    draw(one);
  });
  draw(one);
}

/* A plot inside a closed part has no width until it is opened. */
document.querySelectorAll("details").forEach(part => part.addEventListener("toggle", () =>
  figures.filter(one => part.contains(one.plot)).forEach(draw)));
dark.addEventListener("change", () => figures.forEach(draw));
addEventListener("beforeprint", () => { printing = true; figures.forEach(draw); });
addEventListener("afterprint", () => { printing = false; figures.forEach(draw); });
"""

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$warnings
<nav aria-label="Contents"><ol>
$contents
</ol></nav>
<noscript>
<p class="warning">The plots need JavaScript; all numbers are in the tables. No network is needed.</p>
</noscript>
$sections
</main>
<script>$plotly</script>
<script>
$script</script>
</body>
</html>
""")
