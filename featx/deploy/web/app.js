// A page that shows what the model says of an image. Everything runs in the browser: no image leaves it.
import * as ort from "./ort.wasm.min.mjs";
import { linesOf, open, predict, rgbOf } from "./model.mjs";

const byId = (id) => document.getElementById(id);
const element = (name, text = "", kind = "") => Object.assign(document.createElement(name), { textContent: text, className: kind });

const read = async (name) => {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
};

const start = () => {
  ort.env.wasm.numThreads = 1;  // several need headers that a plain file server does not send
  ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
  return open(ort, read);
};

// An image is rotated as its EXIF data says, without colour management.
const predictImage = async (model, blob) => {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  return predict(model, rgbOf(pen.getImageData(0, 0, width, height).data), [height, width, 3]);
};

const shown = (about, file, result, seconds) => {
  const card = element("div", "", "result");
  const picture = element("img");
  picture.src = URL.createObjectURL(file);
  picture.alt = file.name;
  const words = element("div");
  words.append(element("b", result.label), element("div", `${file.name}, ${seconds.toFixed(2)} s`));
  for (const { name, text, share } of linesOf(about, result)) {
    const row = element("div", "", "row");
    row.append(element("span", name), Object.assign(element("meter"), { value: share }), element("span", text));
    words.append(row);
  }
  card.append(picture, words);
  return card;
};

const model = start();
window.featx = { predict: async (blob) => predictImage(await model, blob) };  // for other scripts of the page, and tests

const state = byId("state");
const show = async (files) => {
  for (const file of files) {
    state.textContent = `looking at ${file.name} …`;
    const began = performance.now();
    try {
      const result = await window.featx.predict(file);
      byId("results").prepend(shown((await model).about, file, result, (performance.now() - began) / 1000));
    } catch (error) {
      byId("results").prepend(element("p", `${file.name} cannot be read: ${error.message}`));
    }
  }
  state.textContent = "Drop images here, or click to choose some";
};

try {
  const { about } = await model;
  byId("about").textContent = `${about.classes === null ? "A regression" : `${about.classes.length} classes`} on features of `
    + `${about.backbone}, exported by featx ${about.featx}. Images stay on this computer.`;
  byId("file").disabled = false;
  state.textContent = "Drop images here, or click to choose some";
} catch (error) {
  state.textContent = `the model cannot be loaded: ${error.message}. Serve this folder: python -m http.server`;
}
byId("file").addEventListener("change", (event) => show([...event.target.files]));
const drop = byId("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); show([...event.dataTransfer.files]); });
