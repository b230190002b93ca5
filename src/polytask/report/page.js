"use strict";
(() => {
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    return {
      "font.color": color("--text"),
      "hoverlabel.bgcolor": color("--card"),
      "hoverlabel.bordercolor": color("--line"),
      "hoverlabel.font.color": color("--text"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": color("--muted"),
      "modebar.activecolor": color("--accent"),
    };
  };
  const plots = [...document.querySelectorAll("[data-figure]")];
  const recolor = () => plots.map((plot) => Plotly.relayout(plot, theme()));
  const drawn = plots.map((plot) => {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
    const options = { responsive: true, displaylogo: false, modeBarButtons: buttons };
    return Plotly.newPlot(plot, figure.data, figure.layout, options);
  });
  Promise.all(drawn).then(recolor);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
})();
