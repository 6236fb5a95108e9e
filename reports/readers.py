"""Table and picture of the agreement between readers, and of a run with them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from evaluation.readers import FIGURES
from saving_functions import BLUE, ORANGE, save_figure, save_table


def save_agreement(folder: Path, result: pd.DataFrame, patients: pd.DataFrame) -> None:
    """Write agreement.csv, patients.csv and agreement.png into a folder.

    Parameters
    ----------
    folder : Path
    result, patients : DataFrame
        From `evaluation.readers.pooled` and `agreement`, with the names of the readings, `found` and `against`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_table(folder / 'agreement.csv', result)
    save_table(folder / 'patients.csv', patients)
    plot_agreement(folder / 'agreement.png', result)


def plot_agreement(path: Path, result: pd.DataFrame) -> None:
    """Draw every figure with its interval, a row per pair of readings; the first two rows are of the two readers."""
    pairs = result[['found', 'against']].drop_duplicates()
    figure, axes = plt.subplots(
        1, len(FIGURES), figsize=(2.6 * len(FIGURES), 1.2 + 0.45 * len(pairs)), sharey=True, layout='constrained'
    )
    rows = np.arange(len(pairs))
    for axis, name in zip(axes, FIGURES, strict=True):
        values = result.loc[result['figure'] == name, ['value', 'low', 'high']].to_numpy()
        for row, (value, low, high) in zip(rows, values, strict=True):
            colour = BLUE if row < 2 else ORANGE
            axis.plot([low, high], [row, row], color=colour)
            axis.plot(value, row, 'o', color=colour)
        axis.set_xlabel(name)
        axis.set_xlim(*((0, 1.02) if name not in ('false alarms/min', FIGURES[-1]) else (0, None)))
    axes[0].set_yticks(rows, pairs['found'] + ' against ' + pairs['against'])
    axes[0].invert_yaxis()
    figure.suptitle('Readers (blue) and the detector (orange), with 95 % intervals over patients', fontsize='medium')
    save_figure(figure, path)


def print_agreement(result: pd.DataFrame, patients: pd.DataFrame) -> None:
    """Print the pooled table, a line per pair."""
    for (candidate, reference), table in result.groupby(['found', 'against'], sort=False):
        of_pair = patients[(patients['found'] == candidate) & (patients['against'] == reference)]
        counts = of_pair[['spikes', 'events', 'hits', 'minutes']].sum()
        print(f'\n{candidate} against {reference}: {counts["hits"]:.0f} of {counts["spikes"]:.0f} spikes found by '
              f'{counts["events"]:.0f} marks in {counts["minutes"]:.1f} min, {len(of_pair)} patients')  # fmt: skip
        for name, value, low, high in table[['figure', 'value', 'low', 'high']].itertuples(index=False):
            print(f'  {name:22} {value:.3f}  [{low:.3f}, {high:.3f}]')
