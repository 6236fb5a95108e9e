"""The pictures on the page of the detections in a recording."""

import itertools
from typing import Any

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from recordings.channels import sphere_centre
from reports.event_residuals import EventResidual
from reports.foci import AROUND, Focus
from reports.recording_detections import RecordingDetections, bad_seconds
from saving_functions import BLUE, GREY, ORANGE, draw_channels

N_BARS = 60  # over a recording
# Of the groups: Okabe and Ito's, told apart by colour-blind readers.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00')
# Letter of a channel's name to the region, from the front to the back.
REGIONS = {'F': 'frontal', 'C': 'central', 'T': 'temporal', 'P': 'parietal', 'O': 'occipital'}


def plot_over_time(detections: RecordingDetections, threshold: float) -> Figure:
    """Events over the recording, a colour for each group; below, the probability of every sub-window."""
    subwindows, events = detections.subwindows, detections.events
    figure, (bars, axis) = plt.subplots(
        2, 1, figsize=(10, 4.5), sharex=True, layout='constrained', height_ratios=(1, 1.4)
    )
    left = subwindows['onset'].to_numpy()
    right = left + subwindows['duration'].to_numpy()
    edges = np.linspace(left[0], right[-1], N_BARS + 1)
    clusters = events['cluster'].clip(upper=len(COLORS) + 1)
    numbers = range(1, clusters.max() + 1) if len(events) else ()
    parts = {f'group {number}' if number <= len(COLORS) else 'other groups': number for number in numbers}
    onsets = [events.loc[clusters == number, 'onset'] for number in (*parts.values(), 0)]
    colors = [*itertools.islice([*COLORS, 'black'], len(parts)), GREY]
    bars.hist(onsets, bins=edges, stacked=True, color=colors, label=[*parts, 'in no group'])
    bars.set_ylabel(f'events per {edges[1] - edges[0]:.3g} s')
    bars.yaxis.set_major_locator(MaxNLocator(integer=True))
    bars.legend(fontsize=7, loc='upper left', bbox_to_anchor=(1, 1))
    axis.hlines(subwindows['proba'], left, right, color=BLUE)
    axis.fill_between(
        np.column_stack([left, right]).ravel(), np.repeat(subwindows['proba'], 2), color=BLUE, alpha=0.3, linewidth=0
    )
    axis.axhline(threshold, color=GREY, linestyle=':', label=f'threshold {threshold:.3f}')
    for onset, end in bad_seconds(detections.blocks):
        axis.axvspan(onset, end, color=GREY, alpha=0.3, linewidth=0)
    for bad, fill, where in ((False, 'full', ''), (True, 'none', '\nin bad segments')):
        shown = events[events['bad'] == bad]
        if len(shown) or not bad:
            label = f'{len(shown)} detections{where}'
            axis.plot(shown['onset'], shown['proba'], 'v', color=ORANGE, fillstyle=fill, label=label)
    axis.set(xlabel='time in the recording (s)', ylabel='probability', ylim=(0, 1.05), xlim=(left[0], right[-1]))
    axis.legend(fontsize=7, loc='upper left', bbox_to_anchor=(1, 1))
    return figure


def plot_events(detections: RecordingDetections, rows: pd.Index, residuals: list[EventResidual]) -> Figure:
    """Events, one below the other: signal, residual, and the fields of both.

    Parameters
    ----------
    rows : Index
        Of `detections.events`.
    residuals : list of EventResidual
        Of the same events; empty for a run that looks at none.
    """
    info = detections.blocks[0].info
    widths = (2, 1, 1.2, 1) if residuals else (2, 1)
    height = 0.8 + 2.2 * len(rows)
    # Fixed margins: to compute them takes as long as to draw.
    room = {
        'left': 0.07,
        'right': 0.96,
        'bottom': 0.5 / height,
        'top': 1 - 0.3 / height,
        'hspace': 0.35,
        'wspace': 0.25,
    }
    figure, axes = plt.subplots(
        len(rows), len(widths), figsize=(10, height), squeeze=False, width_ratios=widths, gridspec_kw=room
    )
    for number, event in enumerate(detections.events.loc[rows].itertuples()):
        draw_event(axes[number, :2], detections, event)
        if residuals:
            draw_residual(axes[number, 2:], residuals[number], info)
    for axis in axes[:, ::2].flat:
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=5)
    for axis in axes[-1, ::2]:
        axis.set_xlabel('time (s)', fontsize=8)
    axes[0, 0].legend(fontsize=7, loc='upper left')
    return figure


def draw_event(axes: np.ndarray, detections: RecordingDetections, event: Any) -> None:
    """Draw the signal around an event, a row of `detections.events`, and its field, in two axes."""
    traces, field = axes
    times, signal = around_event(detections, event)
    draw_channels(traces, times, signal)
    traces.axvline(0, color='black', linestyle=':')
    traces.set_title(title_of(event), fontsize=9)
    traces.set_ylabel('field (fT)', fontsize=8)
    draw_field(field, signal[:, np.abs(times).argmin()], detections.blocks[0].info)
    field.set_title('signal (fT)', fontsize=9)


def draw_residual(axes: np.ndarray, residual: EventResidual, info: mne.Info) -> None:
    """Draw the residual of an event and its field at its peak, in two axes."""
    traces, field = axes
    offsets, signal = residual.offsets, 1e15 * residual.residual
    peak = signal.std(axis=0).argmax()
    draw_channels(traces, offsets / info['sfreq'], signal)
    traces.axvline(offsets[peak] / info['sfreq'], color=ORANGE)
    traces.set_title('residual (fT)', fontsize=9)
    draw_field(field, signal[:, peak], info)
    field.set_title('residual at its peak (fT)', fontsize=9)


def title_of(event: Any) -> str:
    """What stands above the picture of an event, a row of `detections.events`."""
    group = f'group {event.cluster}' if event.cluster else 'in no group'
    spread = f' ± {event.uncertainty:.2f}' if np.isfinite(getattr(event, 'uncertainty', np.nan)) else ''
    bad = ', in a bad segment' if event.bad else ''
    return f'{event.onset:.3f} s, probability {event.proba:.2f}{spread}, {group}{bad}'


def around_event(detections: RecordingDetections, event: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) in s from an event, a row of `detections.events`, and the signal (274, n) in fT, within 0.4 s."""
    block = detections.blocks[event.block]
    sfreq = block.info['sfreq']
    lengths, reach = block.layout.lengths(sfreq), round(2 * AROUND * sfreq)
    end = lengths[: event.part + 1].sum()
    left, right = max(event.sample - reach, end - lengths[event.part]), min(event.sample + reach + 1, end)
    return (np.arange(left, right) - event.sample) / sfreq, 1e15 * block.meg[:, left:right].astype(np.float64)


def plot_focus(focus: Focus, info: mne.Info) -> Figure:
    """Average of a group by region with its spread, its field at the peak, and its dipole from three sides."""
    figure = plt.figure(figsize=(10, 8))
    above, below = [figure.add_subfigure(part) for part in figure.add_gridspec(2, height_ratios=(1.7, 1))]
    draw_regions(above, focus, info)
    field, *views = below.subplots(1, 4, gridspec_kw={'left': 0.04, 'right': 0.98, 'bottom': 0.2, 'wspace': 0.55})
    draw_field(field, 1e15 * focus.average[:, focus.peak], info)
    field.set_title('field at the peak (fT)', fontsize=10)
    sensors = np.array([channel['loc'][:3] for channel in info['chs']])
    sensors = 1000 * mne.transforms.apply_trans(info['dev_head_t'], sensors)
    dipole = focus.dipole
    planes = ((0, 1), 'above'), ((0, 2), 'the back'), ((1, 2), 'the right')
    for axis, (plane, side) in zip(views, planes, strict=True):
        draw_dipole(axis, sensors, 1000 * dipole.position, dipole.orientation, plane)
        axis.set_title(f'from {side}', fontsize=10)
    return figure


def draw_regions(figure: FigureBase, focus: Focus, info: mne.Info) -> None:
    """Draw the average of a group region by region, with the std over its events at the largest channel of each."""
    average, spread = 1e15 * focus.average, 1e15 * focus.spread
    times = (np.arange(average.shape[1]) - average.shape[1] // 2) / info['sfreq']
    room = {'left': 0.08, 'right': 0.98, 'bottom': 0.12, 'top': 0.94, 'hspace': 0.15, 'wspace': 0.08}
    axes = figure.subplots(2, len(REGIONS), sharex=True, sharey=True, gridspec_kw=room)
    for row, (side, side_name) in zip(axes, (('L', 'left'), ('R', 'right')), strict=True):
        for axis, (letter, name) in zip(row, REGIONS.items(), strict=True):
            channels = [i for i, channel in enumerate(info['ch_names']) if channel[1:3] == side + letter]
            largest = channels[np.abs(average[channels, focus.peak]).argmax()]
            low, high = average[largest] - spread[largest], average[largest] + spread[largest]
            draw_lines(axis, times, average[channels])
            axis.fill_between(times, low, high, color=BLUE, alpha=0.25, linewidth=0)
            axis.plot(times, average[largest], color=BLUE, linewidth=1.2)
            axis.axvline(times[focus.peak], color=ORANGE, linewidth=0.8)
            axis.set_title(f'{side_name} {name} ({info["ch_names"][largest]})', fontsize=8)
            axis.tick_params(labelsize=7)
            axis.locator_params(nbins=4)  # ticks take as long to draw as all else
        row[0].set_ylabel('field (fT)', fontsize=8)
        row[2].set_xlabel('time (s)' * (side == 'R'), fontsize=8)


def draw_lines(axis: Axes, times: np.ndarray, signal: np.ndarray) -> None:
    """Draw channels (n_channels, n_times): as one line with gaps, which is faster than a line for each."""
    lines = np.pad(signal, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
    axis.plot(np.tile(np.append(times, np.nan), len(signal)), lines, color=GREY, linewidth=0.4)


def draw_field(axis: Axes, field: np.ndarray, info: mne.Info) -> None:
    """Draw a field (274,) in fT over the helmet, with its scale, and a head that the sensors just cover."""
    positions, head = flat_helmet(info)
    limit = np.abs(field).max()
    image, _ = mne.viz.plot_topomap(
        field, positions, axes=axis, show=False, sphere=head, extrapolate='local', vlim=(-limit, limit), res=48
    )
    scale = axis.figure.colorbar(image, ax=axis, shrink=0.6, format='%.0f', ticks=(-limit, 0, limit))
    scale.ax.tick_params(labelsize=6)


def flat_helmet(info: mne.Info) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Positions (274, 2) of the sensors seen from above, as on a globe laid flat, and the circle around them.

    The distance from the middle is the angle from the top of the helmet, as in MNE's maps of sensors.
    """
    sensors = np.array([channel['loc'][:3] for channel in info['chs']])
    centre = mne.transforms.apply_trans(np.linalg.inv(info['dev_head_t']['trans']), sphere_centre(info))
    x, y, z = (sensors - centre).T
    angle = np.arccos(z / np.sqrt(x**2 + y**2 + z**2))
    flat = angle[:, None] * np.column_stack([x, y]) / np.maximum(np.hypot(x, y), 1e-12)[:, None]
    middle = (flat.min(axis=0) + flat.max(axis=0)) / 2
    return flat, (*middle, 0.0, np.linalg.norm(flat - middle, axis=1).max())


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
    axis.locator_params(nbins=4)
    across, up = ('xyz'[coordinate] for coordinate in plane)
    axis.set(xlabel=f'{across} (mm)', ylabel=f'{up} (mm)')
