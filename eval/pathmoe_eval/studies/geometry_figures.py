"""The figures of a run's geometry that a study compares; `model_means` says what they are means of."""

from __future__ import annotations

from pathmoe_eval.reports.number_format import count, percent, ratio
from pathmoe_eval.studies.figure import Figure

_SHARED = "of neighbouring layers that share a router"

GEOMETRY_FIGURES = (
    Figure(
        key="shared_state_energy", name="shared direction, states", place="directions.shared_state_energy",
        form=percent, note="share of the energy of router inputs along their first singular vector",
    ),
    Figure(
        key="shared_logit_energy", name="shared direction, logits", place="directions.shared_logit_energy",
        form=percent, note="share of the energy of centred logits that this direction gives",
    ),
    Figure(
        key="mean_state_energy", name="mean, states", place="directions.mean_state_energy",
        form=percent, note="share of the energy of router inputs that their mean has",
    ),
    Figure(
        key="mean_logit_energy", name="mean, logits", place="directions.mean_logit_energy",
        form=percent, note="share of the energy of centred logits that their mean has",
    ),
    Figure(
        key="alignment", name="alignment", place="directions.alignment", form=ratio,
        note="energy of the logits over that of a random router of the same norm",
    ),
    Figure(
        key="violations", name="beyond the bound", place="pairs.violations", form=count,
        note="pairs of tokens that violate Proposition 1, in all layers",
    ),
    Figure(
        key="tightness", name="tightness", place="pairs.tightness", form=percent,
        note="median distance of logits over its bound in the row space",
    ),
    Figure(
        key="explained_row", name="overlap by row space", place="pairs.explained_row", form=percent,
        note="share of the variance of the experts that two tokens have in common which the distance of their states "
        "in the router's row space explains",
    ),
    Figure(key="explained_null", name="by null space", place="pairs.explained_null", form=percent),
    Figure(key="explained_full", name="by whole states", place="pairs.explained_full", form=percent),
    Figure(
        key="explained_logits", name="by logits", place="pairs.explained_logits", form=percent,
        note="the row space as the router weighs its directions",
    ),
    Figure(
        key="overlap_same_token", name="overlap, same token", place="pairs.overlap_same_token", form=percent,
        note="experts in common of one token in two places",
    ),
    Figure(key="overlap_any", name="overlap, any two", place="pairs.overlap_any", form=percent),
    Figure(
        key="usage_by_row", name="usage by row space", place="pairs.usage_by_row", form=ratio,
        note="correlation, over pairs of documents, of the cosine of pooled states and that of expert usage",
    ),
    Figure(key="usage_by_null", name="usage by null space", place="pairs.usage_by_null", form=ratio),
    Figure(key="usage_by_full", name="usage by whole states", place="pairs.usage_by_full", form=ratio),
    Figure(
        key="expert_control", name="expert from control", place="probes.expert_control", form=percent,
        note="accuracy of a logistic probe of what the router sees (control), of the rest (content), and of as many "
        "random directions as control has",
    ),
    Figure(key="expert_content", name="from content", place="probes.expert_content", form=percent),
    Figure(key="expert_random", name="from random", place="probes.expert_random", form=percent),
    Figure(key="expert_most_frequent", name="most frequent", place="probes.expert_most_frequent", form=percent),
    Figure(key="next_control", name="next expert from control", place="probes.next_control", form=percent),
    Figure(key="next_content", name="next from content", place="probes.next_content", form=percent),
    Figure(key="next_random", name="next from random", place="probes.next_random", form=percent),
    Figure(key="next_most_frequent", name="most frequent next", place="probes.next_most_frequent", form=percent),
    Figure(key="token_control", name="token from control", place="probes.token_control", form=percent),
    Figure(key="token_content", name="token from content", place="probes.token_content", form=percent),
    Figure(key="token_random", name="token from random", place="probes.token_random", form=percent),
    Figure(key="token_most_frequent", name="most frequent token", place="probes.token_most_frequent", form=percent),
    Figure(
        key="router_overlap", name="routers' overlap", place="steps.router_overlap", form=ratio,
        note="mean squared cosine of what the routers of neighbouring layers see, 1 where they are one",
    ),
    Figure(
        key="step_row", name="step in row space", place="steps.step_row", form=ratio,
        note="RMS step from layer to layer over the spread of states",
    ),
    Figure(key="step_null", name="step in null space", place="steps.step_null", form=ratio),
    Figure(
        key="shared_step_row", name="step in row space within blocks", place="steps.shared_step_row", form=ratio,
        note=f"the same {_SHARED}",
    ),
    Figure(
        key="shared_step_null", name="in null space within blocks", place="steps.shared_step_null", form=ratio,
    ),
    Figure(
        key="seen_overlap", name="seen overlap", place="steps.seen_overlap", form=ratio,
        note="mean squared cosine of the principal angles between the components that hold 90% of the variance of what "
        f"a layer's router sees and as many of the next layer, {_SHARED}",
    ),
    Figure(
        key="seen_overlap_null", name="seen overlap by chance", place="steps.seen_overlap_null", form=ratio,
        note="of random subspaces of the row space",
    ),
    Figure(
        key="shared_agreement", name="agreement within blocks", place="steps.agreement", form=percent,
        note=f"same expert {_SHARED}, of the tokens that geometry was measured on",
    ),
    Figure(
        key="predicted_agreement", name="predicted", place="steps.predicted_agreement", form=percent,
        note="the same where logits keep a share of themselves and each token takes the rest of another one",
    ),
    Figure(
        key="prediction_error", name="error of prediction", place="steps.prediction_error", form=percent,
        note=f"mean absolute difference of the two {_SHARED}",
    ),
    Figure(
        key="retained", name="logits retained", place="steps.retained", form=ratio,
        note=f"slope of a layer's logits on those of the one before it, {_SHARED}",
    ),
    Figure(key="shared_agreement_null", name="within blocks by chance", place="steps.agreement_null", form=percent),
)  # fmt: skip
