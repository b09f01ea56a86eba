"use strict";
// The kept rows of both runs over the same bins, as shares.
(() => {
  const { data, short, bins, colour, draw, base } = shardmill;
  const shares = (rows) => { const total = rows.reduce((sum, n) => sum + n, 0) || 1; return rows.map((n) => n / total); };
  document.querySelectorAll('[id^="chart-"]').forEach((place) => {
    const found = data.histograms[place.dataset.name];
    const line = (name, rows, ink) => ({ name, type: "bar", barGap: "0%", barCategoryGap: "10%", barMaxWidth: 32, itemStyle: { color: ink }, data: shares(rows) });
    draw(place.id, () => base({
      grid: { left: 48, right: 12, top: 8, bottom: 24 },
      xAxis: { type: "category", data: bins({ ...found, rows: found.a.rows }), axisTick: { show: false }, axisLabel: { formatter: (text) => text.split(" to ")[0], hideOverlap: true } },
      yAxis: { type: "value", axisLabel: { formatter: (share) => short(share * 100) + "%" } },
      series: [line("A", found.a.kept, colour("all")), line("B", found.b.kept, colour("kept"))],
    }));
  });
})();
