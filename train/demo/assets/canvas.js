// The canvas of the demo, as Gradio's `js_on_load`: it gets `element`, `props` and `trigger`. After each line, the value
// is the drawing as the data URL of a PNG file, white on black; "" if nothing is drawn.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const [undo, clear] = element.querySelectorAll("button");
const lines = []; // each line is a list of points [x, y]
let line = null; // the line that is being drawn

function redraw() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = "#fff";
  pen.lineWidth = canvas.width / 14;
  pen.lineCap = pen.lineJoin = "round";
  for (const [start, ...points] of lines) {
    pen.beginPath();
    pen.moveTo(...start);
    pen.lineTo(...start); // a dot, if there is only one point
    for (const point of points) pen.lineTo(...point);
    pen.stroke();
  }
  undo.disabled = clear.disabled = !lines.length;
}

function send() {
  redraw();
  props.value = lines.length ? canvas.toDataURL("image/png") : "";
  trigger("input");
}

function extend(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  line.push([(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]);
}

canvas.addEventListener("pointerdown", (event) => {
  if (line || event.button) return; // a second finger, or another button of the mouse
  canvas.setPointerCapture(event.pointerId);
  lines.push((line = []));
  extend(event);
  redraw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!line || !event.isPrimary) return;
  for (const step of event.getCoalescedEvents?.() ?? [event]) extend(step);
  redraw();
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    if (!line || !event.isPrimary) return;
    line = null;
    send();
  });
}
undo.addEventListener("click", () => {
  lines.pop();
  send();
});
clear.addEventListener("click", () => {
  lines.length = 0;
  send();
});
redraw();
