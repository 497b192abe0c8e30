// Predicts the images of a server one by one with the code of an exported page, and posts the answers to the server.
// In the page it is a script; for Node: node export_web.mjs SITE ORIGIN

const inPage = typeof window !== "undefined";
const [site, origin] = inPage ? [] : process.argv.slice(2);
const get = (path) => fetch(inPage ? path : `${origin}/${path}`);

let predict;
if (inPage) {
  predict = async (i) => {
    const blob = await (await get(`test/file/${i}`)).blob();
    return () => window.featx.predict(blob);
  };
} else {
  const { readFile } = await import("node:fs/promises");
  const ort = await import(`${site}/ort.wasm.min.mjs`);
  const page = await import(`${site}/model.mjs`);
  ort.env.wasm.numThreads = 1;
  const model = await page.open(ort, async (name) => new Uint8Array(await readFile(`${site}/${name}`)));
  predict = async (i) => {
    const response = await get(`test/array/${i}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    const shape = JSON.parse(response.headers.get("shape"));
    // an image comes as the canvas of a page has it
    return () => page.predict(model, shape.length === 3 ? page.rgbOf(bytes) : bytes, shape);
  };
}

// CPU time, which a page cannot read
const now = () => (inPage ? performance.now() : Object.values(process.cpuUsage()).reduce((a, b) => a + b) / 1000);
const n = await (await get("test/n")).json();
const answers = [];
for (let i = -1; i < n; i++) {  // the first one warms up
  const run = await predict(Math.max(i, 0));
  const began = now();
  const { label, values } = await run();
  if (i >= 0) answers.push({ label, values, milliseconds: now() - began });
}
await fetch(inPage ? "test/answers" : `${origin}/test/answers`, { method: "POST", body: JSON.stringify(answers) });
