"""Distillation: a smaller network of the same factory, taught by a version's answers.

What is here decides who the student is and what the teacher says; the loss that mixes the
teacher's answers with the labels is the training loop's (``FitConfig.teacher_weight``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.compression.measure import n_parameters
from jobs.compression.parent import Parent, recorded_network
from jobs.fitting.network import check_network
from jobs.preparation.prepared import Prepared
from kit.errors import SettingsError
from kit.project import Project


def student_parameters(
    project: Project, parent: Parent, *, student: Mapping[str, Any], prepared: Prepared
) -> dict[str, Any]:
    """Give the arguments that make the student, refusing one that is no smaller than its teacher.

    Args:
        project: Names the factory.
        parent: The teacher.
        student: What differs from the teacher's arguments.
        prepared: The project's rows; a few are tried.

    Returns:
        All arguments of the factory.

    Raises:
        SettingsError: Nothing differs, or the student has as many parameters as the teacher.
        ProjectError: The factory does not take an argument, or its network does not fit the task.
    """
    if not student:
        taken = ", ".join(f"{name} = {value!r}" for name, value in parent.parameters.items())
        raise SettingsError(
            "distill needs a smaller network, but [compress] student is empty",
            hint="say in kit.toml which arguments of the factory make it, for example [compress] student = "
            f"{{ width = 8 }} ({parent.name} has {taken or 'none'})",
        )
    parameters = {**parent.parameters, **student}
    n_classes = len(prepared.split.classes)
    network = recorded_network(
        project, parameters=parameters, n_features=prepared.n_features, n_classes=n_classes
    )
    check_network(network, rows=prepared.trial, n_classes=n_classes)
    small, large = n_parameters(network), n_parameters(parent.network)
    if small >= large:
        raise SettingsError(
            f"the student {dict(student)} has {small:,} parameters, no fewer than the {large:,} of "
            f"{parent.name}",
            hint="choose smaller values in [compress] student",
        )
    return parameters
