"use strict";
// The landscape of latents: points on a canvas, a choice of axes and colours, and a lasso whose images can be saved.
(() => {
  const data = JSON.parse(document.getElementById("landscape-data").textContent);
  const bytes = Uint8Array.from(atob(data.values), (c) => c.charCodeAt(0));
  const values = new Float32Array(bytes.buffer);
  const n = data.count;
  const column = (name) => values.subarray(data.columns.indexOf(name) * n, (data.columns.indexOf(name) + 1) * n);
  const ids = data.ids.split("\n");
  const canvas = document.getElementById("landscape");
  const over = document.getElementById("landscape-lasso");
  const context = canvas.getContext("2d"), lassoContext = over.getContext("2d");
  const pick = (id) => document.getElementById(id);
  const size = canvas.width, margin = 12;
  let selected = null, polygon = [], places = null;

  for (const [id, chosen] of [["axis-x", 0], ["axis-y", data.latents > 1 ? 1 : data.columns.indexOf("log-likelihood")]]) {
    data.columns.forEach((name, i) => pick(id).add(new Option(name, name, false, i === chosen)));
  }
  for (const name of ["density", ...data.columns]) pick("colour").add(new Option(name, name, false, name === "state"));

  function range(array) {
    const sorted = Float32Array.from(array).sort();
    const low = sorted[Math.floor(0.001 * (n - 1))], high = sorted[Math.ceil(0.999 * (n - 1))];
    return high > low ? [low, high] : [low - 0.5, low + 0.5];
  }

  function project() {
    const [x, y] = [column(pick("axis-x").value), column(pick("axis-y").value)];
    const [xr, yr] = [range(x), range(y)];
    places = new Int32Array(2 * n);
    const scale = size - 2 * margin;
    for (let i = 0; i < n; i++) {
      places[2 * i] = margin + scale * (x[i] - xr[0]) / (xr[1] - xr[0]);
      places[2 * i + 1] = size - margin - scale * (y[i] - yr[0]) / (yr[1] - yr[0]);
    }
    pick("range-x").textContent = `${xr[0].toPrecision(3)} … ${xr[1].toPrecision(3)}`;
    pick("range-y").textContent = `${yr[0].toPrecision(3)} … ${yr[1].toPrecision(3)}`;
  }

  function densities() {
    const cells = 96, counts = new Float32Array(cells * cells), out = new Float32Array(n);
    const cell = (i) => {
      const cx = Math.floor(places[2 * i] * cells / size), cy = Math.floor(places[2 * i + 1] * cells / size);
      return cx >= 0 && cy >= 0 && cx < cells && cy < cells ? cy * cells + cx : -1;
    };
    for (let i = 0; i < n; i++) if (cell(i) >= 0) counts[cell(i)]++;
    for (let i = 0; i < n; i++) out[i] = cell(i) >= 0 ? Math.sqrt(counts[cell(i)]) : 0;
    return out;
  }

  // A perceptually even ramp from blue over green to yellow, and ten distinct colours for states and halves.
  const ramp = (t) => [Math.round(255 * Math.min(1, Math.max(0, 1.6 * t - 0.35))), Math.round(40 + 190 * t), Math.round(150 - 110 * t * t)];
  const distinct = [[31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75],
    [227, 119, 194], [110, 110, 110], [188, 189, 34], [23, 190, 207]];

  function draw() {
    const name = pick("colour").value;
    const shown = name === "density" ? densities() : column(name);
    const categories = name === "state" || name === "half";
    const [low, high] = categories ? [0, 1] : range(shown);
    const picture = context.createImageData(size, size), pixels = picture.data;
    const radius = n < 20000 ? 1 : 0;
    for (let i = 0; i < n; i++) {
      const rgb = categories
        ? (shown[i] > 0 ? distinct[(shown[i] - 1) % distinct.length] : [170, 170, 170])
        : ramp(Math.min(1, Math.max(0, (shown[i] - low) / (high - low))));
      const alpha = selected && !selected[i] ? 40 : 255;
      for (let dy = 0; dy <= radius; dy++) for (let dx = 0; dx <= radius; dx++) {
        const px = places[2 * i] + dx, py = places[2 * i + 1] + dy;
        if (px < 0 || py < 0 || px >= size || py >= size) continue;
        const at = 4 * (py * size + px);
        if (pixels[at + 3] > alpha) continue;
        pixels[at] = rgb[0]; pixels[at + 1] = rgb[1]; pixels[at + 2] = rgb[2]; pixels[at + 3] = alpha;
      }
    }
    context.putImageData(picture, 0, 0);
    pick("scale").textContent = categories ? "" : `${low.toPrecision(3)} … ${high.toPrecision(3)}`;
  }

  function inside(x, y) {
    let odd = false;
    for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
      const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
      if ((yi > y) !== (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) odd = !odd;
    }
    return odd;
  }

  function select() {
    selected = new Uint8Array(n);
    let count = 0;
    for (let i = 0; i < n; i++) if (inside(places[2 * i], places[2 * i + 1])) { selected[i] = 1; count++; }
    if (!count) selected = null;
    pick("selection").textContent = count ? `${count.toLocaleString()} images selected` : "nothing selected";
    pick("save").disabled = !count;
    draw();
  }

  function nearest(x, y) {
    let best = -1, least = 100;
    for (let i = 0; i < n; i++) {
      const d = (places[2 * i] - x) ** 2 + (places[2 * i + 1] - y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    if (best < 0) return;
    const z = Array.from({ length: data.latents }, (_, k) => values[k * n + best].toPrecision(4));
    pick("point").textContent = `${ids[best]}: emsplat decode ${data.name} --at=${z.join(",")}`;
  }

  const place = (event) => {
    const box = over.getBoundingClientRect();
    return [(event.clientX - box.left) * size / box.width, (event.clientY - box.top) * size / box.height];
  };
  over.addEventListener("pointerdown", (event) => { polygon = [place(event)]; over.setPointerCapture(event.pointerId); });
  over.addEventListener("pointermove", (event) => {
    if (!event.buttons || !polygon.length) return;
    polygon.push(place(event));
    lassoContext.clearRect(0, 0, size, size);
    lassoContext.strokeStyle = "#888";
    lassoContext.beginPath();
    polygon.forEach(([x, y], i) => (i ? lassoContext.lineTo(x, y) : lassoContext.moveTo(x, y)));
    lassoContext.stroke();
  });
  over.addEventListener("pointerup", () => {
    const [first] = polygon;
    if (polygon.length < 4) nearest(...first); else select();
    polygon = [];
    lassoContext.clearRect(0, 0, size, size);
  });
  pick("save").addEventListener("click", () => {
    const chosen = ids.filter((_, i) => selected[i]);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([["id", ...chosen].join("\n") + "\n"], { type: "text/csv" }));
    link.download = "ids.csv";
    link.click();
  });
  pick("clear").addEventListener("click", () => { selected = null; pick("save").disabled = true; pick("selection").textContent = "nothing selected"; draw(); });
  for (const id of ["axis-x", "axis-y"]) pick(id).addEventListener("change", () => { project(); draw(); });
  pick("colour").addEventListener("change", draw);
  project();
  draw();
})();
