// The landscape of latents: points on a canvas with a choice of axes and colours, a lasso whose images can be saved, and
// the surface that the decoder has at the chosen point.
(() => {
  const data = JSON.parse(document.getElementById("landscape-data").textContent);
  const values = new Float32Array(Uint8Array.from(atob(data.values), (c) => c.charCodeAt(0)).buffer);
  const n = data.count;
  const column = (name) => values.subarray(data.columns.indexOf(name) * n, (data.columns.indexOf(name) + 1) * n);
  const ids = data.ids.split("\n");
  const pick = (id) => document.getElementById(id);
  const canvas = pick("landscape"), over = pick("landscape-lasso");
  const context = canvas.getContext("2d"), overContext = over.getContext("2d");
  const size = canvas.width, margin = 12;
  const places = new Float32Array(2 * n); // on the canvas
  const ranges = {}; // of the columns, found once
  let frame = null; // the ranges of both axes
  let selected = null, polygon = [], picture = null;
  let point = data.start; // where the surface is decoded

  for (const [id, chosen] of [["axis-x", 0], ["axis-y", data.latents > 1 ? 1 : data.columns.indexOf("log-likelihood")]]) {
    data.columns.forEach((name, i) => pick(id).add(new Option(name, name, false, i === chosen)));
  }
  for (const name of ["density", ...data.columns]) pick("colour").add(new Option(name, name, false, name === "state"));

  const said = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString() : value.toPrecision(3));
  const span = ([low, high]) => `${said(low)} … ${said(high)}`;

  /** Where all but a thousandth of the values at either end lie. */
  function range(name, array) {
    if (ranges[name]) return ranges[name];
    const sorted = Float32Array.from(array).sort();
    const low = sorted[Math.floor(0.001 * (n - 1))], high = sorted[Math.ceil(0.999 * (n - 1))];
    const found = high > low ? [low, high] : [low - 0.5, low + 0.5];
    if (name !== "density") ranges[name] = found;
    return found;
  }

  function project() {
    const [nameX, nameY] = [pick("axis-x").value, pick("axis-y").value];
    const [x, y] = [column(nameX), column(nameY)];
    frame = [range(nameX, x), range(nameY, y)];
    const [xr, yr] = frame;
    const inner = size - 2 * margin;
    const [ax, ay] = [inner / (xr[1] - xr[0]), inner / (yr[1] - yr[0])];
    for (let i = 0; i < n; i++) {
      places[2 * i] = margin + ax * (x[i] - xr[0]);
      places[2 * i + 1] = size - margin - ay * (y[i] - yr[0]);
    }
    pick("range-x").textContent = span(xr);
    pick("range-y").textContent = span(yr);
  }

  function densities() {
    const cells = 96, counts = new Float32Array(cells * cells), out = new Float32Array(n);
    const cell = (i) => {
      const cx = Math.floor((places[2 * i] * cells) / size), cy = Math.floor((places[2 * i + 1] * cells) / size);
      return cx >= 0 && cy >= 0 && cx < cells && cy < cells ? cy * cells + cx : -1;
    };
    for (let i = 0; i < n; i++) if (cell(i) >= 0) counts[cell(i)]++;
    for (let i = 0; i < n; i++) out[i] = cell(i) >= 0 ? Math.sqrt(counts[cell(i)]) : 0;
    return out;
  }

  const pack = ([r, g, b]) => (r | (g << 8) | (b << 16)) >>> 0;
  const ramp = Uint32Array.from({ length: 256 }, (_, i) => pack(rampColour(i / 255).map((v) => Math.round(255 * v))));
  // Ten distinct colours for states and halves.
  const distinct = Uint32Array.from(
    [[31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75], [227, 119, 194],
      [110, 110, 110], [188, 189, 34], [23, 190, 207]].map(pack),
  );
  const NONE = pack([170, 170, 170]);

  function draw() {
    const name = pick("colour").value;
    const shown = name === "density" ? densities() : column(name);
    const categories = name === "state" || name === "half";
    const [low, high] = categories ? [0, 1] : range(name, shown);
    picture ??= context.createImageData(size, size);
    const pixels = new Uint32Array(picture.data.buffer);
    pixels.fill(0);
    const wide = n < 3000 ? 4 : n < 20000 ? 3 : n < 100000 ? 2 : 1;
    const scale = 255 / (high - low);
    for (const chosen of selected ? [0, 1] : [1]) { // what is selected comes on top
      for (let i = 0; i < n; i++) {
        if (selected && selected[i] !== chosen) continue;
        const px = places[2 * i] | 0, py = places[2 * i + 1] | 0;
        if (px < 0 || py < 0 || px + wide > size || py + wide > size) continue;
        const rgb = categories
          ? (shown[i] > 0 ? distinct[(shown[i] - 1) % distinct.length] : NONE)
          : ramp[Math.min(255, Math.max(0, (shown[i] - low) * scale)) | 0];
        const rgba = (rgb | (chosen ? 0xff000000 : 0x28000000)) >>> 0;
        for (let dy = 0; dy < wide; dy++) for (let dx = 0; dx < wide; dx++) pixels[(py + dy) * size + px + dx] = rgba;
      }
    }
    context.putImageData(picture, 0, 0);
    const scaleText = name === "density" ? `${span([low ** 2, high ** 2])} images in a cell` : span([low, high]);
    pick("scale").textContent = categories ? "" : scaleText;
    const coloured = categories ? legend(name) : [];
    pick("legend").replaceChildren(...coloured);
    pick("ramp").hidden = categories;
    drawOver();
  }

  function legend(name) {
    const present = new Set(column(name));
    return [...present].sort((a, b) => a - b).map((value) => {
      const item = document.createElement("span"), box = document.createElement("i");
      const rgb = value > 0 ? distinct[(value - 1) % distinct.length] : NONE;
      box.style.background = `rgb(${rgb & 255} ${(rgb >> 8) & 255} ${(rgb >> 16) & 255})`;
      item.append(box, value > 0 ? `${name} ${value}` : `no ${name}`);
      return item;
    });
  }

  /** The lasso, and a ring where the surface is decoded if both axes are latents. */
  function drawOver() {
    overContext.clearRect(0, 0, size, size);
    overContext.lineWidth = 2;
    overContext.strokeStyle = "#888";
    overContext.beginPath();
    polygon.forEach(([x, y], i) => (i ? overContext.lineTo(x, y) : overContext.moveTo(x, y)));
    overContext.stroke();
    const axes = ["axis-x", "axis-y"].map((id) => data.columns.indexOf(pick(id).value));
    if (!point || axes.some((at) => at >= data.latents)) return;
    const [u, v] = axes.map((at, i) => (point[at] - frame[i][0]) / (frame[i][1] - frame[i][0]));
    for (const [colour, width] of [["#fff", 5], ["#000", 2]]) {
      overContext.strokeStyle = colour;
      overContext.lineWidth = width;
      overContext.beginPath();
      overContext.arc(margin + u * (size - 2 * margin), size - margin - v * (size - 2 * margin), 9, 0, 2 * Math.PI);
      overContext.stroke();
    }
  }

  function select() {
    const xs = polygon.map(([x]) => x), ys = polygon.map(([, y]) => y);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const corners = polygon.length;
    selected = new Uint8Array(n);
    let count = 0;
    for (let i = 0; i < n; i++) {
      const x = places[2 * i], y = places[2 * i + 1];
      if (x < left || x > right || y < top || y > bottom) continue;
      let odd = 0;
      for (let a = 0, b = corners - 1; a < corners; b = a++) {
        if (ys[a] > y !== ys[b] > y && x < ((xs[b] - xs[a]) * (y - ys[a])) / (ys[b] - ys[a]) + xs[a]) odd ^= 1;
      }
      selected[i] = odd;
      count += odd;
    }
    if (!count) selected = null;
    pick("selection").textContent = count ? `${count.toLocaleString()} images selected` : "nothing selected";
    pick("save").disabled = !count;
  }

  function nearest(x, y) {
    let best = -1, least = 400;
    for (let i = 0; i < n; i++) {
      const d = (places[2 * i] - x) ** 2 + (places[2 * i + 1] - y) ** 2;
      if (d < least) {
        least = d;
        best = i;
      }
    }
    if (best < 0) return;
    moveTo(Array.from({ length: data.latents }, (_, k) => values[k * n + best]), ids[best]);
  }

  /** Decode a point. Args: where: what it is, in words. */
  function moveTo(z, where) {
    point = z;
    pick("point").textContent = `${where}: emsplat decode ${data.name} --at=${z.map((v) => v.toPrecision(4)).join(",")}`;
    drawOver();
    surface.show(z);
  }

  const place = (event) => {
    const box = over.getBoundingClientRect();
    return [((event.clientX - box.left) * size) / box.width, ((event.clientY - box.top) * size) / box.height];
  };
  over.addEventListener("pointerdown", (event) => {
    polygon = [place(event)];
    over.setPointerCapture(event.pointerId);
  });
  over.addEventListener("pointermove", (event) => {
    if (!event.buttons || !polygon.length) return;
    polygon.push(place(event));
    drawOver();
  });
  over.addEventListener("pointerup", () => {
    const drawn = polygon;
    if (drawn.length >= 4) select();
    polygon = [];
    if (drawn.length >= 4) draw();
    else if (drawn.length) nearest(...drawn[0]);
  });
  pick("save").addEventListener("click", () => {
    const chosen = ids.filter((_, i) => selected[i]);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([["id", ...chosen].join("\n") + "\n"], { type: "text/csv" }));
    link.download = "ids.csv";
    link.click();
  });
  pick("clear").addEventListener("click", () => {
    selected = null;
    pick("save").disabled = true;
    pick("selection").textContent = "nothing selected";
    draw();
  });
  for (const id of ["axis-x", "axis-y"]) {
    pick(id).addEventListener("change", () => {
      project();
      draw();
    });
  }
  pick("colour").addEventListener("change", draw);
  const surface = openSurface(data.decoder);
  for (const button of document.querySelectorAll("button[data-z]")) {
    button.addEventListener("click", () => moveTo(JSON.parse(button.dataset.z), button.dataset.name));
  }
  openPaths(data.paths, moveTo);
  project();
  draw();
  if (point) moveTo(point, data.startName);
})();

/** The surface of the decoder. Returns a function that shows it at a point. */
function openSurface(stored) {
  const nothing = { show: () => {} };
  const figure = document.getElementById("surface-figure");
  if (!stored || !figure) return nothing;
  const canvas = figure.querySelector("canvas");
  const space = openSpace(canvas);
  if (!space) {
    canvas.hidden = true;
    figure.querySelector(".excuse").hidden = false;
    return nothing;
  }
  const decoder = openDecoder(stored);
  const slider = document.getElementById("surface-level");
  const plain = [0.1, 0.29, 0.55];
  let asked = null, drawn = null, waiting = false;

  function cut() {
    waiting = false;
    const begun = performance.now();
    const { n } = decoder;
    const level = stored.level * Number(slider.value);
    const density = decoder.density(asked);
    const net = isosurface(density, n, level);
    const normals = normalsAt(net.places, density, n);
    const openness = opennessAt(net.places, normals, density, n, level);
    const colours = new Float32Array(net.places.length);
    for (let i = 0; i < colours.length; i++) colours[i] = openness[Math.floor(i / 3)] * plain[i % 3];
    const { geometry } = space;
    geometry.dispose(); // or the buffers of every surface so far would stay on the card
    geometry.setAttribute("position", new THREE.BufferAttribute(net.places.map((v) => (v - (n - 1) / 2) / n), 3));
    geometry.setAttribute("normal", new THREE.BufferAttribute(normals, 3));
    geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
    geometry.setIndex(new THREE.BufferAttribute(net.triangles, 1));
    space.redraw();
    document.getElementById("surface-where").textContent = `${Number(slider.value).toFixed(2)} × the usual level`;
    drawn = asked;
    figure.dataset.z = drawn.map((v) => v.toPrecision(4)).join(",");
    figure.dataset.milliseconds = (performance.now() - begun).toFixed(0);
    figure.dataset.triangles = net.triangles.length / 3;
  }
  function show(z) {
    asked = z;
    if (!waiting) requestAnimationFrame(cut);
    waiting = true;
  }
  slider.addEventListener("input", () => asked && show(asked));
  document.getElementById("surface-reset").addEventListener("click", space.reset);
  space.reset();
  return { show };
}

/** The slider that leads along a trajectory, and the button that plays it there and back. */
function openPaths(paths, moveTo) {
  const choice = document.getElementById("path"), slider = document.getElementById("path-at"), play = document.getElementById("play");
  if (!choice) return;
  paths.forEach(({ name }, i) => choice.add(new Option(name, i)));
  const go = () => {
    const { name, points } = paths[Number(choice.value)];
    const at = Number(slider.value) * (points.length - 1);
    const i = Math.min(Math.floor(at), points.length - 2);
    moveTo(points[i].map((v, k) => v + (at - i) * (points[i + 1][k] - v)), name);
  };
  let playing = false, forwards = 1, before = 0;
  const advance = (now) => {
    if (!playing) return;
    const next = Number(slider.value) + (forwards * Math.min(now - before, 100)) / 4000; // four seconds one way
    if (next >= 1 || next <= 0) forwards = next >= 1 ? -1 : 1;
    slider.value = Math.min(Math.max(next, 0), 1);
    before = now;
    go();
    requestAnimationFrame(advance);
  };
  choice.addEventListener("change", go);
  slider.addEventListener("input", go);
  play.addEventListener("click", () => {
    playing = !playing;
    play.textContent = playing ? "Pause" : "Play";
    before = performance.now();
    if (playing) requestAnimationFrame(advance);
  });
}
