"""The page of the detections in a recording."""

import html
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from recordings.reading import Recording
from reports.detection_pictures import plot_events, plot_focus, plot_over_time
from reports.dipole import coordinates, interpolated_channels
from reports.event_residuals import EventResidual
from reports.foci import Focus
from reports.recording_detections import RecordingDetections
from reports.run_page import html_table, printable
from utils import writing

N_GROUPS = 6  # largest groups with a picture
N_EVENTS = 3  # with a picture: of the surest, of the most doubtful, and of those in bad segments
# Printing: A4, everything unfolded, the title once, no picture across two sheets or away from its heading.
CSS = """
.table th, .table td { text-align: left; }
@page { size: A4; margin: 12mm; }
@media print {
  footer, #toc, .badge, .btn { display: none !important; }
  nav.navbar { position: static !important; }
  body { padding: 0 !important; }
  #container { margin: 0 !important; padding: 0 !important; }
  .table { font-size: 80%; }
  #container > .row > div { width: 100% !important; max-width: 100% !important; margin: 0 !important; }
  .collapse { display: block !important; height: auto !important; }
  .accordion-item, .alert { break-inside: avoid; }
  .accordion-header { break-after: avoid; }
  img { max-width: 100% !important; max-height: 240mm; }
  pre { white-space: pre-wrap; }
}
"""

SPHERE = (
    'A single dipole in a sphere laid through the sensors, fitted on the rise of the average of the group, at 80 % of '
    'its peak, which its moment and goodness belong to. It says where one small patch of cortex would have to be to '
    'give this field. It knows neither the shape of the head nor an MRI, and misleads where several regions are active '
    'at once: a hint where to look, not a localisation to operate by. The volume of confidence (95 %) knows no fault '
    'but the background of the recording.'
)

RESIDUAL = (
    'The residual is what the autoencoder does not predict from the signal around: the detector looks at its field and '
    'course.'
)


def write_report(
    detections: RecordingDetections,
    folder: Path,
    made_with: dict,
    foci: list[Focus],
    residuals_of: Callable[[Recording, np.ndarray], list[EventResidual]],
) -> None:
    """Write report.html: warnings, counts, events over time, groups with their dipoles, and single events.

    Parameters
    ----------
    detections : RecordingDetections
    folder : path
        The folder of the detections.
    made_with : dict
        What detections.json says of the run.
    foci : list of Focus
        The groups of events, from `find_foci`.
    residuals_of : function
        From a block and samples of it to the residuals there, see `event_residuals`.
    """
    report = mne.Report(title=f'Detections: {printable(detections.name)}', verbose=False)
    report.add_custom_css(CSS)
    if made_with['warnings']:
        warnings = [html.escape(printable(warning), quote=False) for warning in made_with['warnings']]
        items = ''.join(f'<li>{warning}</li>' for warning in warnings)
        report.add_html(f'<div class="alert alert-warning"><ul>{items}</ul></div>', title='Warnings')
    report.add_html(html_table(pd.Series(summarize(detections, made_with)).to_frame('')), title='Summary')
    add_picture(report, plot_over_time(detections, made_with['threshold']), 'Events over time',
                'Above, the events; below, the probability of every sub-window, with the detections as triangles. '
                'Segments marked bad are shaded, detections in them hollow.')  # fmt: skip
    if len(detections.events):
        add_groups(report, detections, foci)
        add_events(report, detections, residuals_of)
    else:
        report.add_html('<p>No sub-window reaches the threshold.</p>', title='Groups of events')
    settings = pd.Series(made_with['settings'], dtype=object).map(repr)
    report.add_html(html_table(settings.to_frame('')), title='Settings of preprocessing and windows')
    report.add_html(f'<pre>{html.escape(printable(made_with["command"]))}</pre>', title='Command')
    with writing(folder / 'report.html') as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def add_events(
    report: mne.Report,
    detections: RecordingDetections,
    residuals_of: Callable[[Recording, np.ndarray], list[EventResidual]],
) -> None:
    """Put single events on the page: the surest, the most doubtful, and those in segments marked bad."""
    events = detections.events
    surest = events['proba'].nlargest(N_EVENTS).index
    doubtful = events['proba'].drop(surest).nsmallest(N_EVENTS).index
    bad = events.loc[events['bad'], 'proba'].drop([*surest, *doubtful], errors='ignore').nlargest(N_EVENTS).index
    shown = {'Surest events': surest, 'Most doubtful events': doubtful, 'Events in bad segments': bad}
    for title, rows in shown.items():
        if len(rows):
            by_event = [
                residuals_of(detections.blocks[e.block], np.array([e.sample])) for e in events.loc[rows].itertuples()
            ]
            residuals = [residual for residuals_of_event in by_event for residual in residuals_of_event]
            words = 'All channels and the field power; the field at the event. ' + RESIDUAL * bool(residuals)
            add_picture(report, plot_events(detections, rows, residuals), title, words)


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


def add_groups(report: mne.Report, detections: RecordingDetections, foci: list[Focus]) -> None:
    """Put the groups of events on the page: a table, and a picture of each of the largest."""
    if not foci:
        report.add_html('<p>No two events are alike.</p>', title='Groups of events')
        return
    info = detections.blocks[0].info
    table = pd.DataFrame([describe_group(focus, detections.minutes) for focus in foci]).set_index('group')
    table = table.rename_axis(index=None, columns='group')
    n_alone = (detections.events['cluster'] == 0).sum()
    words = f'Events of like field and course. {n_alone} events are like no other. Positions: {coordinates(info)}. '
    report.add_html(f'<p>{html.escape(words + SPHERE)}</p>{html_table(table)}', title='Groups of events')
    for focus in foci[:N_GROUPS]:
        add_picture(
            report,
            plot_focus(focus, info),
            f'Group {focus.number}: {focus.n_events} events',
            'Average by region, with the standard deviation over the events around the largest channel; the field at '
            'the peak; the dipole among the sensors from three sides.',
        )


def describe_group(focus: Focus, minutes: float) -> dict[str, str | int]:
    """The row of a group in the page's table."""
    dipole = focus.dipole
    x, y, z = 1000 * dipole.position
    low = ' (low: one dipole does not describe it)' if dipole.goodness < 0.8 else ''
    return {
        'group': focus.number,
        'events': focus.n_events,
        'per minute': f'{focus.n_events / minutes:.2f}',
        'mean probability': f'{focus.proba:.2f}',
        'dipole x, y, z (mm)': f'{x:.0f}, {y:.0f}, {z:.0f}',
        'moment (nA m)': f'{1e9 * dipole.moment:.0f}',
        'goodness of fit': f'{dipole.goodness:.0%}{low}',
        'confidence volume (mm³)': f'{1e9 * dipole.confidence:.3g}',
    }


def add_picture(report: mne.Report, figure: Figure, title: str, caption: str) -> None:
    """Put a figure on the page and close it."""
    report.add_figure(figure, title=title, caption=caption, image_format='png')
    plt.close(figure)
