"use strict";
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (name, text = "", kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;  // never HTML: names of images and classes are text
    made.className = kind;
    return made;
  };

  // thumbnails: places on sheets of pictures
  const thumbnail = (position, side) => {
    const made = element("span", "", "thumb");
    const place = data.thumbnails[position];
    made.style.width = made.style.height = `${side}px`;
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", data.ids[position]);
    if (place < 0) {
      made.classList.add("none");
      made.textContent = "no picture";
      return made;
    }
    const inSheet = place % data.a_sheet;
    const x = inSheet % data.columns;
    const y = Math.floor(inSheet / data.columns);
    const n = Math.max(...data.thumbnails) + 1;
    const onSheet = Math.min(data.a_sheet, n - (place - inSheet));
    made.classList.add(`sheet${Math.floor(place / data.a_sheet)}`);
    made.style.backgroundSize = `${side * Math.min(data.columns, onSheet)}px auto`;
    made.style.backgroundPosition = `${-x * side}px ${-y * side}px`;
    return made;
  };
  const words = (position) => {
    if (data.words) return data.words[position];
    if (data.predicted === null) return data.y[position] === null ? "no label" : `label ${data.y[position]}`;
    const isTest = position < data.n_test;
    const said = isTest ? `, predicted ${data.predicted[position]}` : ", trained on";
    return `true ${data.y[position]}${said}`;
  };
  const captionOf = (name, position) => {
    const caption = element(name, words(position));
    caption.append(element("span", data.ids[position], "id"));
    return caption;
  };
  const figureOf = (position) => {
    const figure = element("figure");
    figure.append(thumbnail(position, 144), captionOf("figcaption", position));
    return figure;
  };
  const numbers = (text) => (text ? text.split(" ").map(Number) : []);
  const MOST_SHOWN = 120;
  const fill = (box, positions) => {
    box.replaceChildren(...positions.slice(0, MOST_SHOWN).map(figureOf));
    if (positions.length > MOST_SHOWN) {
      box.append(element("p", `and ${positions.length - MOST_SHOWN} more`));
    }
  };
  const viewer = byId("viewer");
  const show = (title, positions) => {
    byId("viewer-title").textContent = title;
    fill(byId("viewer-images"), positions);
    viewer.showModal();
  };
  document.querySelectorAll("[data-images]").forEach((each) => {
    each.addEventListener("click", () => show(each.dataset.title, numbers(each.dataset.images)));
  });
  document.querySelectorAll("[data-gallery]").forEach((box) => fill(box, numbers(box.dataset.gallery)));
  viewer?.addEventListener("click", (event) => event.target === viewer && viewer.close());
  const closed = [];
  addEventListener("beforeprint", () => {
    closed.push(...document.querySelectorAll("details:not([open])"));
    closed.forEach((each) => (each.open = true));
  });
  addEventListener("afterprint", () => closed.splice(0).forEach((each) => (each.open = false)));

  const colours = (n) => Array.from({ length: n }, (_, i) => `hsl(${Math.round(210 + (i * 360) / n) % 360} 65% ${i % 2 ? 60 : 44}%)`);
  const options = (select, names) => select.append(...names.map((name) => new Option(name, name)));

  // precision and recall of a class at a threshold of its probability
  if (data.probabilities && byId("threshold")) {
    const select = byId("threshold-class");
    const range = byId("threshold-at");
    options(select, data.classes);
    select.value = data.classes[data.classes.length - 1];
    const counts = (k, at) => {
      let [hits, called, real] = [0, 0, 0];
      data.probabilities.forEach((row, i) => {
        const isClass = data.y[i] === data.classes[k];
        real += isClass;
        called += row[k] >= at;
        hits += isClass && row[k] >= at;
      });
      return { hits, called, real };
    };
    const SVG = "http://www.w3.org/2000/svg";
    const drawn = (name, attributes) => {
      const made = document.createElementNS(SVG, name);
      Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
      return made;
    };
    const update = () => {
      const k = data.classes.indexOf(select.value);
      const at = range.value / 100;
      byId("threshold-shown").textContent = `${range.value} %`;
      const svg = drawn("svg", { viewBox: "0 0 460 220", role: "img", "aria-label": "precision and recall by threshold" });
      const path = (value) => Array.from({ length: 101 }, (_, i) => [i, value(counts(k, i / 100))])
        .filter(([, share]) => share !== null)
        .map(([i, share]) => `${40 + i * 4},${190 - share * 170}`).join(" ");
      [0, 0.5, 1].forEach((tick) => {
        svg.append(drawn("line", { class: "rule", x1: 40, x2: 440, y1: 190 - tick * 170, y2: 190 - tick * 170 }));
        const label = drawn("text", { x: 34, y: 194 - tick * 170, "text-anchor": "end" });
        label.textContent = String(tick);
        svg.append(label);
      });
      svg.append(drawn("polyline", { class: "c0", points: path((c) => (c.called ? c.hits / c.called : null)) }));
      svg.append(drawn("polyline", { class: "c1", points: path((c) => (c.real ? c.hits / c.real : null)) }));
      svg.append(drawn("line", { class: "diagonal", x1: 40 + at * 400, x2: 40 + at * 400, y1: 20, y2: 190 }));
      const axis = drawn("text", { class: "axis", x: 240, y: 214, "text-anchor": "middle" });
      axis.textContent = "threshold of the probability, 0 to 100 %";
      svg.append(axis);
      const figure = element("figure");
      const caption = element("figcaption");
      caption.append(element("span", "precision", "c0"), element("span", "recall", "c1"));
      figure.append(svg, caption);
      byId("threshold-chart").replaceChildren(figure);
      const c = counts(k, at);
      const share = (a, b) => (b ? `${(100 * a / b).toFixed(1)} %` : "undefined");
      byId("threshold-text").textContent = `${c.called} of ${data.probabilities.length} held-out images are called `
        + `${select.value}; ${c.hits} of them rightly: precision ${share(c.hits, c.called)}, recall `
        + `${share(c.hits, c.real)} of ${c.real}.`;
    };
    select.addEventListener("change", update);
    range.addEventListener("input", update);
    byId("threshold").hidden = false;
    update();
  }

  // the map
  const canvas = byId("map-canvas");
  if (canvas) {
    const kinds = byId("map-kind");
    const colourBy = byId("map-colour");
    options(kinds, Object.keys(data.maps));
    kinds.value = data.maps["t-SNE"] ? "t-SNE" : kinds.options[0].value;
    const isNumeric = data.classes === null;
    const ofModel = () => {
      const prediction = data.ids.map((_, i) => (i < data.n_test ? data.predicted[i] : null));
      const right = data.ids.map((_, i) => (i >= data.n_test ? "trained on" : data.y[i] === data.predicted[i] ? "right" : "wrong"));
      const part = data.ids.map((_, i) => (i < data.n_test ? "held out" : "trained on"));
      return { prediction, ...(isNumeric ? {} : { "right or wrong": right }), part };
    };
    const isLabelled = data.y.some((value) => value !== null) || !Object.keys(data.slices).length;
    const series = { ...(isLabelled ? { label: data.y } : {}), ...(data.predicted === null ? {} : ofModel()), ...data.slices };
    options(colourBy, Object.keys(series));
    let points = [];
    let current = -1;
    const paint = () => {
      const values = series[colourBy.value];
      const known = values.filter((value) => value !== null);
      const isNumber = known.length > 0 && known.every((value) => typeof value === "number");
      const names = isNumber ? [] : [...new Set(known)].sort();
      const palette = colours(names.length);
      const [low, high] = isNumber ? [Math.min(...known), Math.max(...known)] : [0, 1];
      const colourOf = (value) => {
        if (value === null) return "#8888";
        if (isNumber) return `hsl(${240 - 240 * (value - low) / (high - low || 1)} 70% 50%)`;
        return palette[names.indexOf(value)];
      };
      const scale = devicePixelRatio || 1;
      const { clientWidth: width, clientHeight: height } = canvas;
      canvas.width = width * scale;
      canvas.height = height * scale;
      const pen = canvas.getContext("2d");
      pen.scale(scale, scale);
      const size = Math.min(width, height) - 24;
      const spread = data.maps[kinds.value];
      points = spread.map(([x, y]) => [width / 2 + (x - 0.5) * size * Math.min(1.3, width / height), height / 2 - (y - 0.5) * size]);
      const radius = points.length > 1500 ? 2.2 : 3.4;
      const order = points.map((_, i) => i).reverse();  // the held-out images on top
      order.forEach((i) => {
        const [x, y] = points[i];
        pen.globalAlpha = i < data.n_test ? 0.95 : 0.4;
        pen.fillStyle = colourOf(values[i]);
        pen.beginPath();
        pen.arc(x, y, radius, 0, 7);
        pen.fill();
      });
      pen.globalAlpha = 1;
      if (current >= 0) {
        pen.strokeStyle = getComputedStyle(document.body).color;
        pen.lineWidth = 2;
        pen.beginPath();
        pen.arc(...points[current], radius + 4, 0, 7);
        pen.stroke();
      }
      const legend = byId("map-legend");
      if (isNumber) {
        legend.textContent = `blue ${low.toPrecision(4)} to red ${high.toPrecision(4)}`;
      } else if (names.length > 30) {
        legend.textContent = `${names.length} values`;
      } else {
        legend.replaceChildren(...names.map((name, i) => {
          const entry = element("span");
          const dot = element("b", "● ");
          dot.style.color = palette[i];
          entry.append(dot, name);
          return entry;
        }));
      }
    };
    const tip = byId("map-tip");
    const select = (i, says) => {
      if (i === current) return;
      current = i;
      tip.hidden = i < 0;
      if (i >= 0) {
        tip.replaceChildren(thumbnail(i, 112), captionOf("div", i));
        const [x, y] = points[i];
        const beside = (at, size, room) => `${Math.max(0, at + 10 + size <= room ? at + 10 : at - 10 - size)}px`;
        tip.style.left = beside(x, tip.offsetWidth, canvas.clientWidth);
        tip.style.top = beside(y, tip.offsetHeight, canvas.clientHeight);
        if (says) byId("map-said").textContent = `${data.ids[i]}: ${words(i)}`;
      }
      paint();
    };
    const nearest = (x, y, among = () => true) => {
      let [best, distance] = [-1, Infinity];
      points.forEach(([px, py], i) => {
        const d = (px - x) ** 2 + (py - y) ** 2;
        if (d < distance && among(px, py, i)) [best, distance] = [i, d];
      });
      return [best, distance];
    };
    canvas.addEventListener("pointermove", (event) => {
      const [i, distance] = nearest(event.offsetX, event.offsetY);
      select(distance < 144 ? i : -1, false);
    });
    canvas.addEventListener("pointerleave", () => select(-1, false));
    canvas.addEventListener("click", () => current >= 0 && show(data.ids[current], [current]));
    const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && current >= 0) {
        event.preventDefault();  // or the same key press would close the viewer, whose button gets the focus
        show(data.ids[current], [current]);
      }
      const step = STEPS[event.key];
      if (!step) return;
      event.preventDefault();
      const [x, y] = current >= 0 ? points[current] : [canvas.clientWidth / 2, canvas.clientHeight / 2];
      const ahead = (px, py, i) => i !== current && (px - x) * step[0] + (py - y) * step[1] > Math.abs((px - x) * step[1]) + Math.abs((py - y) * step[0]);
      const [i] = current < 0 ? nearest(x, y) : nearest(x, y, ahead);
      if (i >= 0) select(i, true);
    });
    kinds.addEventListener("change", () => select(-1, false) || paint());
    colourBy.addEventListener("change", paint);
    addEventListener("resize", () => { current = -1; tip.hidden = true; paint(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    paint();
  }
})();
