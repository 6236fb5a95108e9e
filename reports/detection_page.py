"""The page of the detections in a recording."""

import html
import math

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from classification import Detections
from recordings.bad_segments import touches
from recordings.reading import Recording
from reports.dipole import AROUND, Dipole, coordinates, interpolated_channels
from reports.run_page import html_table, printable
from saving_functions import BLUE, GREY, ORANGE, draw_channels
from utils import writing

N_SHOWN = 9  # surest events on the page


# ---------------------------------------------------------------------------------------- what was found
def in_bad_segments(block: Recording, samples: np.ndarray) -> np.ndarray:
    """Which samples of a block lie in a segment marked bad."""
    samples = np.asarray(samples, dtype=np.int64)
    return touches(samples, samples + 1, block.facts.get('bad_segments', []))


def bad_seconds(blocks: list[Recording]) -> list[list[float]]:
    """Onset and end of the segments marked bad in all blocks of a recording, in s from its first sample."""
    found = []
    for block in blocks:
        sfreq = block.info['sfreq']
        for first, end in block.facts.get('bad_segments', []):
            onset, last = block.layout.to_seconds([first, end - 1], sfreq)
            found.append([onset, last + 1 / sfreq])
    return sorted(found)


def seconds_of_events(blocks: list[Recording], found: list[Detections]) -> pd.DataFrame:
    """Events of all blocks of a recording: onset (s from its first sample), proba, and bad, in a bad segment or not."""
    tables = [
        pd.DataFrame(
            {
                'onset': block.layout.to_seconds(one.events['sample'], block.info['sfreq']),
                'proba': one.events['proba'].to_numpy(),
                'bad': in_bad_segments(block, one.events['sample']),
            }
        )
        for block, one in zip(blocks, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).sort_values('onset', ignore_index=True)


def seconds_of_subwindows(blocks: list[Recording], found: list[Detections]) -> pd.DataFrame:
    """Sub-windows of all blocks of a recording: onset, duration (s), proba, pred."""
    tables = [
        pd.DataFrame(
            {
                'onset': block.layout.to_seconds(one.subwindows['onset'], block.info['sfreq']),
                'duration': (one.subwindows['end'] - one.subwindows['onset']) / block.info['sfreq'],
                'proba': one.subwindows['proba'],
                'pred': one.subwindows['pred'],
            }
        )
        for block, one in zip(blocks, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------------------------------------- the page
SPHERE = (
    'A single dipole in a sphere laid through the sensors, fitted at the peak of the average of all detections. It '
    'says where one small patch of cortex would have to be to give this field. It knows neither the shape of the head '
    'nor an MRI, takes all detections for spikes of one focus, and misleads where several regions are active at once: '
    'a hint where to look, not a localisation to operate by.'
)


def write_report(name, folder, blocks, found, made_with, source, average, n_averaged) -> None:
    """Write report.html: what was done, counts, the surest events, their average and its dipole."""
    events = seconds_of_events(blocks, found)
    info, facts, layout = blocks[0].info, blocks[0].facts, blocks[0].layout
    minutes = sum(block.facts['seconds'] for block in blocks) / 60
    summary = {
        'recording': name,
        'recorded': f'{minutes:.2f} min at {layout.sfreq:g} Hz, '
        f'{sum(len(block.layout.parts) for block in blocks)} continuous parts; {facts["system"]}',
        'interpolated channels': ', '.join(interpolated_channels(blocks)) or 'none',
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
    report = mne.Report(title=f'Detections: {printable(name)}', verbose=False)
    if made_with['warnings']:
        warnings = [html.escape(printable(warning), quote=False) for warning in made_with['warnings']]
        items = ''.join(f'<li>{warning}</li>' for warning in warnings)
        report.add_html(f'<ul>{items}</ul>', title='Warnings')
    report.add_html(html_table(pd.Series(summary).to_frame('')), title='Summary')
    add_picture(report, plot_probability(blocks, found, made_with['threshold']), 'Probability over time',
                'Of every sub-window; triangles are detections. Segments marked bad are shaded, detections in them '
                'hollow.')  # fmt: skip
    if len(events):
        add_picture(report, plot_surest(blocks, found), 'Surest events',
                    'All channels around the detections of highest probability, and their field power.')  # fmt: skip
    else:
        report.add_html('<p>No sub-window reaches the threshold.</p>', title='Surest events')
    if source:
        x, y, z = 1000 * source.position
        fit = {
            'events averaged': n_averaged,
            'position': f'x {x:.1f}, y {y:.1f}, z {z:.1f} mm',
            'coordinates': coordinates(info),
            'orientation': ', '.join(
                f'{axis} {part:.2f}' for axis, part in zip('xyz', source.orientation, strict=True)
            ),
            'moment': f'{1e9 * source.moment:.1f} nA m',
            'goodness of fit': f"{source.goodness:.1%} of the field's power"
            + (': low, one dipole does not describe this field' if source.goodness < 0.8 else ''),
        }
        add_picture(
            report, plot_source(source, average, info), 'Average of the events and its dipole', html.escape(SPHERE)
        )
        report.add_html(html_table(pd.Series(fit).to_frame('')), title='Dipole')
    settings = pd.Series(made_with['settings'], dtype=object).map(repr)
    report.add_html(html_table(settings.to_frame('')), title='Settings of preprocessing and windows')
    report.add_html(f'<pre>{html.escape(printable(made_with["command"]))}</pre>', title='Command')
    with writing(folder / 'report.html') as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def add_picture(report: mne.Report, figure: Figure, title: str, caption: str) -> None:
    """Put a figure on the page and close it."""
    report.add_figure(figure, title=title, caption=caption, image_format='png')
    plt.close(figure)


def plot_probability(blocks: list[Recording], found: list[Detections], threshold: float) -> Figure:
    """Probability of every sub-window over the recording, threshold and detections."""
    subwindows, events = seconds_of_subwindows(blocks, found), seconds_of_events(blocks, found)
    figure, axis = plt.subplots(figsize=(10, 3), layout='constrained')
    left = subwindows['onset'].to_numpy()
    right = left + subwindows['duration'].to_numpy()
    axis.hlines(subwindows['proba'], left, right, color=BLUE)
    axis.fill_between(
        np.column_stack([left, right]).ravel(), np.repeat(subwindows['proba'], 2), color=BLUE, alpha=0.3, linewidth=0
    )
    axis.axhline(threshold, color=GREY, linestyle=':', label=f'threshold {threshold:.3f}')
    for onset, end in bad_seconds(blocks):
        axis.axvspan(onset, end, color=GREY, alpha=0.3, linewidth=0)
    for bad, fill, where in ((False, 'full', ''), (True, 'none', ' in bad segments')):
        shown = events[events['bad'] == bad]
        if len(shown) or not bad:
            label = f'{len(shown)} detections{where}'
            axis.plot(shown['onset'], shown['proba'], 'v', color=ORANGE, fillstyle=fill, label=label)
    axis.set(xlabel='time in the recording (s)', ylabel='probability', ylim=(0, 1.05), xlim=(left[0], right[-1]))
    axis.legend(loc='upper right')
    return figure


def plot_surest(blocks: list[Recording], found: list[Detections]) -> Figure:
    """All channels and the field power around the surest events."""
    sfreq = blocks[0].info['sfreq']
    reach = round(2 * AROUND * sfreq)
    shown = []
    for block, one in zip(blocks, found, strict=True):
        ends = np.cumsum(block.layout.lengths(sfreq))
        for event in one.events.nlargest(N_SHOWN, 'proba').itertuples():
            start = ends[event.part] - block.layout.lengths(sfreq)[event.part]
            first, last = max(event.sample - reach, start), min(event.sample + reach + 1, ends[event.part])
            [seconds] = block.layout.to_seconds([event.sample], sfreq)
            times = (np.arange(first, last) - event.sample) / sfreq
            [bad] = in_bad_segments(block, [event.sample])
            title = f'{seconds:.3f} s, probability {event.proba:.2f}{", in a bad segment" if bad else ""}'
            shown.append((event.proba, title, times, 1e15 * block.meg[:, first:last]))
    shown = sorted(shown, key=lambda one: -one[0])[:N_SHOWN]
    n_columns = min(3, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(3.6 * n_columns, 0.4 + 2.4 * n_rows), squeeze=False, layout='constrained'
    )
    for axis, (_, title, times, signal) in zip(axes.flat, shown, strict=False):
        draw_channels(axis, times, signal)
        axis.axvline(0, color='black', linestyle=':')
        axis.set_title(title, fontsize=10)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel('field (fT)')
    for axis in axes[-1]:
        axis.set_xlabel('time (s)')
    axes[0, 0].legend(fontsize=7, loc='upper left')
    return figure


def plot_source(source: Dipole, average: np.ndarray, info: mne.Info) -> Figure:
    """Average of the events, its field at the peak, and the dipole among the sensors from three sides."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.5), layout='constrained', gridspec_kw={'width_ratios': (1, 1, 1)})
    times = (np.arange(average.shape[1]) - average.shape[1] // 2) / info['sfreq']
    traces, field, words = axes[0]
    draw_channels(traces, times, 1e15 * average)
    traces.axvline(times[source.sample], color=ORANGE, label='peak')
    traces.set(xlabel='time (s)', ylabel='field (fT)', title='average')
    traces.legend(fontsize=7, loc='upper left')
    image, _ = mne.viz.plot_topomap(1e15 * source.topography, info, axes=field, show=False)
    field.set_title('at the peak (fT)')
    figure.colorbar(image, ax=field, shrink=0.7)
    words.set_axis_off()
    x, y, z = 1000 * source.position
    words.text(
        0, 0.5, f'x {x:.0f} mm (right)\ny {y:.0f} mm (front)\nz {z:.0f} mm (up)\n\n'
        f'moment {1e9 * source.moment:.0f} nA m\ngoodness of fit {source.goodness:.0%}', va='center', fontsize=12,
    )  # fmt: skip
    sensors = np.array([ch['loc'][:3] for ch in info['chs']])
    sensors = 1000 * mne.transforms.apply_trans(info['dev_head_t'], sensors)
    for axis, (across, up), side in zip(
        axes[1], ((0, 1), (0, 2), (1, 2)), ('above', 'the back', 'the right'), strict=True
    ):
        axis.plot(*sensors[:, [across, up]].T, '.', color=GREY, markersize=3)
        place, arrow = 1000 * source.position[[across, up]], 30 * source.orientation[[across, up]]
        axis.plot(*place, 'o', color=ORANGE)
        axis.annotate('', place + arrow, place, arrowprops={'color': ORANGE, 'width': 2, 'headwidth': 8})
        axis.set_aspect('equal')
        axis.set(xlabel=f'{"xyz"[across]} (mm)', ylabel=f'{"xyz"[up]} (mm)', title=f'from {side}')
    return figure
