"use strict";
// What all pages share: the block of JSON, charts that follow the colour scheme and the window, and options of their axes.
const shardmill = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const charts = [];
  const count = (n) => n.toLocaleString("en-US");
  const short = (n) => String(Number(Number(n).toPrecision(3)));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // What the bins of a histogram are called: of whole numbers the first and the last one, else both edges.
  const bins = (found) => found.rows.map((_, at) => {
    const from = found.edges[at], to = found.edges[at + 1], last = at === found.rows.length - 1;
    if (!found.whole || found.scale === "log") return short(from) + " to " + short(to);
    const end = last && found.scale === "tail" ? to : to - 1;
    return end > from ? from + " to " + end : String(from);
  });

  // `make` gives the options anew for another colour scheme or width.
  function draw(id, make, after) {
    const place = document.getElementById(id);
    if (!place) return;
    const chart = echarts.init(place, null, { renderer: "canvas" });
    charts.push({ chart, place, make });
    chart.setOption(make(place.clientWidth));
    if (after) after(chart);
  }

  function base(more) {
    const axis = { axisLabel: { color: colour("soft") }, axisLine: { lineStyle: { color: colour("line") } }, splitLine: { lineStyle: { color: colour("line") } } };
    return {
      animation: false, textStyle: { fontFamily: "system-ui, sans-serif" },
      tooltip: { trigger: "axis", renderMode: "richText", axisPointer: { type: "shadow" }, confine: true, backgroundColor: colour("card"), borderColor: colour("line"), textStyle: { color: colour("ink"), fontSize: 12 } },
      ...more, xAxis: { ...axis, ...more.xAxis, axisLabel: { ...axis.axisLabel, ...(more.xAxis.axisLabel || {}) } },
      yAxis: { ...axis, ...more.yAxis, axisLabel: { ...axis.axisLabel, ...(more.yAxis.axisLabel || {}) } },
    };
  }

  const again = () => charts.forEach(({ chart, place, make }) => { chart.resize(); chart.setOption(make(place.clientWidth), true); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("resize", again);
  // Paper is white, whatever the screen is; a canvas is no style that would follow by itself.
  const printed = (now) => { document.documentElement.classList.toggle("printed", now); again(); };
  addEventListener("beforeprint", () => printed(true));
  addEventListener("afterprint", () => printed(false));
  return { data, charts, count, short, bins, colour, draw, base };
})();
