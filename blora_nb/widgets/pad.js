// The page's side of DrawingPad. Python gives side, sizes and colours; `drawn` goes back to it
// after every change.

const STEPS = 20; // that can be undone
const ALIKE = 48; // of 255: Fill goes on where no channel differs by more
const ERASER = 2; // times the pen's size

function render({ model, el }) {
  const side = model.get("side");
  const sizes = Object.entries(model.get("sizes"));
  const colours = Object.entries(model.get("colours"));
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  const chosen = { tool: "Pen", size: sizes[1][1], colour: colours[0][1] };
  let undoable = [];
  let sent = null; // the value of `drawn` that the canvas shows

  const pad = element("div", "blora-pad");
  // so that JupyterLab does not take keys pressed here for its own
  pad.dataset.lmSuppressShortcuts = "true";
  canvas.width = side;
  canvas.height = side;
  // so that it takes the focus, and Ctrl+Z after a stroke reaches the pad
  canvas.tabIndex = -1;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Paper: draw with mouse, pen or finger");

  const undoButton = button("Undo", undo);
  const tools = ["Pen", "Fill", "Eraser"].map((name) => [button(name), name]);
  const dots = sizes.map(([name, size]) => [dot(name, size), size]);
  const swatches = colours.map(([name, colour]) => [swatch(name, colour), colour]);
  pad.append(
    row(
      choice("Tool", "tool", tools),
      choice("Size", "size", dots),
      group("Change", [undoButton, button("Clear", clear)]),
    ),
    canvas,
    row(choice("Colour", "colour", swatches)),
  );
  // a colour is chosen to draw with it
  pad.querySelector("[aria-label=Colour]").addEventListener("click", () => {
    if (chosen.tool === "Eraser") tools[0][0].click();
  });
  el.append(pad);
  drawOnCanvas();
  showDrawn();
  model.on("change:drawn", showDrawn);
  pad.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation();
      undo();
    }
  });
  return () => model.off("change:drawn", showDrawn);

  /** A group of buttons of which one is pressed; `chosen[key]` is its value. */
  function choice(label, key, members) {
    const press = (value) => {
      chosen[key] = value;
      for (const [member, own] of members) member.setAttribute("aria-pressed", own === value);
    };
    for (const [member, value] of members) member.addEventListener("click", () => press(value));
    press(chosen[key]);
    return group(label, members.map(([member]) => member));
  }

  function drawOnCanvas() {
    let last = null; // where the pointer was; null while nothing is drawn
    let middle = null; // half-way from the place before

    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      keep();
      const place = placeOf(event);
      if (chosen.tool === "Fill") {
        fill(context, side, place, chosen.colour);
        send();
        return;
      }
      canvas.setPointerCapture(event.pointerId);
      const wide = chosen.tool === "Eraser" ? ERASER : 1;
      context.strokeStyle = chosen.tool === "Eraser" ? "#ffffff" : chosen.colour;
      context.lineWidth = wide * chosen.size;
      context.lineCap = "round";
      context.lineJoin = "round";
      last = place;
      middle = place;
      line(place, place, place);
    });

    canvas.addEventListener("pointermove", (event) => {
      if (!last || !event.isPrimary) return;
      const between = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const one of between.length ? between : [event]) {
        const place = placeOf(one);
        const next = { x: (last.x + place.x) / 2, y: (last.y + place.y) / 2 };
        line(middle, last, next);
        last = place;
        middle = next;
      }
    });

    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => {
        if (!last || !event.isPrimary) return;
        line(middle, last, last);
        last = null;
        send();
      });
    }
  }

  /** Draw a curve that bends towards the middle one of three places. */
  function line(from, towards, to) {
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.quadraticCurveTo(towards.x, towards.y, to.x, to.y);
    context.stroke();
  }

  /** Where on the paper a pointer is, in its pixels. */
  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * side) / box.width,
      y: ((event.clientY - box.top) * side) / box.height,
    };
  }

  function keep() {
    undoable.push(context.getImageData(0, 0, side, side));
    if (undoable.length > STEPS) undoable.shift();
    showUndoable();
  }

  function undo() {
    const before = undoable.pop();
    if (!before) return;
    context.putImageData(before, 0, 0);
    showUndoable();
    send();
  }

  function clear() {
    keep();
    whiten();
    send();
  }

  function whiten() {
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, side, side);
  }

  /** Not `disabled`, which would take the focus from a keyboard. */
  function showUndoable() {
    undoButton.setAttribute("aria-disabled", undoable.length === 0);
  }

  function send() {
    sent = canvas.toDataURL("image/png");
    model.set("drawn", sent);
    model.save_changes();
  }

  /** Show what Python, or another view of this pad, has put on the paper. */
  function showDrawn() {
    const drawn = model.get("drawn");
    if (drawn === sent) return;
    sent = drawn;
    undoable = [];
    showUndoable();
    whiten();
    if (!drawn) return;
    const picture = new Image();
    picture.onload = () => {
      if (sent === drawn) context.drawImage(picture, 0, 0, side, side);
    };
    picture.src = drawn;
  }
}

function element(tag, name) {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}

function row(...groups) {
  const made = element("div", "blora-pad-row");
  made.append(...groups);
  return made;
}

function group(label, members) {
  const made = element("div", "blora-pad-group");
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  made.append(...members);
  return made;
}

function button(name, onClick = () => {}) {
  const made = element("button", "blora-pad-button");
  made.type = "button";
  made.textContent = name;
  made.addEventListener("click", onClick);
  return made;
}

/** A button without words; its name is read out, and shown while the pointer rests on it. */
function pictured(name, kind) {
  const made = element("button", `blora-pad-button ${kind}`);
  made.type = "button";
  made.title = name;
  made.setAttribute("aria-label", name);
  return made;
}

function dot(name, size) {
  const made = pictured(`${name} pen`, "blora-pad-size");
  const mark = element("span", "blora-pad-dot");
  mark.style.width = mark.style.height = `${4 + size / 2}px`;
  made.append(mark);
  return made;
}

function swatch(name, colour) {
  const made = pictured(name, "blora-pad-colour");
  made.style.backgroundColor = colour;
  return made;
}

/** Fill the area around a place with a colour ("#rrggbb"), up to and with the edge of its lines. */
function fill(context, side, place, colour) {
  const image = context.getImageData(0, 0, side, side);
  const pixels = image.data;
  const old = pixels.slice();
  const wanted = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const inside = (value) => Math.min(Math.max(Math.floor(value), 0), side - 1);
  const first = inside(place.y) * side + inside(place.x);
  const reached = new Uint8Array(side * side);
  const open = [first];
  reached[first] = 1;

  function isAlike(pixel) {
    for (let channel = 0; channel < 3; channel++) {
      const difference = old[4 * pixel + channel] - old[4 * first + channel];
      if (Math.abs(difference) > ALIKE) return false;
    }
    return true;
  }

  function reach(pixel) {
    if (reached[pixel]) return;
    reached[pixel] = 1;
    open.push(pixel);
  }

  while (open.length) {
    const pixel = open.pop();
    pixels.set(wanted, 4 * pixel);
    // a line's soft edge is painted, but not passed
    if (!isAlike(pixel)) continue;
    const column = pixel % side;
    if (column > 0) reach(pixel - 1);
    if (column < side - 1) reach(pixel + 1);
    if (pixel >= side) reach(pixel - side);
    if (pixel < side * (side - 1)) reach(pixel + side);
  }
  context.putImageData(image, 0, 0);
}

export default { render };
