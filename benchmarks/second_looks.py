"""The second look on a cohort, as main_train.py takes it."""

import numpy as np
import torch
from cohorts import Cohort

from classifiers.features import fingerprints
from classifiers.second_look import Recordings, fit_second_look, second_look


def looked_again(scores: dict, cohort: Cohort, residuals: dict, filters: np.ndarray) -> dict:
    """Scores of validation and test that know what recurs in a block; fitted on the annotations of validation.

    Parameters
    ----------
    scores : dict of arrays (n,)
        Of a detector, between 0 and 1, by part.
    residuals : dict of arrays (n_windows, 274, n_subwindows, n_masked)
        From `quality.residuals_of` or `quality.as_residuals`.
    filters : array (n_components, 274)
        From `quality.filters_of`, of the same.
    """
    recordings = {}
    for name in scores:
        part = getattr(cohort, name)
        arrays = map(torch.from_numpy, (part.windows, residuals[name], filters))
        timing = part.places['timing'].to_numpy() / cohort.sub.subwindow_length
        alike = fingerprints(*arrays, cohort.sub, cohort.margin).numpy()
        recordings[name] = Recordings(alike, part.block, timing, np.ones(len(timing), dtype=bool))
    look = fit_second_look(scores['validation'], recordings['validation'], cohort.validation.annotated)
    return {name: second_look(look, scores[name], recordings[name]) for name in scores}
