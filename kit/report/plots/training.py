"""Plots of a training run: losses by epoch, and which classes are mistaken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.report.plots.drawing import INK, LINE, MUTED, PAPER, SERIES, legend, scale, shorten, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Most classes drawn as a heat map; a larger one cannot be read.
MAX_CLASSES = 40
_COUNTED_CLASSES = 16


def training_curves(
    epochs: Sequence[int], train: Sequence[float], validation: Sequence[float], *, best_epoch: int, name: str
) -> str:
    """Draw the losses by epoch, the best epoch marked.

    Args:
        epochs: Numbers of the epochs, ascending.
        train: Loss on the training rows per epoch.
        validation: Loss on the validation rows per epoch.
        best_epoch: The epoch whose weights were kept.
        name: Prefix of the ids in the drawing, unique in the page.

    Returns:
        One ``<svg>`` element.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        marker = "o" if len(epochs) < 2 else None
        axes.plot(epochs, train, color=SERIES[0], marker=marker, label="training")
        axes.plot(epochs, validation, color=SERIES[1], marker=marker, label="validation")
        if best_epoch in epochs:
            loss = validation[list(epochs).index(best_epoch)]
            axes.axvline(best_epoch, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.plot(
                [best_epoch], [loss], "o", color=SERIES[1], label=f"best: epoch {best_epoch}, {loss:.4g}"
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        scale(axes, "y", [*train, *validation])
        legend(figure, axes, columns=3)

    return svg(draw, height_in=3.1, name=name, title="Loss by epoch, training and validation")


def confusion(
    counts: Sequence[Sequence[int]],
    classes: Sequence[str],
    *,
    x_label: str = "answered class",
    y_label: str = "true class",
    name: str,
) -> str:
    """Draw a confusion matrix, each row shaded by its share.

    Args:
        counts: Rows by true class and answered class, shape (n_classes, n_classes).
        classes: Their names; at most ``MAX_CLASSES``.
        x_label: What the columns are.
        y_label: What the rows are.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    labels = [shorten(each) for each in classes]
    side = len(labels)
    longest = max(len(label) for label in labels)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        for row, line in enumerate(counts):
            total = sum(line) or 1
            for column, count in enumerate(line):
                if not count:
                    continue
                # The palest shade still shows: one wrong row in a thousand is worth a look.
                alpha = 0.12 + 0.88 * count / total
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, color=SERIES[0], alpha=alpha, linewidth=0))
                if side <= _COUNTED_CLASSES:
                    ink = PAPER if alpha > 0.55 else INK
                    size = 10 if side <= 12 else 8
                    axes.text(column, row, f"{count:,}", color=ink, size=size, ha="center", va="center")
        axes.set_xlim(-0.5, side - 0.5)
        axes.set_ylim(side - 0.5, -0.5)
        axes.set_aspect("equal")
        size = 10 if side <= 12 else 8 if side <= 24 else 6
        axes.set_xticks(range(side), labels, size=size, rotation=90 if longest > 3 and side > 3 else 0)
        axes.set_yticks(range(side), labels, size=size)
        axes.grid(visible=False)
        for edge in range(side + 1):
            axes.axhline(edge - 0.5, color=LINE, linewidth=0.4)
            axes.axvline(edge - 0.5, color=LINE, linewidth=0.4)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    height = 4.4 if side > 4 else 3.6
    return svg(draw, height_in=height, name=name, title=f"Rows by {y_label} and {x_label}")
