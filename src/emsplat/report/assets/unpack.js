"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

/** What is shown where the browser cannot do what a figure needs. */
function excuse(figure, text) {
  const note = figure.querySelector(".excuse");
  note.textContent = text;
  note.hidden = false;
}

/** Bytes of a volume that the page carries deflated in base64; n voxels an edge, x fastest. */
async function unpack(volume) {
  const packed = Uint8Array.from(atob(volume.data), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const canUnpack = typeof DecompressionStream === "function";
