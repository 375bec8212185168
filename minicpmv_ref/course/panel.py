"""The one widget base of the course: controls beside one picture, and one line that says in words what it shows.

A panel is a small subclass. Its controls are named; `draw` and `describe` take their values under these names:

    class Squares(Panel):
        def __init__(self, side=3):
            super().__init__(side=slider("Side", side, 1, 9))

        def draw(self, side):      # -> draw.Canvas, SVG or HTML
            ...

        def describe(self, side):  # -> one or two plain sentences
            return f"A square of side {side} has area {side * side}."

What is clicked, dragged or pointed at in the picture comes to `touch` and `point` (touch.py says how).

Left out: `interact` and `Output` (slow, they flicker, and they hide errors). Every error is shown in the panel.
The saved notebook keeps a picture of the panel, so a reader without a kernel sees it too.
"""

import asyncio
from contextlib import contextmanager, suppress
from html import escape

import ipywidgets as widgets

from .draw.canvas import text_width
from .touch import Picture, read_number

# Font sizes and colors follow JupyterLab's theme; pictures have a white ground of their own.
STYLE = """<style>
.mcv-panel { --jp-widgets-font-size: 16px; --jp-widgets-inline-height: 30px; overflow: hidden; }
.mcv-row { flex-flow: row wrap; gap: 10px; align-items: flex-start; overflow: hidden; }
.mcv-controls { flex: 0 0 206px; overflow: hidden; }
.mcv-controls > .widget-inline-hbox:not(.widget-play) { display: grid; grid-template-columns: 1fr auto; width: 200px;
  height: auto; margin-bottom: 6px; }
.mcv-controls > .widget-inline-hbox > .widget-label { width: auto; margin: 0; text-align: left; }
.mcv-controls > .widget-toggle-buttons > .widget-label, .mcv-controls > .widget-toggle-buttons > div,
.mcv-controls > .widget-inline-hbox > select { grid-column: 1 / 3; width: auto; }
.mcv-controls .widget-toggle-button { padding: 0 2px; }
.mcv-controls > .widget-slider > .widget-readout { order: 1; min-width: 20px; margin: 0; }
.mcv-controls > .widget-slider > .slider-container { order: 2; grid-column: 1 / 3; margin: 0 7px; height: 22px; }
.mcv-controls > .widget-upload, .mcv-controls > .widget-button, .mcv-controls > .widget-play { width: 200px; }
.mcv-picture { flex: 1 1 420px; min-width: 0; }
.mcv-panel { container-type: inline-size; width: 100%; }
@container (max-width: 640px) { .mcv-controls { flex: 1 1 100%; flex-flow: row wrap; column-gap: 14px; } }
.mcv-picture, .mcv-status .widget-html-content, .mcv-alert .widget-html-content {
  font-size: clamp(17px, 1.1vw, 22px); line-height: 1.35; white-space: normal; }
.mcv-picture svg, .mcv-picture img { display: block; width: 100%; max-height: min(60vh, 620px); user-select: none;
  object-fit: contain; object-position: left top; }
.mcv-spot { cursor: pointer; }
.mcv-spot[data-how=drag] { cursor: crosshair; touch-action: none; }
.mcv-spot:focus { outline: none; }
.mcv-spot:hover, .mcv-spot:focus-visible { stroke: #0072B2; stroke-width: 3; }
.mcv-panel.jupyter-widgets-disconnected::before { padding: 4px 10px; border-left: 5px solid #D55E00;
  content: "This panel is dead: its kernel has stopped. Run its cell again.";
  font: 17px sans-serif; color: var(--jp-ui-font-color1); }
.mcv-panel .jupyter-widgets-disconnected::before { content: none; }
.mcv-panel.jupyter-widgets-disconnected .mcv-row { opacity: 0.25; pointer-events: none; }
.mcv-status { color: var(--jp-ui-font-color1); min-height: 46px; }
.mcv-alert [role=alert] { padding: 4px 10px; border-left: 5px solid #D55E00; color: var(--jp-ui-font-color1); }
.mcv-panel:has([role=alert]) .mcv-picture { opacity: 0.25; }
</style>"""


class Panel(widgets.VBox):
    """Controls, one picture, one status line. Subclasses give `draw` and `describe`.

    Args:
        extras: widgets that stand below the controls but are no arguments: a player, an upload button.
        controls: name=widget; each widget has a `value`, and `draw` and `describe` get it as argument `name`.
    """

    strict = False  # tests set it: an error is shown and then raised
    slow = False  # a new picture asks a model: those one step of a slider away are drawn ahead, and the model remembers
    picked = None  # what `pick` chose in the picture, until a control changes

    def __init__(self, extras=(), **controls):
        self.controls = controls
        self.error = None  # the exception that the panel shows now
        self.spots, self.facts = {}, {}  # of the Canvas that is shown
        self._held = 0
        self._began = 0, None, {}  # (turn, spot, values) of the last click or drag
        self._typed = None, 0, ""  # (control, its value, why not what was typed)
        self.picture_box, self._status, self._alert = Picture(), widgets.HTML(), widgets.HTML()
        for part, name in ((self.picture_box, "picture"), (self._status, "status"), (self._alert, "alert")):
            part.add_class(f"mcv-{name}")
        column = widgets.VBox([*self.controls.values(), *extras]).add_class("mcv-controls")
        row = widgets.HBox([column, self.picture_box]).add_class("mcv-row")
        super().__init__([widgets.HTML(STYLE), row, self._status, self._alert])
        self.add_class("mcv-panel")
        for name, control in self.controls.items():
            self.on(control, lambda name=name: self._moved(name))
        self.on(self.picture_box, self._touched, "touched")
        self.on(self.picture_box, self._pointed, "pointed")
        self.on(self.picture_box, self._read_typed, "typed")
        self.redraw()
        if self.error:  # a panel that never worked must not pass for one
            raise self.error

    # -- what subclasses give

    def draw(self, **values):
        """The picture for these values; see the top of this file for what it may be."""
        raise NotImplementedError

    def describe(self, **values) -> str:
        """What the picture shows, in words and numbers. `self.facts` are those of the picture just drawn."""
        raise NotImplementedError

    def snapshot(self, **values):
        """The picture for readers without a kernel. Override it where `draw` gives an SVG or HTML string."""
        return self.draw(**values)

    def changed(self, name: str):
        """A control has a new value. Override it where one control sets another, inside `with self.hold():`."""
        self.picked = None
        self.redraw()

    def touch(self, spot, at, start, before: dict):
        """A spot was clicked, or dragged from `start` to `at`: (x, y) in the picture.

        `spot` and the values `before` are those of the picture in which the drag began. A spot that is named as a
        control is one of its values.
        """
        if spot.name in self.controls:
            self.controls[spot.name].value = spot.item

    def point(self, spot, at):
        """The mouse or an arrow key moved to `at` in a spot with how="hover"; `spot` is None when it has left."""

    # -- what subclasses use

    def values(self) -> dict:
        return {name: control.value for name, control in self.controls.items()}

    def on(self, widget, handler, names="value"):
        """Call `handler()` whenever the widget changes. Errors show up in the panel."""
        widget.observe(lambda change: self.guarded(handler), names)

    def pick(self, item):
        """Choose something in the picture, or nothing: None."""
        if item != self.picked:
            self.picked = item
            self.redraw()

    def guarded(self, handler):
        try:
            handler()
        except Exception as error:
            self._show(error)

    def _moved(self, name):
        self.changed(name)
        control = self.controls[name]
        if self.slow and isinstance(control, widgets.IntSlider):
            for rest, value in ((0.01, control.value + control.step), (0.04, control.value - control.step)):
                call = self._draw_ahead, {**self.values(), name: value}, self.picture_box.value
                if control.min <= value <= control.max:
                    with suppress(RuntimeError):  # no kernel, so nobody waits
                        asyncio.get_running_loop().call_later(rest, *call)

    def _draw_ahead(self, values, shown):
        if shown == self.picture_box.value:  # else somebody moved on, and comes first
            with suppress(Exception):  # is shown to whoever gets there
                self.draw(**values)

    def _touched(self):
        event = self.picture_box.touched
        if event["turn"] != self._began[0]:
            self._began = event["turn"], self.spots.get(event["spot"]), self.values()
        if self._began[1]:  # a picture may have changed since
            self.touch(self._began[1], event["at"], event["start"], self._began[2])

    def _pointed(self):
        event = self.picture_box.pointed
        self.point(self.spots.get(event["spot"]), event["at"])

    def _read_typed(self):
        event = self.picture_box.typed
        for control in self.controls.values():
            if control.description == event["label"] and isinstance(control, widgets.IntSlider):
                control.value, why = read_number(event["text"], control.min, control.max, control.value)
                if why:
                    self._typed = control, control.value, f"{control.description}: {why} "
                    self.say(self.status)

    @contextmanager
    def hold(self):
        """Several controls change, one picture is drawn: at the end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.redraw()

    def redraw(self):
        if self._held:
            return
        try:
            values = self.values()
            drawn = self.draw(**values)
            self.spots, self.facts = getattr(drawn, "spots", {}), getattr(drawn, "facts", {})
            words = self.describe(**values)
            picture = as_html(drawn, words)
        except Exception as error:
            self._show(error)
        else:
            self.error = None
            self._alert.value = ""
            self.picture_box.value = picture
            self.say(words)

    def say(self, words: str):
        control, taken, why = self._typed
        if control is None or control.value != taken:
            self._typed, why = (None, 0, ""), ""
        self._status.value = f'<div role="status">{escape(why + words)}</div>'

    def _show(self, error):
        # JupyterLab hides what callbacks raise, so the panel itself must say it.
        self.error = error
        self._status.value = ""
        self._alert.value = f'<div role="alert">{escape(f"{type(error).__name__}: {error}")}</div>'
        if self.strict:
            raise error

    # -- how the panel looks where there is no kernel

    @property
    def status(self) -> str:
        """The words of the status line, without markup; empty while an error is shown."""
        return "" if self.error else self.describe(**self.values())

    def __repr__(self):
        # nbval compares this text, so it names what was chosen and nothing that changes from run to run.
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.values().items())
        return f"{type(self).__name__}({chosen})"

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = {**super()._repr_mimebundle_(**kwargs), "text/plain": repr(self)}, {}
        if not self.error:
            note = "A saved picture. Run this cell, and it gets its controls."
            image, _ = self.snapshot(**self.values()).with_words(self.status, note)._repr_mimebundle_()
            data = {**data, **image, "text/plain": repr(self)}
            metadata = {kind: {"alt": self.status} for kind in image if kind != "text/plain"}
        return data, metadata


def as_html(picture, words: str) -> str:
    """HTML for a Canvas, or around HTML."""
    role = "group" if getattr(picture, "spots", None) else "img"  # an img hides its parts from screen readers
    content = picture if isinstance(picture, str) else picture.svg()
    return f'<div role="{role}" aria-label="{escape(words)}">{content}</div>'


# ---- controls


def slider(label: str, value: int, low: int, high: int, step: int = 1):
    """A slider for integers. Arrow keys move it by `step`; the number at its right can be typed."""
    if not low <= value <= high:
        raise ValueError(f"{label} must be between {low} and {high}, got {value}")
    return widgets.IntSlider(value, min=low, max=high, step=step, description=label)


def choice(label: str, options, value):
    """One of several values, given as values or (text, value) pairs: buttons for up to four, a menu for more.

    JupyterLab keeps the arrow keys from menus: Alt+Down opens one, then the arrows and Enter choose.
    """
    options = list(options)
    if len(options) > 4:
        return widgets.Dropdown(options=options, value=value, description=label)
    buttons = widgets.ToggleButtons(options=options, value=value, description=label)
    labels = [str(option[0] if isinstance(option, tuple) else option) for option in options]
    widest = max(text_width(label, 16) for label in labels) + 6
    in_row = max([number for number in range(1, len(options) + 1) if 196 // number - 4 >= widest], default=1)
    buttons.style.button_width = f"{196 // in_row - 4}px"
    return buttons


def button(label: str, handler):
    """A button below the controls; `handler` is a method of a panel, whose errors the panel shows."""
    made = widgets.Button(description=label)
    made.on_click(lambda clicked: handler.__self__.guarded(handler))
    return made


def toggle(label: str, value: bool = False):
    return widgets.Checkbox(value, description=label, indent=False)


def player(control, interval: int = 100):
    """Buttons that step a slider by themselves. Its value is linked in the browser, so the pace does not wait."""
    play = widgets.Play(value=control.value, min=control.min, max=control.max, interval=interval)
    widgets.jslink((play, "value"), (control, "value"))
    widgets.dlink((control, "max"), (play, "max"))
    return play
