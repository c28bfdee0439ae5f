"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
  const MISSING = "–";
  const drawn = []; // [what draws a plot anew], for when the theme changes
  const waiting = new Map(); // place -> what draws a plot there once it comes into sight

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly takes some tags and entities for markup.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const number = (value, digits = 0) =>
    value === null || value === undefined
      ? MISSING
      : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
  const significant = (value, digits = 3) =>
    value === null || value === undefined
      ? MISSING
      : (value || 0).toLocaleString("en", { minimumSignificantDigits: digits, maximumSignificantDigits: digits }).replace("-", "−");
  const make = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  function themed(layout) {
    const line = colour("line"), ink = colour("ink");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, ticks: "outside", ticklen: 4, tickcolor: "rgba(0,0,0,0)" };
    return {
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: ink },
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("quiet"), font: { color: ink, size: 12 }, align: "left" },
    };
  }

  function draw(place, traces, layout, config = {}) {
    const paint = () => Plotly.react(place, traces(), themed(layout), { ...CONFIG, ...config });
    drawn.push({ place, paint });
    return paint();
  }

  // Hundreds of plots at once would hold up the page.
  const sight = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      waiting.get(target)?.();
      waiting.delete(target);
    }
  }, { rootMargin: "400px" });

  function drawInSight(place, ...how) {
    waiting.set(place, () => draw(place, ...how));
    sight.observe(place);
  }

  // Traces of the Pareto plots say what they are; the theme says how that looks.
  function coloured(trace) {
    const { role, number: maker } = trace.meta;
    const shown = colour(role === "front" ? "quiet" : role === "float" ? "ink" : `maker-${maker}`);
    const paper = colour("paper"), painted = { ...trace, line: { ...trace.line, color: shown } };
    if (trace.marker) painted.marker = { ...trace.marker, color: shown, line: { ...trace.marker.line, color: paper } };
    for (const bars of ["error_x", "error_y"]) if (trace[bars]) painted[bars] = { ...trace[bars], color: shown };
    return painted;
  }

  function drawFigures() {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = data.figures[place.dataset.figure];
      draw(place, () => figure.data.map(coloured), figure.layout);
    }
  }

  // Layers -----------------------------------------------------------------------------------
  function cell(value, text) {
    const made = make("td", text, "number");
    made.dataset.value = value === null || value === undefined ? "" : value;
    return made;
  }

  const EXACT = 200; // dB, from what on outputs count as equal
  const ratio = (value) => (value !== null && value >= EXACT ? "equal" : number(value, 1));

  function layerRow(layer) {
    const row = make("tr"), name = make("th");
    // Names may break behind underscores.
    for (const part of layer.name.split(/(?<=_)/)) name.append(part, make("wbr"));
    name.scope = "row";
    const range = layer.range || [null, null];
    const percent = layer.sparsity === null ? null : 100 * layer.sparsity;
    row.append(
      name,
      make("td", layer.op),
      cell(layer.bytes, number(layer.bytes)),
      cell(layer.params, number(layer.params)),
      cell(layer.sparsity, number(percent, 1)),
      cell(layer.unique, number(layer.unique)),
      cell(layer.bits, number(layer.bits)),
      cell(layer.sqnr_db, ratio(layer.sqnr_db)),
      cell(range[0], significant(range[0])),
      cell(range[1], significant(range[1])),
    );
    return row;
  }

  // A call with all values as arguments would fail where there are very many.
  const largest = (values, start) => values.reduce((high, value) => Math.max(high, value), start);

  const short = (name) => (name.length > 22 ? `${name.slice(0, 9)}…${name.slice(-12)}` : name);

  // Layers from top to bottom, named at the left.
  function layerLayout(layers, xaxis) {
    return {
      height: 70 + 20 * layers.length,
      margin: { l: 8, r: 14, t: 6, b: 34 },
      showlegend: false,
      hovermode: "closest",
      bargap: 0.35,
      xaxis: { zeroline: true, nticks: 6, tickangle: 0, ...xaxis },
      yaxis: {
        range: [layers.length - 0.4, -0.6],
        tickvals: layers.map((_, i) => i),
        ticktext: layers.map((layer) => plain(short(layer.name))),
        tickfont: { size: 11 },
        fixedrange: true,
      },
    };
  }

  function show(place, layers, xaxis, traces) {
    place.closest("figure").hidden = !layers.length;
    if (!layers.length) return;
    const layout = layerLayout(layers, xaxis);
    place.style.height = `${layout.height}px`;
    draw(place, traces, layout);
  }

  function drawRatios(layers) {
    const known = layers.filter((layer) => layer.sqnr_db !== null);
    const finite = known.map((layer) => layer.sqnr_db).filter((value) => value < EXACT);
    const top = finite.length ? largest(finite.map((value) => 1.08 * value), 10) : EXACT;
    const low = -largest(finite.map((value) => -value), 0);
    show(document.getElementById("layers-sqnr"), known, { range: [low - 0.03 * (top - low), 1.03 * top] }, () => [{
      type: "scatter", mode: "lines+markers",
      x: known.map((layer) => Math.min(layer.sqnr_db, top)),
      y: known.map((_, i) => i),
      line: { color: colour("line"), width: 1.5 },
      marker: { color: colour("maker-0"), size: 7 },
      hovertext: known.map((layer) => `${plain(layer.name)}: ${ratio(layer.sqnr_db)}${layer.sqnr_db < EXACT ? " dB" : ""}`),
      hoverinfo: "text",
    }]);
  }

  function drawRanges(layers) {
    const known = layers.filter((layer) => layer.range);
    show(document.getElementById("layers-range"), known, {}, () => [{
      type: "bar", orientation: "h",
      base: known.map((layer) => layer.range[0]),
      x: known.map((layer) => layer.range[1] - layer.range[0]),
      y: known.map((_, i) => i),
      marker: { color: colour("after") },
      hovertext: known.map((layer) => `${plain(layer.name)}: ${significant(layer.range[0])} to ${significant(layer.range[1])}`),
      hoverinfo: "text",
    }]);
  }

  // Densities; of pruned weights without the zeros, which would dwarf all others.
  function densities(layer) {
    const { edges: [low, high], counts } = layer.histogram;
    const width = (high - low) / counts.length, middle = (counts.length - 1) / 2;
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    const highest = largest(counts.filter((_, i) => i !== middle), 1);
    const zeros = counts[middle] > 1.5 * highest ? Math.round((layer.sparsity || 0) * total) : 0;
    const left = counts.map((count, i) => (i === middle ? Math.max(0, count - zeros) : count));
    return {
      x: counts.map((_, i) => low + (i + 0.5) * width),
      y: left.map((count) => count / (total * width)),
      text: left.map((count, i) => `${significant(low + i * width)} to ${significant(low + (i + 1) * width)}: ${number(count)}`),
      width,
    };
  }

  function histogramTraces(layer, before) {
    const after = densities(layer);
    const bars = {
      type: "bar", x: after.x, y: after.y, width: after.width, name: "after",
      marker: { color: colour("after"), line: { width: 0 } }, hovertext: after.text, hoverinfo: "text",
    };
    if (!before) return [bars];
    const outline = densities(before);
    return [bars, {
      type: "scatter", mode: "lines", x: outline.x, y: outline.y, name: "before",
      line: { shape: "hvh", width: 1, color: colour("before") }, hoverinfo: "skip",
    }];
  }

  function drawHistogram(grid, layer, before) {
    const figure = make("figure"), caption = make("figcaption"), place = make("div", undefined, "histogram");
    const zeros = `${number(100 * (layer.sparsity || 0), 1)} % zeros`;
    caption.append(make("b", layer.name), `${layer.op}, ${zeros}, ${number(layer.unique)} values`);
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `Histogram of the weights of ${layer.name}`);
    figure.append(caption, place);
    grid.append(figure);
    drawInSight(place, () => histogramTraces(layer, before), {
      margin: { l: 4, r: 4, t: 4, b: 20 }, bargap: 0, showlegend: false, hovermode: "closest",
      xaxis: { nticks: 4, tickangle: 0, tickfont: { size: 10 }, fixedrange: true, automargin: false },
      yaxis: { showticklabels: false, showgrid: false, rangemode: "tozero", fixedrange: true, automargin: false },
    });
  }

  function forget(inside) {
    sight.disconnect();
    waiting.clear();
    for (let i = drawn.length - 1; i >= 0; i--) {
      if (inside.contains(drawn[i].place)) {
        Plotly.purge(drawn[i].place);
        drawn.splice(i, 1);
      }
    }
  }

  function showFile(task, file) {
    const section = document.getElementById("layers-table").closest("section");
    forget(section);
    const table = document.getElementById("layers-table");
    table.caption.textContent = `Layers of ${named(file)}`;
    table.tBodies[0].replaceChildren(...file.layers.map(layerRow));
    for (const heading of table.tHead.rows[0].cells) heading.setAttribute("aria-sort", "none");
    const bytes = file.layers.reduce((sum, layer) => sum + (layer.bytes || 0), 0);
    document.getElementById("layers-sum").textContent =
      `${number(file.layers.length)} layers with ${number(bytes)} bytes of constants.`;
    drawRatios(file.layers);
    drawRanges(file.layers);
    const grid = document.getElementById("histograms");
    grid.replaceChildren();
    file.layers.forEach((layer, i) => {
      const other = task.before && file.before[i] !== null ? task.before[file.before[i]] : null;
      if (layer.histogram) drawHistogram(grid, layer, other);
    });
  }

  const named = (file) => (file.who ? `${file.title} (${file.who})` : file.title);

  function options(select, titles, chosen) {
    select.replaceChildren(...titles.map((title, i) => new Option(title, i)));
    select.value = chosen;
  }

  function startLayers() {
    if (!data.layers.length) return;
    const tasks = document.getElementById("layers-task"), files = document.getElementById("layers-file");
    const update = () => {
      const task = data.layers[tasks.value];
      showFile(task, task.files[files.value]);
    };
    const refill = () => {
      const task = data.layers[tasks.value], kept = files.selectedOptions[0]?.textContent;
      const titles = task.files.map(named);
      options(files, titles, titles.includes(kept) ? titles.indexOf(kept) : task.first);
      update();
    };
    options(tasks, data.layers.map((task) => task.title), 0);
    tasks.addEventListener("change", refill);
    files.addEventListener("change", update);
    refill();
  }

  drawFigures();
  startLayers();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(({ paint }) => paint()));
})();
