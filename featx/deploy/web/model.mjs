// The model of the page, without its document: Node runs it too.

const MOST_SHOWN = 5;

// Opens the model of a folder, whose files `read(name)` returns as Uint8Array.
export const open = async (ort, read) => {
  const about = JSON.parse(new TextDecoder().decode(await read("model.json")));
  const externalData = [];
  for (const path of about.weights) externalData.push({ path, data: await read(path) });
  const session = await ort.InferenceSession.create(await read("model.onnx"), { externalData });
  return { ort, about, session };
};

// (height, width, 3) of a canvas's (height, width, 4). The canvas has lost the colour of a transparent pixel.
export const rgbOf = (rgba) => {
  const rgb = new Uint8Array(rgba.length / 4 * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (rgba[from + 3] !== 255) throw new Error("it has transparent pixels; save it without transparency");
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
};

// What the model predicts of uint8 pixels: one image (height, width, 3), or a batch of one, by the form of its input.
export const predict = async ({ ort, about, session }, pixels, shape) => {
  const [input] = session.inputNames;
  return resultOf(about, await session.run({ [input]: new ort.Tensor("uint8", pixels, shape) }));
};

// {label, values}: the class, and the probabilities or scores of all; of a regression the value alone.
export const resultOf = (about, outputs) => {
  const name = about.outputs.find((output) => output !== "label");
  const values = Array.from(outputs[name].data, Number);
  if (about.classes === null) return { label: values[0].toPrecision(4), values };
  return { label: about.classes[Number(outputs.label.data[0])], values };
};

// The likeliest classes as [{name, text, share}]; share is the length of a bar, from 0 to 1.
export const linesOf = (about, { values }) => {
  if (about.classes === null) return [];
  const isShare = about.outputs.includes("probabilities");
  const all = values.length === 1 ? [-values[0], values[0]] : values;  // two classes have one score
  const order = all.map((value, i) => [value, about.classes[i]]).sort(([a], [b]) => b - a).slice(0, MOST_SHOWN);
  const longest = isShare ? 1 : Math.max(1e-9, order[0][0]);
  return order.map(([value, name]) => ({
    name,
    text: isShare ? `${(100 * value).toFixed(1)} %` : value.toFixed(2),
    share: Math.max(0, value) / longest,
  }));
};
