"use strict";
// Draws the charts from the block of JSON, opens a fate's rows from its bar, and moves the what-if sliders.
// Texts of strangers reach the page by textContent and ECharts' own drawing of text alone, never as HTML.
(() => {
  const { data, charts, count, short, bins, colour, draw, base } = shardmill;

  const funnel = (lines) => (width) => {
    const total = lines.reduce((sum, one) => sum + one.rows, 0);
    let left = total;
    const before = lines.map((one) => one.fate === "kept" ? 0 : (left -= one.rows));
    const narrow = width < 600;
    return base({
      grid: { left: narrow ? 8 : 210, right: 48, top: 8, bottom: 28 },
      xAxis: { type: "value", max: total, minInterval: 1, axisLabel: { formatter: (n) => n >= 1e6 ? n / 1e6 + "M" : n >= 1e4 ? n / 1e3 + "k" : String(n), hideOverlap: true } },
      yAxis: { type: "category", inverse: true, data: lines.map((one) => one.fate), axisTick: { show: false }, axisLabel: { show: !narrow, width: 200, overflow: "truncate", interval: 0, fontSize: 11 } },
      tooltip: { ...base({ xAxis: {}, yAxis: {} }).tooltip, formatter: (found) => { const one = lines[found[0].dataIndex]; return one.fate + ": " + count(one.rows) + " rows" + (one.meaning ? "\n" + one.meaning : ""); } },
      series: [
        { type: "bar", stack: "rows", silent: true, itemStyle: { color: "transparent" }, data: before },
        { type: "bar", stack: "rows", barMinHeight: 2, cursor: "pointer", label: { show: true, position: "right", color: colour("soft"), fontSize: 11, formatter: (one) => narrow ? lines[one.dataIndex].fate.split(":").pop() + " " + count(one.value) : count(one.value) },
          data: lines.map((one, at) => ({ value: one.rows, itemStyle: { color: colour(one.fate === "kept" ? "kept" : "drop") }, ...(narrow ? { label: { position: before[at] > total / 2 ? "left" : "right" } } : {}) })) },
      ],
    });
  };

  function histogram(found) {
    return () => base({
      grid: { left: 48, right: 12, top: 8, bottom: 24 },
      legend: { show: false },
      xAxis: { type: "category", data: bins(found), axisTick: { show: false }, axisLabel: { formatter: (text) => text.split(" to ")[0], hideOverlap: true } },
      yAxis: { type: "value", minInterval: 1 },
      series: [
        { name: "all", type: "bar", barGap: "-100%", barCategoryGap: "8%", barMaxWidth: 48, itemStyle: { color: colour("all") }, data: found.rows },
        { name: "kept", type: "bar", barMaxWidth: 48, itemStyle: { color: colour("kept") }, data: found.kept },
      ],
    });
  }

  function category(lines) {
    return () => base({
      grid: { left: 76, right: 44, top: 4, bottom: 24 },
      xAxis: { type: "value", minInterval: 1, axisLabel: { hideOverlap: true } },
      yAxis: { type: "category", inverse: true, data: lines.map((one) => one.value === null ? "others" : one.value), axisTick: { show: false }, axisLabel: { width: 66, overflow: "truncate" } },
      series: [
        { name: "all", type: "bar", barGap: "-100%", itemStyle: { color: colour("all") }, data: lines.map((one) => one.rows) },
        { name: "kept", type: "bar", itemStyle: { color: colour("kept") }, data: lines.map((one) => one.kept) },
      ],
    });
  }

  function ranked(found) {
    const log = { type: "log", axisLabel: { formatter: short, hideOverlap: true } };
    const line = (name, points, ink) => ({ name, type: "line", symbolSize: 5, lineStyle: { color: ink, width: 2 }, itemStyle: { color: ink }, data: points });
    const cap = found.cap ? { markLine: { symbol: "none", silent: true, animation: false, label: { formatter: "cap", color: colour("soft") }, lineStyle: { color: colour("accent"), type: "solid" }, data: [{ yAxis: found.cap }] } } : {};
    return () => base({
      grid: { left: 60, right: 36, top: 12, bottom: 40 },
      xAxis: { ...log, name: "rank", nameLocation: "middle", nameGap: 26, nameTextStyle: { color: colour("soft") } },
      yAxis: { ...log, name: "" },
      series: [{ ...line("all", found.curve.rows, colour("all")), ...cap }, line("kept", found.curve.kept, colour("kept"))],
    });
  }

  function throughput(found) {
    const last = found.edges[found.edges.length - 1], [unit, size] = last < 120 ? ["s", 1] : last < 7200 ? ["min", 60] : ["h", 3600];
    return () => base({
      grid: { left: 56, right: 24, top: 12, bottom: 40 },
      xAxis: { type: "value", min: 0, max: last / size, name: unit, nameLocation: "middle", nameGap: 26, nameTextStyle: { color: colour("soft") }, axisLabel: { formatter: short, hideOverlap: true, showMaxLabel: false } },
      yAxis: { type: "value", min: 0 },
      series: [{ name: "fetches a second", type: "line", step: "end", showSymbol: false, lineStyle: { color: colour("kept"), width: 2 }, areaStyle: { color: colour("kept"), opacity: 0.15 },
        data: [[0, found.rates[0]], ...found.rates.map((rate, at) => [found.edges[at + 1] / size, rate])] }],
    });
  }

  // The line's place is rounded to `precision` digits, two unless one says otherwise.
  function what_if(one, at) {
    return () => base({
      grid: { left: 56, right: 12, top: 8, bottom: 24 },
      xAxis: { type: "value", min: "dataMin", max: "dataMax", axisLabel: { formatter: short, hideOverlap: true, showMaxLabel: false } },
      yAxis: { type: "value", min: 0 },
      series: [{ name: "kept", type: "line", showSymbol: false, lineStyle: { color: colour("kept"), width: 2 }, areaStyle: { color: colour("kept"), opacity: 0.15 },
        data: one.thresholds.map((text, n) => [Number(text), one.kept[n]]),
        markLine: { symbol: "none", silent: true, animation: false, precision: 15, label: { show: false }, lineStyle: { color: colour("accent"), type: "solid", width: 2 }, data: [{ xAxis: Number(one.thresholds[at()]) }] } }],
    });
  }

  function slider(box) {
    const one = data.what_if[Number(box.dataset.at)], input = box.querySelector("input");
    const near = [...box.querySelectorAll(".near figure")].filter((figure) => figure.dataset.score !== "");
    near.forEach((figure) => { figure.querySelector("b").textContent = Number(figure.dataset.score).toFixed(4); });
    const chart = () => charts.find((found) => found.place.id === "chart-what-if-" + box.dataset.at);
    const change = one.column + " " + one.sign + " ", below = one.sign === "<=";
    // A column of 32 bits is compared with a decimal in 32 bits, so that 0.7 is 0.7.
    const single = near.every((figure) => Math.fround(figure.dataset.score) === Number(figure.dataset.score));
    function show() {
      const text = one.thresholds[Number(input.value)], bound = single && !/e/.test(text) ? Math.fround(text) : Number(text), kept = one.kept[Number(input.value)];
      box.querySelector(".threshold").textContent = text;
      box.querySelector(".would").textContent = count(kept);
      box.querySelector(".command").textContent = one.command.replace(change + "{}", () => change + text);
      input.setAttribute("aria-valuetext", text + ", " + count(kept) + " rows kept");
      const score = (figure) => Number(figure.dataset.score);
      const lower = near.filter((figure) => below ? score(figure) <= bound : score(figure) < bound).slice(-4).reverse();
      const upper = near.filter((figure) => below ? score(figure) > bound : score(figure) >= bound).slice(0, 4);
      const [stay, go] = below ? [lower, upper] : [upper, lower];
      box.querySelector(".near").append(...near);
      box.querySelector(".stay").replaceChildren(...stay);
      box.querySelector(".go").replaceChildren(...go);
      const drawn = chart();
      if (drawn) drawn.chart.setOption(drawn.make());
    }
    draw("chart-what-if-" + box.dataset.at, what_if(one, () => Number(input.value)));
    input.addEventListener("input", show);
    show();
  }

  // A waterfall, whose bars open the lists below it.
  function waterfall(id, lines) {
    const place = document.getElementById(id);
    place.style.height = 40 + lines.length * 18 + "px";
    draw(id, funnel(lines), (chart) => chart.getZr().on("click", (event) => {
      const opened = document.getElementById(place.dataset.lines + "-" + Math.round(chart.convertFromPixel({ yAxisIndex: 0 }, event.offsetY)));
      if (!opened) return;
      opened.open = true;
      opened.scrollIntoView({ block: "nearest" });
      opened.querySelector("summary").focus({ preventScroll: true });
    }));
  }

  if (data.expanded.funnel) {
    waterfall("chart-expanded", data.expanded.funnel);
    draw("chart-children", histogram(data.expanded.children));
  }
  waterfall("chart-funnel", data.funnel);
  document.querySelectorAll(".slider").forEach(slider);
  document.querySelectorAll('[id^="chart-histogram-"]').forEach((place) => draw(place.id, histogram(data.histograms[place.dataset.name])));
  document.querySelectorAll('[id^="chart-category-"]').forEach((place) => {
    const lines = data.categories[place.dataset.name];
    place.style.height = 40 + Math.max(3, lines.length) * 20 + "px";
    draw(place.id, category(lines));
  });
  if (data.concepts.found) draw("chart-concepts", ranked(data.concepts));
  if (data.throughput.rates) draw("chart-throughput", throughput(data.throughput));
  document.querySelectorAll(".unsafe").forEach((button) => button.addEventListener("click", () => button.classList.toggle("shown")));
})();
