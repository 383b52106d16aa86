/** Trilinear interpolation in a cube of n³ values, x fastest; places beyond it are moved to its border. */
function interpolate(values, n, x, y, z) {
  const last = n - 1.001;
  const [a, b, c] = [x, y, z].map((v) => Math.min(Math.max(v, 0), last));
  const [i, j, k] = [Math.floor(a), Math.floor(b), Math.floor(c)];
  const [u, v, w] = [a - i, b - j, c - k];
  const at = i + n * (j + n * k);
  const row = (p) => values[p] * (1 - u) + values[p + 1] * u;
  const sheet = (p) => row(p) * (1 - v) + row(p + n) * v;
  return sheet(at) * (1 - w) + sheet(at + n * n) * w;
}

/**
 * The surface where a volume crosses a level, as a net: one vertex in every cell that the surface passes through, at
 * the mean of the crossings of the cell's edges, and a quadrilateral about every grid edge that crosses.
 * Source: Gibson (1998), Constrained elastic surface nets, MERL TR-99-24.
 */
function isosurface(values, n, level) {
  const places = []; // x, y, z of every vertex, in voxels
  const triangles = [];
  const sheet = n * n;
  const vertexOf = new Int32Array(2 * sheet); // of the cells of this layer and the one below
  const corner = new Float32Array(8);
  const offset = [0, 1, n, n + 1, sheet, sheet + 1, sheet + n, sheet + n + 1];
  const edges = [0, 1, 0, 2, 0, 4, 1, 3, 1, 5, 2, 3, 2, 6, 3, 7, 4, 5, 4, 6, 5, 7, 6, 7];
  const quad = (a, b, c, d, inside) => {
    if (inside) triangles.push(a, b, c, a, c, d);
    else triangles.push(a, c, b, a, d, c);
  };
  for (let z = 0; z < n - 1; z++) {
    const layer = (z & 1) * sheet;
    const below = sheet - layer;
    for (let y = 0; y < n - 1; y++) {
      for (let x = 0; x < n - 1; x++) {
        const at = x + n * y + sheet * z;
        let above = 0;
        for (let i = 0; i < 8; i++) {
          corner[i] = values[at + offset[i]] - level;
          if (corner[i] > 0) above |= 1 << i;
        }
        if (above === 0 || above === 255) continue;
        let [sx, sy, sz, crossings] = [0, 0, 0, 0];
        for (let e = 0; e < 24; e += 2) {
          const [p, q] = [edges[e], edges[e + 1]];
          if (((above >> p) & 1) === ((above >> q) & 1)) continue;
          const t = corner[p] / (corner[p] - corner[q]);
          sx += (p & 1) + t * ((q & 1) - (p & 1));
          sy += ((p >> 1) & 1) + t * (((q >> 1) & 1) - ((p >> 1) & 1));
          sz += (p >> 2) + t * ((q >> 2) - (p >> 2));
          crossings++;
        }
        const cell = x + n * y;
        const vertex = places.length / 3;
        vertexOf[layer + cell] = vertex;
        places.push(x + sx / crossings, y + sy / crossings, z + sz / crossings);
        const inside = corner[0] > 0;
        if (inside !== corner[1] > 0 && y > 0 && z > 0) {
          quad(vertex, vertexOf[layer + cell - n], vertexOf[below + cell - n], vertexOf[below + cell], inside);
        }
        if (inside !== corner[2] > 0 && x > 0 && z > 0) {
          quad(vertex, vertexOf[below + cell], vertexOf[below + cell - 1], vertexOf[layer + cell - 1], inside);
        }
        if (inside !== corner[4] > 0 && x > 0 && y > 0) {
          quad(vertex, vertexOf[layer + cell - 1], vertexOf[layer + cell - n - 1], vertexOf[layer + cell - n], inside);
        }
      }
    }
  }
  return { places: new Float32Array(places), triangles: new Uint32Array(triangles) };
}

/** Normals of a surface's vertices: against the gradient of the volume. */
function normalsAt(places, values, n) {
  const normals = new Float32Array(places.length);
  for (let i = 0; i < places.length; i += 3) {
    const [x, y, z] = [places[i], places[i + 1], places[i + 2]];
    const gradient = [
      interpolate(values, n, x - 1, y, z) - interpolate(values, n, x + 1, y, z),
      interpolate(values, n, x, y - 1, z) - interpolate(values, n, x, y + 1, z),
      interpolate(values, n, x, y, z - 1) - interpolate(values, n, x, y, z + 1),
    ];
    const length = Math.hypot(...gradient) || 1;
    for (let axis = 0; axis < 3; axis++) normals[i + axis] = gradient[axis] / length;
  }
  return normals;
}

/** How open a surface lies at its vertices, 1 for quite: what stands before it along the normal shades it. */
function opennessAt(places, normals, values, n, level) {
  const openness = new Float32Array(places.length / 3);
  const reach = n / 40; // voxels between the samples
  for (let v = 0, i = 0; i < places.length; v++, i += 3) {
    let hidden = 0;
    for (let step = 1; step <= 3; step++) {
      const [x, y, z] = [0, 1, 2].map((axis) => places[i + axis] + step * reach * normals[i + axis]);
      hidden += Math.min(Math.max(interpolate(values, n, x, y, z) / level, 0), 1.2);
    }
    openness[v] = 1 - 0.26 * hidden;
  }
  return openness;
}
