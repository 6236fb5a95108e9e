"""MNE's browser for a review: what it shows, and the keys that go from event to event."""

import importlib.util
import os
import sys
import warnings

import matplotlib as mpl
import mne
import numpy as np
import pandas as pd
from matplotlib.backends import BackendFilter, backend_registry

from reports.review_events import SHOWN_BAD
from utils import SettingError

SECONDS = 10.0  # shown at a time
N_CHANNELS = 40
NO_WINDOW = 'no window can be opened ({}); install requirements-review.txt, and review where there is a display'


def choose_browser() -> str:
    """Choose MNE's browser: 'qt' where it is installed, else 'matplotlib'.

    Raises
    ------
    SettingError
        There is no display, or neither can open a window.
    """
    offscreen = os.environ.get('QT_QPA_PLATFORM') == 'offscreen'
    if sys.platform == 'linux' and not {'DISPLAY', 'WAYLAND_DISPLAY'} & set(os.environ) and not offscreen:
        raise SettingError(NO_WINDOW.format('no display: neither DISPLAY nor WAYLAND_DISPLAY is set'))
    if importlib.util.find_spec('mne_qt_browser') and importlib.util.find_spec('PySide6'):
        return 'qt'
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    if mpl.get_backend().lower() not in interactive:
        raise SettingError(NO_WINDOW.format(f"matplotlib's backend {mpl.get_backend()} has no windows"))
    return 'matplotlib'


def browse(raw: mne.io.BaseRaw, events: pd.DataFrame, browser: str) -> None:
    """Show a recording until its window is closed; the annotations of `raw` are changed in place.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        From `on_timeline`, with `shown_annotations`.
    events : DataFrame
        In the order of review.
    browser : str
        From `choose_browser`.
    """
    mne.viz.set_browser_backend(browser, verbose='error')
    labels = sorted(set(raw.annotations.description) - {SHOWN_BAD})
    colors = {label: mpl.colors.to_hex(f'C{i}') for i, label in enumerate(labels)} | {SHOWN_BAD: '#888888'}
    power = raw[0][0][0]
    scale = 2 * float(np.median(power[power > 0])) if power.any() else 1e-12
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mne_qt_browser')
        figure = raw.plot(
            duration=SECONDS,
            n_channels=N_CHANNELS,
            order=np.arange(len(raw.ch_names)),
            annotation_colors=colors,
            scalings={'mag': scale, 'misc': scale},
            block=browser == 'matplotlib',
            splash=False,
            verbose='error',
        )
        if browser == 'qt':
            _go_through(figure, events)


def _go_through(figure, events):
    """Let the keys N and P go to the next and the previous event, until the window is closed."""
    from qtpy.QtGui import QKeySequence
    from qtpy.QtWidgets import QApplication, QShortcut

    position = [-1]

    def go(step):
        if len(events):
            position[0] = (position[0] + step) % len(events)
            event = events.iloc[position[0]]
            start = max(0.0, event['time'] - SECONDS / 2)
            figure.mne.plt.setXRange(start, start + SECONDS, padding=0)
            print(f'{position[0] + 1:4d} of {len(events)}: {line_of(event)}', flush=True)

    for key, step in (('N', 1), ('P', -1)):
        QShortcut(QKeySequence(key), figure, activated=lambda step=step: go(step))
    go(1)
    QApplication.instance().exec()


def line_of(event: pd.Series) -> str:
    """An event in a line of the terminal."""
    proba = '    -' if np.isnan(event['proba']) else f'{event["proba"]:.3f}'
    group = f'group {event["cluster"]}' if event['cluster'] else 'no group'
    return f'{event["time"]:10.3f} s  probability {proba}  {group}  {event["label"]}'
