"""The page of the detections in a recording."""

import html
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.dipole import AROUND, DipoleFit, coordinates, interpolated_channels
from reports.recording_detections import RecordingDetections, bad_seconds, in_bad_segments
from reports.run_page import html_table, printable
from saving_functions import BLUE, GREY, ORANGE, draw_channels
from utils import writing

N_SHOWN = 9  # surest events on the page

SPHERE = (
    'A single dipole in a sphere laid through the sensors, fitted at the peak of the average of all detections. It '
    'says where one small patch of cortex would have to be to give this field. It knows neither the shape of the head '
    'nor an MRI, takes all detections for spikes of one focus, and misleads where several regions are active at once: '
    'a hint where to look, not a localisation to operate by.'
)


def write_report(detections: RecordingDetections, folder: Path, made_with: dict, fit: DipoleFit | None) -> None:
    """Write report.html: what was done, counts, the surest events, their average and its dipole.

    Parameters
    ----------
    detections : RecordingDetections
    folder : path
        The folder of the detections.
    made_with : dict
        What detections.json says of the run.
    fit : DipoleFit or None
        None without any event.
    """
    report = mne.Report(title=f'Detections: {printable(detections.name)}', verbose=False)
    if made_with['warnings']:
        warnings = [html.escape(printable(warning), quote=False) for warning in made_with['warnings']]
        items = ''.join(f'<li>{warning}</li>' for warning in warnings)
        report.add_html(f'<ul>{items}</ul>', title='Warnings')
    report.add_html(html_table(pd.Series(summarize(detections, made_with)).to_frame('')), title='Summary')
    add_picture(report, plot_probability(detections, made_with['threshold']), 'Probability over time',
                'Of every sub-window; triangles are detections. Segments marked bad are shaded, detections in them '
                'hollow.')  # fmt: skip
    if len(detections.events):
        add_picture(report, plot_surest(detections), 'Surest events',
                    'All channels around the detections of highest probability, and their field power.')  # fmt: skip
    else:
        report.add_html('<p>No sub-window reaches the threshold.</p>', title='Surest events')
    if fit:
        info = detections.blocks[0].info
        add_picture(report, plot_dipole(fit, info), 'Average of the events and its dipole', html.escape(SPHERE))
        report.add_html(html_table(pd.Series(describe_dipole(fit, info)).to_frame('')), title='Dipole')
    settings = pd.Series(made_with['settings'], dtype=object).map(repr)
    report.add_html(html_table(settings.to_frame('')), title='Settings of preprocessing and windows')
    report.add_html(f'<pre>{html.escape(printable(made_with["command"]))}</pre>', title='Command')
    with writing(folder / 'report.html') as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def summarize(detections: RecordingDetections, made_with: dict) -> dict[str, str]:
    """The rows of the page's summary."""
    events, minutes, block = detections.events, detections.minutes, detections.blocks[0]
    return {
        'recording': detections.name,
        'recorded': f'{minutes:.2f} min at {block.layout.sfreq:g} Hz, {detections.n_parts} continuous parts; '
        f'{block.facts["system"]}',
        'interpolated channels': ', '.join(interpolated_channels(detections.blocks)) or 'none',
        'run': made_with['run'],
        'networks': f'{made_with["model"]}, classifier {made_with["classifier"]}',
        'threshold': f'{made_with["threshold"]:.4f}: {made_with["policy"]}',
        'detections': f'{len(events)}, {len(events) / minutes:.2f} per minute; in segments marked bad: '
        f'{events["bad"].sum()}',
        'time of a detection': 'the peak of the field power, in seconds from the first sample',
        'coverage': 'every sample; at the ends of continuous parts, windows are completed by mirror images; no window '
        'shows both sides of a gap',
        'what it is': "candidates found by a machine: each needs an expert's eye",
    }


def describe_dipole(fit: DipoleFit, info: mne.Info) -> dict[str, str | int]:
    """The rows of the page's table of the dipole."""
    dipole = fit.dipole
    x, y, z = 1000 * dipole.position
    orientation = [f'{axis} {part:.2f}' for axis, part in zip('xyz', dipole.orientation, strict=True)]
    return {
        'events averaged': fit.n_events,
        'position': f'x {x:.1f}, y {y:.1f}, z {z:.1f} mm',
        'coordinates': coordinates(info),
        'orientation': ', '.join(orientation),
        'moment': f'{1e9 * dipole.moment:.1f} nA m',
        'goodness of fit': f"{dipole.goodness:.1%} of the field's power"
        + (': low, one dipole does not describe this field' if dipole.goodness < 0.8 else ''),
    }


def add_picture(report: mne.Report, figure: Figure, title: str, caption: str) -> None:
    """Put a figure on the page and close it."""
    report.add_figure(figure, title=title, caption=caption, image_format='png')
    plt.close(figure)


# ------------------------------------------------------------------------------------------ the pictures
def plot_probability(detections: RecordingDetections, threshold: float) -> Figure:
    """Probability of every sub-window over the recording, threshold and detections."""
    subwindows, events = detections.subwindows, detections.events
    figure, axis = plt.subplots(figsize=(10, 3), layout='constrained')
    left = subwindows['onset'].to_numpy()
    right = left + subwindows['duration'].to_numpy()
    axis.hlines(subwindows['proba'], left, right, color=BLUE)
    axis.fill_between(
        np.column_stack([left, right]).ravel(), np.repeat(subwindows['proba'], 2), color=BLUE, alpha=0.3, linewidth=0
    )
    axis.axhline(threshold, color=GREY, linestyle=':', label=f'threshold {threshold:.3f}')
    for onset, end in bad_seconds(detections.blocks):
        axis.axvspan(onset, end, color=GREY, alpha=0.3, linewidth=0)
    for bad, fill, where in ((False, 'full', ''), (True, 'none', ' in bad segments')):
        shown = events[events['bad'] == bad]
        if len(shown) or not bad:
            label = f'{len(shown)} detections{where}'
            axis.plot(shown['onset'], shown['proba'], 'v', color=ORANGE, fillstyle=fill, label=label)
    axis.set(xlabel='time in the recording (s)', ylabel='probability', ylim=(0, 1.05), xlim=(left[0], right[-1]))
    axis.legend(loc='upper right')
    return figure


class EventSignal(NamedTuple):
    """The signal around an event.

    Attributes
    ----------
    proba : float
    title : str
    times : array (n_samples,)
        In s from the event.
    signal : array (274, n_samples)
        In fT.
    """

    proba: float
    title: str
    times: np.ndarray
    signal: np.ndarray


def surest_events(detections: RecordingDetections) -> list[EventSignal]:
    """The `N_SHOWN` events of highest probability, or all of them, the highest probability at the front."""
    sfreq = detections.blocks[0].info['sfreq']
    reach = round(2 * AROUND * sfreq)
    surest = []
    for block, (_, events) in zip(detections.blocks, detections.by_block, strict=True):
        lengths = block.layout.lengths(sfreq)
        ends = np.cumsum(lengths)
        for event in events.nlargest(N_SHOWN, 'proba').itertuples():
            end = ends[event.part]
            left, right = max(event.sample - reach, end - lengths[event.part]), min(event.sample + reach + 1, end)
            [seconds] = block.layout.to_seconds(np.array([event.sample]), sfreq)
            [bad] = in_bad_segments(block, np.array([event.sample]))
            spread = f' ± {event.uncertainty:.2f}' if np.isfinite(getattr(event, 'uncertainty', np.nan)) else ''
            title = f'{seconds:.3f} s, probability {event.proba:.2f}{spread}{", in a bad segment" if bad else ""}'
            times = (np.arange(left, right) - event.sample) / sfreq
            surest.append(EventSignal(event.proba, title, times, 1e15 * block.meg[:, left:right]))
    return sorted(surest, key=lambda event: -event.proba)[:N_SHOWN]


def plot_surest(detections: RecordingDetections) -> Figure:
    """All channels and the field power around the surest events."""
    shown = surest_events(detections)
    n_columns = min(3, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(3.6 * n_columns, 0.4 + 2.4 * n_rows), squeeze=False, layout='constrained'
    )
    for axis, event in zip(axes.flat, shown, strict=False):
        draw_channels(axis, event.times, event.signal)
        axis.axvline(0, color='black', linestyle=':')
        axis.set_title(event.title, fontsize=10)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel('field (fT)')
    for axis in axes[-1]:
        axis.set_xlabel('time (s)')
    axes[0, 0].legend(fontsize=7, loc='upper left')
    return figure


def plot_dipole(fit: DipoleFit, info: mne.Info) -> Figure:
    """Average of the events, its field at the peak, and the dipole among the sensors from three sides."""
    dipole, average = fit.dipole, fit.average
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.5), layout='constrained', gridspec_kw={'width_ratios': (1, 1, 1)})
    times = (np.arange(average.shape[1]) - average.shape[1] // 2) / info['sfreq']
    traces, field, words = axes[0]
    draw_channels(traces, times, 1e15 * average)
    traces.axvline(times[dipole.sample], color=ORANGE, label='peak')
    traces.set(xlabel='time (s)', ylabel='field (fT)', title='average')
    traces.legend(fontsize=7, loc='upper left')
    image, _ = mne.viz.plot_topomap(1e15 * dipole.topography, info, axes=field, show=False)
    field.set_title('at the peak (fT)')
    figure.colorbar(image, ax=field, shrink=0.7)
    words.set_axis_off()
    x, y, z = 1000 * dipole.position
    words.text(
        0, 0.5, f'x {x:.0f} mm (right)\ny {y:.0f} mm (front)\nz {z:.0f} mm (up)\n\n'
        f'moment {1e9 * dipole.moment:.0f} nA m\ngoodness of fit {dipole.goodness:.0%}', va='center', fontsize=12,
    )  # fmt: skip
    sensors = np.array([channel['loc'][:3] for channel in info['chs']])
    sensors = 1000 * mne.transforms.apply_trans(info['dev_head_t'], sensors)
    views = ((0, 1), 'above'), ((0, 2), 'the back'), ((1, 2), 'the right')
    for axis, (plane, side) in zip(axes[1], views, strict=True):
        draw_dipole(axis, sensors, 1000 * dipole.position, dipole.orientation, plane)
        axis.set_title(f'from {side}')
    return figure


def draw_dipole(
    axis: Axes, sensors: np.ndarray, position: np.ndarray, orientation: np.ndarray, plane: tuple[int, int]
) -> None:
    """Draw the dipole among the sensors in a plane.

    Parameters
    ----------
    sensors : array (274, 3)
        In mm, like `position`.
    position, orientation : array (3,)
        Of the dipole.
    plane : (int, int)
        The coordinates across and up: 0, 1, 2 for x, y, z.
    """
    columns = list(plane)
    axis.plot(*sensors[:, columns].T, '.', color=GREY, markersize=3)
    foot, arrow = position[columns], 30 * orientation[columns]
    axis.plot(*foot, 'o', color=ORANGE)
    axis.annotate('', tuple(foot + arrow), tuple(foot), arrowprops={'color': ORANGE, 'width': 2, 'headwidth': 8})
    axis.set_aspect('equal')
    across, up = ('xyz'[coordinate] for coordinate in plane)
    axis.set(xlabel=f'{across} (mm)', ylabel=f'{up} (mm)')
