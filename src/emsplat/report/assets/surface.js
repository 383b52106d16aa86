const FIELD_OF_VIEW = 24; // degrees
// Blue to yellow in steps of equal lightness, told apart by every kind of colour vision.
const RAMP = [[0, 52, 110], [62, 82, 108], [108, 110, 116], [150, 141, 116], [197, 175, 103], [250, 222, 78]];

function rampColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[i].map((low, c) => (low + (place - i) * (RAMP[i + 1][c] - low)) / 255);
}

/** The isosurface in 3D: dragging, arrow keys and the wheel turn and zoom it; sliders choose level and colour. */
async function showSurface(surface) {
  const figure = document.getElementById("surface-figure");
  const canvas = figure.querySelector("canvas");
  if (!canUnpack) return excuse(figure, "This browser is too old to unpack the map; the picture above shows it from one side.");
  const context = canvas.getContext("webgl2", { alpha: true, antialias: true, preserveDrawingBuffer: true });
  if (!context) {
    canvas.hidden = true;
    return excuse(figure, "This browser offers no WebGL, so the surface cannot be turned; the picture above shows it from one side.");
  }
  const renderer = new THREE.WebGLRenderer({ canvas, context, alpha: true });
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));

  const { low, high, n } = surface.map;
  const values = Float32Array.from(await unpack(surface.map), (byte) => low + (byte * (high - low)) / 255);
  const colours = {};
  for (const [name, packed] of Object.entries({ local: surface.colour, error: surface.error })) {
    if (packed) colours[name] = { ...packed, bytes: await unpack(packed) };
  }

  const scene = new THREE.Scene();
  const geometry = new THREE.BufferGeometry();
  const material = new THREE.MeshStandardMaterial({ vertexColors: true, roughness: 0.5, side: THREE.DoubleSide });
  const mesh = new THREE.Mesh(geometry, material);
  scene.add(mesh, new THREE.AmbientLight(0xffffff, 0.4));
  const key = new THREE.DirectionalLight(0xffffff, 3.4);
  key.position.set(-0.5, 0.7, 1);
  const fill = new THREE.DirectionalLight(0xffffff, 0.35);
  fill.position.set(0.8, -0.4, 0.5);
  scene.add(key, fill);
  const camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, 0.05, 20);
  const view = { distance: 0, turn: new THREE.Quaternion() };
  const wholeDistance = 0.5 / Math.tan((FIELD_OF_VIEW * Math.PI) / 360);

  let waiting = false;
  function render() {
    waiting = false;
    camera.position.set(0, 0, view.distance * Math.max(1, 1 / camera.aspect));
    mesh.quaternion.copy(view.turn);
    renderer.render(scene, camera);
  }
  function redraw() {
    if (!waiting) requestAnimationFrame(render);
    waiting = true;
  }
  function reset() {
    view.distance = wholeDistance;
    view.turn.identity();
    redraw();
  }
  const step = new THREE.Quaternion();
  function turn(right, down) {
    view.turn.premultiply(step.setFromAxisAngle(new THREE.Vector3(0, 1, 0), right));
    view.turn.premultiply(step.setFromAxisAngle(new THREE.Vector3(1, 0, 0), down));
    redraw();
  }
  function zoom(factor) {
    view.distance = Math.min(Math.max(view.distance * factor, 0.25 * wholeDistance), 3 * wholeDistance);
    redraw();
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

  // --- turning and zooming

  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  const apart = () => {
    const [a, b] = fingers.values();
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
  };
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    if (fingers.size === 2) {
      const wide = apart();
      fingers.set(event.pointerId, event);
      zoom(wide / apart());
      return;
    }
    const pace = Math.PI / canvas.clientHeight;
    turn((event.clientX - before.clientX) * pace, (event.clientY - before.clientY) * pace);
    fingers.set(event.pointerId, event);
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (document.activeElement !== canvas) return; // the wheel scrolls the page until the surface is clicked
      event.preventDefault();
      zoom(Math.exp(0.001 * event.deltaY));
    },
    { passive: false },
  );
  const keys = {
    ArrowLeft: () => turn(-0.15, 0),
    ArrowRight: () => turn(0.15, 0),
    ArrowUp: () => turn(0, -0.15),
    ArrowDown: () => turn(0, 0.15),
    "+": () => zoom(0.87),
    "=": () => zoom(0.87),
    "-": () => zoom(1.15),
    0: reset,
  };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.getElementById("surface-reset").addEventListener("click", reset);

  new ResizeObserver(() => {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0 || height === 0) return;
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    redraw();
  }).observe(canvas);
  cut();
  reset();
  figure.dataset.ready = "yes";
}

if (data.surface) showSurface(data.surface);
