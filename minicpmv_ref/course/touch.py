"""The picture of a panel, as a widget: what is touched in it comes back from the browser.

A picture has spots (`draw.Canvas.spot`): rectangles with a name. In the SVG they are transparent shapes on top that say
in data attributes what they are. The script below turns the mouse and the keyboard into three traits of `Picture`:

    touched   a spot was clicked, or is dragged        {"spot": key, "start": [x, y], "at": [x, y], "turn": number}
    pointed   the mouse or an arrow key is on a spot that wants to know it; spot "" when it leaves
    typed     something was typed into the number beside a slider          {"label": description, "text": words, "turn"}

Positions are pixels of the canvas. All events of one drag have the same turn. ipywidgets sends the newest value of a
trait when the kernel is ready for it, so a quick drag cannot queue up. Tab goes from one kind of spot to the next.
Arrow keys go from spot to spot of one kind, or move a spot that has a `step` in their direction; Enter clicks.
"""

import re

import anywidget
from traitlets import Dict, Unicode

SCRIPT = """
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function render({model, el}) {
  let held = null, anchor = null, last = {}, turn = 0;
  el.setAttribute('data-lm-suppress-shortcuts', 'true');  // or JupyterLab takes the arrow keys
  const spots = () => [...el.querySelectorAll('[data-spot]')];
  const spotOf = event => event.target.closest('[data-spot]');
  const focus = spot => { last = spot.dataset; spot.focus({preventScroll: true}); };
  const tell = (trait, spot, start, at) => { model.set(trait, {spot, start, at, turn}); model.save_changes(); };
  const show = () => {
    const inside = el.contains(document.activeElement);
    el.innerHTML = model.get('value');
    const alike = spots().filter(spot => spot.dataset.name === last.name);
    const old = alike.find(spot => spot.dataset.spot === last.spot) ?? alike.find(spot => spot.tabIndex === 0);
    if (inside && old) focus(old);
  };
  const place = event => {
    const screen = el.querySelector('svg').getScreenCTM();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(screen.inverse());
    return [point.x, point.y];
  };
  const neighbor = (spot, [dx, dy]) => {  // the nearest in this direction, else the next or the previous one
    const alike = spots().filter(other => other.dataset.name === spot.dataset.name);
    const [x, y] = JSON.parse(spot.dataset.at);
    const far = other => {
      const [ox, oy] = JSON.parse(other.dataset.at), ahead = (ox - x) * dx + (oy - y) * dy;
      return ahead > 1 ? ahead + 3 * Math.abs((ox - x) * dy + (oy - y) * dx) : Infinity;
    };
    const best = alike.reduce((a, b) => far(b) < far(a) ? b : a);
    return far(best) < Infinity ? best : alike[alike.indexOf(spot) + dx + dy] ?? spot;
  };
  el.addEventListener('pointerdown', event => {
    const spot = spotOf(event);
    if (!spot || event.button) return;
    event.preventDefault();
    focus(spot);
    anchor = place(event);
    turn = Date.now();
    tell('touched', last.spot, anchor, anchor);
    if (spot.dataset.how === 'drag') {
      held = last.spot;
      el.setPointerCapture(event.pointerId);
    }
  });
  el.addEventListener('pointermove', event => {
    if (held) return tell('touched', held, anchor, place(event));
    const spot = spotOf(event), at = place(event);
    if (spot?.dataset.how === 'hover') tell('pointed', spot.dataset.spot, at, at);
    else if (model.get('pointed').spot) tell('pointed', '', at, at);
  });
  el.addEventListener('pointerleave', () => { if (model.get('pointed').spot) tell('pointed', '', [0, 0], [0, 0]); });
  for (const end of ['pointerup', 'pointercancel']) el.addEventListener(end, () => { held = null; });
  el.addEventListener('keydown', event => {
    const spot = spotOf(event), arrow = ARROWS[event.key];
    if (!spot || !(arrow || event.key === 'Enter' || event.key === ' ')) return;
    event.preventDefault();
    event.stopPropagation();
    const {how, at, step} = spot.dataset, now = JSON.parse(at), by = JSON.parse(step);
    if (arrow && !(by && arrow.some((way, side) => way * by[side]))) return focus(neighbor(spot, arrow));
    const to = arrow ? [now[0] + arrow[0] * by[0], now[1] + arrow[1] * by[1]] : now;
    spot.dataset.at = JSON.stringify(to);
    last = spot.dataset;
    turn = Date.now();
    tell(arrow && how === 'hover' ? 'pointed' : 'touched', last.spot, now, to);
  });
  const typed = event => {  // before the slider reads it: it takes the nearest number that is allowed, without a word
    const box = event.target.closest?.('.widget-readout'), enters = event.type === 'blur' || event.key === 'Enter';
    if (!box || !enters || !el.closest('.mcv-panel')?.contains(box)) return;
    const label = box.parentElement.querySelector('.widget-label').textContent;
    model.set('typed', {label, text: box.textContent.trim().slice(0, 24), turn: Date.now()});
    model.save_changes();
  };
  for (const kind of ['keydown', 'blur']) document.addEventListener(kind, typed, true);
  model.on('change:value', show);
  show();
  return () => { for (const kind of ['keydown', 'blur']) document.removeEventListener(kind, typed, true); };
}
export default {render};
"""


class Picture(anywidget.AnyWidget):
    """HTML whose spots can be touched."""

    _esm = SCRIPT
    value = Unicode("").tag(sync=True)
    touched = Dict({"spot": "", "turn": 0}).tag(sync=True)
    pointed = Dict({"spot": "", "turn": 0}).tag(sync=True)
    typed = Dict({"label": "", "text": "", "turn": 0}).tag(sync=True)


def read_number(text: str, low: int, high: int, before: int) -> tuple[int, str]:
    """The number that a slider takes for what was typed, and why it is another one; "" if it is the same."""
    text = text.replace("\u2212", "-")  # the minus sign of the browser
    start = re.match(r"[+-]?\d+", text)
    number = int(start[0]) if start else before
    taken = min(max(number, low), high)
    if not start or start[0] != text:
        return taken, f"{text!r} is not a whole number; {taken} is taken."
    if taken != number:
        side = f"below {low}, the least" if number < low else f"above {high}, the largest"
        return taken, f"{number} is {side} value; {taken} is taken."
    return taken, ""
