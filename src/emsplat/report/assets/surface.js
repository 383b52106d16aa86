/** The isosurface in 3D: dragging, arrow keys and the wheel turn and zoom it; sliders choose level and colour. */
async function showSurface(surface) {
  const figure = document.getElementById("surface-figure");
  const canvas = figure.querySelector("canvas");
  if (!canUnpack) return excuse(figure, "This browser is too old to unpack the map; the picture above shows it from one side.");
  const space = openSpace(canvas);
  if (!space) {
    canvas.hidden = true;
    return excuse(figure, "This browser offers no WebGL, so the surface cannot be turned; the picture above shows it from one side.");
  }
  const { geometry, redraw } = space;

  const { low, high, n } = surface.map;
  const values = Float32Array.from(await unpack(surface.map), (byte) => low + (byte * (high - low)) / 255);
  const colours = {};
  for (const [name, packed] of Object.entries({ local: surface.colour, error: surface.error })) {
    if (packed) colours[name] = { ...packed, bytes: await unpack(packed) };
  }

  // --- the surface and its colours

  let places = new Float32Array();
  let openness = new Float32Array();
  const plain = getComputedStyle(figure).getPropertyValue("--surface").trim().split(" ").map((v) => Number(v) / 255);
  function paint() {
    const chosen = figure.querySelector("input[name=surface-colour]:checked");
    const painted = new Float32Array(places.length);
    const colour = colours[chosen?.value];
    const scale = colour ? colour.n / n : 0;
    for (let i = 0; i < places.length; i += 3) {
      let rgb = plain;
      if (colour) {
        const [x, y, z] = [0, 1, 2].map((axis) => places[i + axis] * scale);
        const share = interpolate(colour.bytes, colour.n, x, y, z) / 255;
        rgb = rampColour(colour.reversed ? 1 - share : share);
      }
      for (let c = 0; c < 3; c++) painted[i + c] = openness[i / 3] * rgb[c] ** 2.2; // the renderer wants linear light
    }
    geometry.setAttribute("color", new THREE.BufferAttribute(painted, 3));
    for (const legend of figure.querySelectorAll(".ramp")) legend.hidden = chosen?.value !== legend.dataset.colour;
    redraw();
  }
  const slider = document.getElementById("surface-level");
  function cut() {
    const level = Number(slider.value) * surface.sigma;
    const net = isosurface(values, n, level);
    places = net.places;
    const normals = normalsAt(places, values, n);
    openness = opennessAt(places, normals, values, n, level);
    const middle = (n - 1) / 2;
    geometry.setAttribute("position", new THREE.BufferAttribute(places.map((v) => (v - middle) / n), 3));
    geometry.setAttribute("normal", new THREE.BufferAttribute(normals, 3));
    geometry.setIndex(new THREE.BufferAttribute(net.triangles, 1));
    const said = `${Number(slider.value).toFixed(2)} σ, ${level.toPrecision(3)}`;
    document.getElementById("surface-where").textContent = said;
    slider.setAttribute("aria-valuetext", said);
    paint();
  }
  let cutting = false;
  slider.addEventListener("input", () => {
    if (!cutting) {
      requestAnimationFrame(() => {
        cutting = false;
        cut();
      });
    }
    cutting = true;
  });
  for (const choice of figure.querySelectorAll("input[name=surface-colour]")) choice.addEventListener("change", paint);

  document.getElementById("surface-reset").addEventListener("click", space.reset);
  cut();
  space.reset();
  figure.dataset.ready = "yes";
}

if (data.surface) showSurface(data.surface);
