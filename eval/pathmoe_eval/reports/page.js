// Draws the figures of the page in the reader's scheme, and again when that changes.
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  const template = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"),
      tickcolor: colour("--line"), title: { font: { size: 13 } }, ticks: "outside", ticklen: 4, zeroline: false,
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: style.fontFamily, size: 13, color: colour("--muted") },
        colorway: [1, 2, 3, 4, 5, 6].map((place) => colour(`--series-${place}`)),
        hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--line"), font: { color: colour("--text") } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--muted") },
        xaxis: axis, yaxis: axis,
      },
    };
  };

  // From few to many, few being the colour of the page; and from below to above a neutral middle.
  const scales = () => dark.matches
    ? { sequential: [[0, "#1b2430"], [0.35, "#2f5d8a"], [0.7, "#63a3d8"], [1, "#d6ecff"]],
        diverging: [[0, "#e0975a"], [0.5, "#20262e"], [1, "#6db1ea"]] }
    : { sequential: [[0, "#f3f6fa"], [0.35, "#a9c8e6"], [0.7, "#3f7cb8"], [1, "#0f2f57"]],
        diverging: [[0, "#b3561b"], [0.5, "#f4f4f2"], [1, "#1f5f9f"]] };

  const draw = () => Promise.all(figures.map((figure, number) => {
    const look = template();
    const layout = { ...figure.layout, template: look, autosize: true };
    if (layout.meta && layout.meta.series) {
      const series = look.layout.colorway;
      layout.colorway = layout.meta.series.map((place) => series[place % series.length]);
    }
    if (layout.coloraxis) {
      const scale = scales()[layout.meta.scale];
      const place = layout.meta.middle;
      layout.coloraxis = {
        ...layout.coloraxis,
        colorscale: place === undefined ? scale : [[0, scale[0][1]], [place, scale[1][1]], [1, scale[2][1]]],
      };
    }
    return Plotly.react(`figure-${number}`, figure.data, layout, config);
  }));

  dark.addEventListener("change", draw);
  draw().then(() => { document.documentElement.dataset.figuresDrawn = figures.length; });
})();
