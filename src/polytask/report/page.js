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
      "legend.bgcolor": "rgba(0,0,0,0)",
    };
  };
  const plots = [...document.querySelectorAll("[data-figure]")];
  const recolor = () => plots.map((plot) => Plotly.relayout(plot, theme()));
  const drawn = plots.map((plot) => {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    return Plotly.newPlot(plot, figure.data, figure.layout, options);
  });
  Promise.all(drawn).then(recolor);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
})();
