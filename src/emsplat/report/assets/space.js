const FIELD_OF_VIEW = 24; // degrees

/**
 * A scene with one surface, in units of the edge of its cube: dragging, arrow keys and the wheel turn and zoom it.
 * Returns its geometry and functions that draw it again or reset the view; null where the browser offers no WebGL.
 */
function openSpace(canvas) {
  const context = canvas.getContext("webgl2", { alpha: true, antialias: true, preserveDrawingBuffer: true });
  if (!context) return null;
  const renderer = new THREE.WebGLRenderer({ canvas, context, alpha: true });
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
  const scene = new THREE.Scene();
  const geometry = new THREE.BufferGeometry();
  const material = new THREE.MeshStandardMaterial({ vertexColors: true, roughness: 0.5, side: THREE.DoubleSide });
  const mesh = new THREE.Mesh(geometry, material);
  mesh.frustumCulled = false; // its geometry changes, and may be empty at first
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
  new ResizeObserver(() => {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0 || height === 0) return;
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    redraw();
  }).observe(canvas);
  return { geometry, redraw, reset };
}
