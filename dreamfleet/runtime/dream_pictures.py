"""Draws dreams beside the real rows: films and strips of images, and curves of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageDraw

from dreamfleet.core.types import Array, Batch
from dreamfleet.runtime.dream_report import TRUE_BELOW, Windows, observed_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE: Final = 240  # pixels, at least about this long is the longer side of a frame in a film
STRIP_SIDE: Final = 96  # the same in a strip
COLUMNS: Final = 12  # most frames in a row of a strip
LINE: Final = 14  # height of a line of text, in pixels
FRAME_MS: Final = 150  # how long a film shows each frame
LAST_MS: Final = 1500  # how long a film shows its last frame
NUMBERS: Final = 8  # most numbers of an observation that get a panel of curves
REAL, DREAM, FLOOR = "#222222", "#0072B2", "#E69F00"  # colours of curves


@dataclass(frozen=True)
class Dream:
    """One window and its dream: C known rows, then up to H rows, real and predicted."""

    rows: Batch  # (C + H', …), without the rows behind the end of the episode
    predicted: Batch  # (H', …)
    context: int  # C
    begin: int  # step of the episode at which the dream begins
    title: str

    @classmethod
    def of(cls, windows: Windows, predicted: Batch, w: int, title: str) -> Dream:
        """Returns window `w` with its predictions. title: text for the pictures."""
        steps = int(windows.inside[w].sum())
        rows = {key: value[w, : windows.context + steps] for key, value in windows.rows.items()}
        ahead = {key: value[w, :steps] for key, value in predicted.items()}
        return cls(rows, ahead, windows.context, int(windows.begin[w]), title)

    def images(self) -> list[str]:
        """Returns the names of those predicted parts of the observation that are images."""
        return [part for part in observed_parts(self.predicted) if self.rows[part].ndim == 4]

    def numbers(self) -> list[tuple[str, Array, Array]]:
        """Returns name, real values (C + H',) and predicted values (H',) of predicted numbers.

        At most `NUMBERS` numbers of the observation are returned: the first that change.
        """
        found = []
        for part in observed_parts(self.predicted):
            if part in self.images():
                continue
            real, dreamed = (
                value.reshape(len(value), -1) for value in (self.rows[part], self.predicted[part])
            )
            changing = np.flatnonzero(np.ptp(real, 0) > 0)
            found += [(f"{part}[{i}]", real[:, i], dreamed[:, i]) for i in changing]
        return found[:NUMBERS]


# ------------------------------------------------------------------------------------ images


def save_film(path: Path, dream: Dream, part: str) -> None:
    """Saves a GIF of real frames on the left, and of the dream on the right.

    While the dream has not begun, both sides show the real frames. Below each side stand the reward
    that arrived with the frame, and the end or the predicted probability of the end. part: the name
    of the column with the frames.
    """
    real = dream.rows[part]
    shown = np.concatenate([real[: dream.context], dream.predicted[part]])
    scale = _scale(real, SIDE)
    frames = [
        _side_by_side(_enlarged(real[t], scale), _enlarged(shown[t], scale), _captions(dream, t))
        for t in range(len(real))
    ]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    first, *others = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def save_strip(path: Path, dream: Dream, part: str) -> None:
    """Saves a PNG of two rows of frames: real frames, and the dream below, a column per few steps.

    The first column is the last frame before the dream, which both rows share. The number over each
    further column is the step of the dream. part: the name of the column with the frames.
    """
    real = dream.rows[part][dream.context - 1 :]
    dreamed = np.concatenate([real[:1], dream.predicted[part]])
    stride = -(-(len(real) - 1) // (COLUMNS - 1))
    steps = range(0, len(real), stride)
    scale = _scale(real, STRIP_SIDE)
    rows = [
        np.concatenate([_enlarged(frames[t], scale) for t in steps], 1)
        for frames in (real, dreamed)
    ]
    height, width = rows[0].shape[:2]
    picture = Image.new("RGB", (width, LINE + 2 * height), "white")
    pen = ImageDraw.Draw(picture)
    for column, t in enumerate(steps):
        pen.text((column * width // len(steps) + 2, 1), str(t) if t else "real", fill="black")
    for row, frames in enumerate(rows):
        picture.paste(Image.fromarray(frames), (0, LINE + row * height))
    picture.save(path)


def _scale(frames: Array, side: int) -> int:
    return max(1, round(side / max(frames.shape[1:3])))


def _enlarged(frame: Array, scale: int) -> Array:
    """Returns a frame (H, W, C) as RGB, with each pixel repeated `scale` times in both directions.

    A frame with one channel is grey. Of frames that are stacked as channels the last one is shown.
    """
    pixels = np.clip(np.round(frame), 0, 255).astype(np.uint8)
    colours = pixels if pixels.shape[-1] == 3 else np.repeat(pixels[..., -1:], 3, -1)
    return colours.repeat(scale, 0).repeat(scale, 1)


def _side_by_side(left: Array, right: Array, captions: Sequence[str]) -> Image.Image:
    height, width = left.shape[:2]
    picture = Image.new("RGB", (2 * width, height + 2 * LINE + 4), "white")
    for side, (pixels, text) in enumerate(zip((left, right), captions, strict=True)):
        picture.paste(Image.fromarray(pixels), (side * width, 0))
        ImageDraw.Draw(picture).multiline_text((side * width + 3, height + 1), text, fill="black")
    return picture


def _captions(dream: Dream, t: int) -> tuple[str, str]:
    """Returns the texts below the real frame and below the dreamed frame of row `t`."""
    ahead = t - dream.context
    end = ", end" if dream.rows["terminal"][t] else ""
    real = f"real, step {dream.begin + ahead}\nreward {dream.rows['reward'][t]:+.2f}{end}"
    if ahead < 0:
        return real, "the dream has not begun"
    reward, prob = dream.predicted["reward"][ahead], dream.predicted["terminal"][ahead]
    return real, f"dream, {ahead + 1} ahead\nreward {reward:+.2f}, end {prob:.0%}"


# ------------------------------------------------------------------------------------ curves


def save_curves(path: Path, dream: Dream, report: Mapping[str, Any]) -> None:
    """Saves a PNG of curves: real and dreamed numbers, reward, end, and the error over the steps.

    report: what `dream_report.compare` returned; its errors are of all windows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reward, terminal = dream.predicted["reward"], dream.predicted["terminal"]
    panels = dream.numbers()
    panels += [
        ("reward", dream.rows["reward"], reward),
        ("probability of the end", dream.rows["terminal"], terminal),
    ]
    errors = bool(report["obs_error"])
    count = len(panels) + errors + bool(report["kl"])
    columns = min(3, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.3 * columns, 2.1 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(lines, columns)))
    for place, (name, real, dreamed) in zip(axes, panels, strict=False):
        _draw_panel(place, name, real, dreamed, dream)
    for place in axes[len(panels) - 2 : len(panels)]:  # reward and end: 0 is in the picture
        place.axhline(0, color="#DDDDDD", lw=0.6)
    axes[len(panels) - 1].set_ylim(-0.05, 1.05)
    rest = iter(axes[len(panels) :])
    if errors:
        _draw_errors(next(rest), report)
    if report["kl"]:
        _draw_steps(next(rest), "KL in nats, all windows", report["kl"], DREAM, None)
    for unused in rest:
        unused.set_axis_off()
    figure.suptitle(dream.title, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})


def _draw_panel(axes: Axes, name: str, real: Array, dreamed: Array, dream: Dream) -> None:
    """Draws real values (C + H',) and dreamed values (H',) over the steps of the episode."""
    steps = dream.begin - dream.context + np.arange(len(real))
    axes.axvline(dream.begin - 0.5, color="#999999", ls=":", lw=1)
    axes.plot(steps, real.astype(float), color=REAL, lw=1.2, label="real")
    axes.plot(steps[dream.context :], dreamed, color=DREAM, lw=1.6, label="dream")
    _label(axes, name, "step of the episode")


def _draw_errors(axes: Axes, report: Mapping[str, Any]) -> None:
    """Draws the error of observations over the steps of a dream, as a mean over all windows."""
    for errors in report["obs_error"].values():
        _draw_steps(axes, "error in standard deviations, all windows", errors, DREAM, "dream")
    for errors in report["posterior_error"].values():
        _draw_steps(axes, "error in standard deviations, all windows", errors, FLOOR, "posterior")
    axes.axhline(TRUE_BELOW, color="#999999", ls="--", lw=0.8)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)


def _draw_steps(
    axes: Axes, name: str, values: Sequence[float | None], colour: str, label: str | None
) -> None:
    known = [value for value in values if value is not None]
    axes.plot(np.arange(1, len(known) + 1), known, color=colour, lw=1.4, label=label)
    _label(axes, name, "step of the dream")


def _label(axes: Axes, name: str, steps: str) -> None:
    axes.set_title(name, fontsize=8, loc="left")
    axes.set_xlabel(steps, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
