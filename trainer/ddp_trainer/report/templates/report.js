"use strict";
// Unpacks plotly.js from the page itself, draws every chart, and draws again when the colour scheme changes or the page is printed.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const shown = [];

  async function loadPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // Figures name colours as CSS variables; plotly needs values.
  function resolved(value, palette) {
    if (typeof value === "string" && value.startsWith("var(--")) return palette.getPropertyValue(value.slice(4, -1)).trim();
    if (Array.isArray(value)) return value.map((item) => resolved(item, palette));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, palette)]));
    }
    return value;
  }

  // On A4 with default margins a full row is 680 pixels wide inside its card, and a half one 310.
  const onPaper = (place) => ({ width: place.closest(".pair") ? 310 : 680 });

  function draw(measure = () => ({ autosize: true })) {
    const palette = getComputedStyle(root);
    for (const place of shown) {
      const figure = resolved(figures[place.dataset.chart], palette);
      window.Plotly.react(place, figure.data, { ...figure.layout, ...measure(place) }, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  }

  async function start() {
    try {
      await loadPlotly();
      for (const place of document.querySelectorAll("[data-chart]")) {
        place.replaceChildren();
        shown.push(place);
      }
      draw();
    } catch (error) {
      for (const place of document.querySelectorAll("[data-chart]")) {
        place.textContent = "This browser cannot draw the charts (it needs DecompressionStream, which browsers have since 2023).";
      }
      throw error;
    }
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
    // On paper always the light palette, the attribute switches the style sheet before charts are drawn.
    window.addEventListener("beforeprint", () => {
      root.dataset.medium = "print";
      draw(onPaper);
    });
    window.addEventListener("afterprint", () => {
      delete root.dataset.medium;
      draw();
    });
    root.dataset.ready = "yes";
  }

  start();
})();
