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
