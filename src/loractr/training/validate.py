"""Scores of a model on validation rows, as the loop needs them."""

import math
from dataclasses import dataclass, replace

import numpy as np

from loractr.batch import Routing
from loractr.data.rows import Rows
from loractr.errors import TrainingError
from loractr.evaluation.metrics import DomainScores, score
from loractr.model import CTRModel
from loractr.predict import logits
from loractr.schema import Schema
from loractr.stage import Select


@dataclass(frozen=True)
class Validator:
    """Scores a model on fixed rows, by the domains of one division."""

    schema: Schema
    rows: Rows
    division: int | None
    """Column of `rows.domains`; None: the rows are one domain."""

    @property
    def domains(self) -> int:
        """Number of domains."""
        return 1 if self.division is None else len(self.schema.divisions[self.division].domains)

    def of(self, rows: Rows, division: int | None) -> "Validator":
        """The same for other rows, by the domains of another division."""
        return replace(self, rows=rows, division=division)

    def scores(
        self, model: CTRModel, routing: Routing | None = None, expert: int | None = None
    ) -> DomainScores | None:
        """Metrics per domain; None without rows.

        Args:
            model: Scores the rows.
            routing: What acts; the model's own by default.
            expert: All rows go to this expert of the acting division.

        Raises:
            TrainingError: the model gives some row no number.
        """
        if not len(self.rows):
            return None
        assert self.rows.label is not None
        domain = (
            np.zeros(len(self.rows), np.int32)
            if self.division is None
            else self.rows.domains[:, self.division]
        )
        logit = logits(model, self.rows, self.schema, routing=routing, expert=expert)
        if lost := int(np.isnan(logit).sum()):
            raise TrainingError(
                f"the model gives no number for {lost} of {len(self.rows)} validation rows.",
                fix="lower training.learning_rate, set training.clip_norm, or scale large numbers.",
            )
        weight = self.rows.weight
        return score(self.rows.label, logit, domain, self.domains, weight, logits=True)


def chosen(scores: DomainScores | None, select: Select) -> tuple[float | None, Select]:
    """The value to maximise and the metric that it comes from: `select`, or log loss where that is
    undefined (one class only). None without rows, or without any weight."""
    if scores is None or math.isnan(scores.log_loss):
        return None, select
    value = -scores.log_loss if select == "log_loss" else float(getattr(scores, select))
    return (-scores.log_loss, "log_loss") if math.isnan(value) else (value, select)


def chosen_for_domain(
    scores: DomainScores, domain: int, select: Select
) -> tuple[float | None, Select]:
    """The same for one domain: its AUC, or its log loss where the AUC is undefined."""
    auc, loss = float(scores.domain_auc[domain]), float(scores.domain_log_loss[domain])
    if math.isnan(loss):
        return None, select
    return (-loss, "log_loss") if select == "log_loss" or math.isnan(auc) else (auc, select)
