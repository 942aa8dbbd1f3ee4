"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.querySelector("button.theme");

  const value = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const dressed = (layout) => {
    const axis = { gridcolor: value("--grid"), linecolor: value("--line"), zerolinecolor: value("--line"), automargin: true,
      exponentformat: "none", separatethousands: true };
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { color: value("--muted"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      margin: { l: 8, r: 12, t: 10, b: 8 }, bargap: 0.25,
      hoverlabel: { bgcolor: value("--card"), bordercolor: value("--line"), font: { color: value("--ink") } },
      legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom", font: { color: value("--ink") } },
      ...layout,
    };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) full[name] = { ...axis, ...layout[name] };
    }
    return full;
  };

  const draw = () => {
    button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    let drawn = 0;
    for (const [id, figure] of Object.entries(figures)) {
      try {
        Plotly.react(id, figure.data, dressed(figure.layout), { responsive: true, displaylogo: false, displayModeBar: false });
        drawn += 1;
      } catch (error) {
        document.getElementById(id).textContent = `This plot could not be drawn: ${error.message}`;
      }
    }
    root.dataset.drawn = String(drawn);
  };

  const follow = () => { root.dataset.theme = system.matches ? "dark" : "light"; draw(); };
  system.addEventListener("change", follow);
  button.addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; draw(); });
  follow();
})();
