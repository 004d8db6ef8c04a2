"""What a training minimises: the labels' loss, weighted by class, and a teacher's answers.

Every loss is a mean over rows, so that batches of any size, on any number of workers, add up to the
same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kit.errors import SettingsError, nearest

if TYPE_CHECKING:
    import torch

#: ``balanced``, or one weight per class; empty for none.
ClassWeights = str | tuple[float, ...]


def class_weights_of(
    given: str | Mapping[str, float], *, n_classes: int, classes: Sequence[int | str]
) -> ClassWeights:
    """Turn the setting into one weight per class.

    Args:
        given: ``none``, ``balanced``, or class to weight; a class that is left out weighs 1.
        n_classes: 0 for regression.
        classes: Their names, in the order of the labels.

    Raises:
        SettingsError: A class is not known, a weight is not above 0, or there are no classes.
    """
    if given == "none":
        return ()
    if not n_classes:
        raise SettingsError(
            "class_weights are set, but the task is regression", hint="remove class_weights from [train]"
        )
    if isinstance(given, str):
        return given
    names = [str(name) for name in classes]
    for name, weight in given.items():
        if name not in names:
            raise SettingsError(f"class_weights names {name!r}, which is no class", hint=nearest(name, names))
        if not (math.isfinite(weight) and weight > 0):
            raise SettingsError(
                f"the weight {weight:g} of class {name!r} does not lie above 0", hint="set it above 0"
            )
    return tuple(float(given.get(name, 1.0)) for name in names)


class Loss:
    """The mean loss of some rows."""

    def __init__(
        self,
        labels: torch.Tensor,
        *,
        n_classes: int,
        class_weights: ClassWeights = (),
        teacher_weight: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        """Prepare for the labels of the training rows.

        Args:
            labels: Class numbers, or values, shape (n_rows, ...).
            n_classes: 0 for regression.
            class_weights: Scaled so that the training rows weigh 1 on average: ``learning_rate`` keeps its
                meaning. ``balanced`` lets every class count the same.
            teacher_weight: Share of the teacher in the loss, from 0 to 1.
            temperature: Divides the logits of both before they are compared; not for regression.
        """
        import torch

        self.teacher_weight, self.temperature, self.n_classes = teacher_weight, temperature, n_classes
        self.weights: torch.Tensor | None = None
        if n_classes and class_weights:
            counts = torch.bincount(labels, minlength=n_classes).double()
            each = (
                1 / counts.clamp(min=1)
                if class_weights == "balanced"
                else torch.tensor(class_weights, dtype=torch.float64, device=labels.device)
            )
            self.weights = (each * (counts.sum() / (each * counts).sum())).float()

    def __call__(
        self, answer: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compare answers with labels and, where given, with a teacher's answers.

        Args:
            answer: Logits, shape (n_rows, n_classes), or values, as many as labels.
            labels: Shape (n_rows,) or (n_rows, ...).
            teacher: Logits or values of the same rows, shaped like the answer.

        Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).
        """
        if teacher is None or not self.teacher_weight:
            return self._by_labels(answer, labels)
        taught = self._by_teacher(answer, teacher)
        if self.teacher_weight == 1:
            return taught
        return (1 - self.teacher_weight) * self._by_labels(answer, labels) + self.teacher_weight * taught

    def _by_labels(self, answer: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        if not self.n_classes:
            return functional.mse_loss(answer.reshape(labels.shape), labels)
        if self.weights is None:
            return functional.cross_entropy(answer, labels)
        summed = functional.cross_entropy(answer, labels, weight=self.weights, reduction="sum")
        return summed / len(labels)

    def _by_teacher(self, answer: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        if not self.n_classes:
            return functional.mse_loss(answer.reshape(teacher.shape), teacher)
        taught = functional.kl_div(
            functional.log_softmax(answer / self.temperature, dim=1),
            functional.log_softmax(teacher / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return taught * self.temperature**2
