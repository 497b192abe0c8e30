// A page that shows what the model says of an image. Everything runs in the browser: no image leaves it.
import * as ort from "./ort.wasm.min.mjs";

const MOST_SHOWN = 5;
const byId = (id) => document.getElementById(id);
const element = (name, text = "", kind = "") => Object.assign(document.createElement(name), { textContent: text, className: kind });

// The pixels (height, width, 3) of an image, rotated as its EXIF data says, without colour management.
const pixelsOf = async (blob) => {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  const { data } = pen.getImageData(0, 0, bitmap.width, bitmap.height);
  const pixels = new Uint8Array(3 * bitmap.width * bitmap.height);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    pixels[to++] = data[from];
    pixels[to++] = data[from + 1];
    pixels[to++] = data[from + 2];
  }
  return new ort.Tensor("uint8", pixels, [bitmap.height, bitmap.width, 3]);
};

const start = async () => {
  ort.env.wasm.numThreads = 1;  // several need headers that a plain file server does not send
  ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
  const about = await (await fetch("model.json")).json();
  const session = await ort.InferenceSession.create("model.onnx");
  return { about, session };
};

// {label, values}: the class, and the probabilities or scores; of a regression the value alone.
const predict = async ({ about, session }, blob) => {
  const outputs = await session.run({ image: await pixelsOf(blob) });
  const name = about.outputs.find((output) => output !== "label");
  const values = Array.from(outputs[name].data, Number);
  if (about.classes === null) return { label: values[0].toPrecision(4), values: null };
  const shares = values.length === 1 ? [-values[0], values[0]] : values;  // two classes have one score
  return { label: about.classes[Number(outputs.label.data[0])], values: shares };
};

const shown = (about, file, { label, values }, seconds) => {
  const card = element("div", "", "result");
  const picture = element("img");
  picture.src = URL.createObjectURL(file);
  picture.alt = file.name;
  const words = element("div");
  words.append(element("b", label), element("div", `${file.name}, ${seconds.toFixed(2)} s`));
  const isShare = about.outputs.includes("probabilities");
  const order = (values ?? []).map((value, i) => [value, about.classes[i]]).sort(([a], [b]) => b - a);
  for (const [value, name] of order.slice(0, MOST_SHOWN)) {
    const row = element("div", "", "row");
    const meter = element("meter");
    meter.value = isShare ? value : Math.max(0, value);
    meter.max = isShare ? 1 : Math.max(1e-9, order[0][0]);
    row.append(element("span", name), meter, element("span", isShare ? `${(100 * value).toFixed(1)} %` : value.toFixed(2)));
    words.append(row);
  }
  card.append(picture, words);
  return card;
};

const model = start();
window.featx = { predict: async (blob) => predict(await model, blob) };  // for other scripts of the page, and tests

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
