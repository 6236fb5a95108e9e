"""Correct the detections in a recording in MNE's browser, or say which recordings are worth an expert's time.

    python review.py REC [name=value ...]
    python review.py next FOLDER [name=value ...]

Reads   REC, a recording; and in <recording>_detections/, next to it or in the folder `output`, what detect.py or an
        earlier review wrote. At the first review, the markers of the recording itself that spike_labels names as well.
        Without detections, the review begins with these markers alone.
Shows   the band-passed recording with the field power on top, channels by region, and its events in a colour for each
        label and group. N and P go to the next and previous event, in the order review_order. In annotation mode (key
        A) events are deleted (right click), added (drag) and renamed; a label that begins with BAD marks a bad segment.
Writes  when the window is closed, in the same folder
        <recording>-annot.fif   the corrected events; the file before is kept
        MarkerFile.mrk          CTF recordings: the same events; the file before is kept
        review_log.csv          who has kept, renamed, deleted and added which event, and when
        and prints the command that reads the corrections into the patient's data_raw file.
next    ranks the recordings below FOLDER that have detections, and the events in them that an expert should look at
        first, by the doubt of the run and by its differences from the markers: FOLDER/review_next.csv
"""

from pathlib import Path

from reports.review_browser import browse, choose_browser, line_of
from reports.review_events import corrected_events, on_timeline, order_of_review, shown_annotations
from reports.review_files import ask_reviewer, command_of_way_back, open_review, save_review
from reports.review_ranking import rank_events, write_ranking
from runs.settings import read_command
from utils import SettingError, run_script

NEXT = ('next', '--next')
READING = ('sfreq', 'high_pass', 'low_pass', 'notch', 'trials', 'bad_channels')


def main(words: list[str]) -> None:
    """Review a recording, or rank recordings.

    Raises
    ------
    SettingError
        The command line is not understood, or no window can be opened.
    DataError
        The recording or its detections cannot be used.
    """
    positional, settings = read_command(words, n_positional=2)
    patterns = settings.spike_labels, settings.spike_labels_exclude
    if positional[:1] == [NEXT[0]] or positional[:1] == [NEXT[1]]:
        folder = Path(positional[1] if len(positional) == 2 else '.')
        write_ranking(folder / 'review_next.csv', rank_events(folder, patterns, settings.tolerance))
        return
    if len(positional) != 1:
        raise SettingError('usage: python review.py REC [name=value ...], or python review.py next FOLDER')
    browser = choose_browser()
    reading = {name: getattr(settings, name) for name in READING}
    review = open_review(Path(positional[0]), settings.output, reading, patterns, settings.tolerance)
    reviewer = settings.reviewer or ask_reviewer()
    ordered = order_of_review(review.events, settings.review_order, review.threshold)
    print(*map(line_of, (event for _, event in ordered.iterrows())), sep='\n')
    raw = on_timeline(review.block)
    raw.set_annotations(shown_annotations(review.events, review.block))
    browse(raw, ordered, browser)
    corrected, bad = corrected_events(review.events, raw.annotations, raw)
    save_review(review, corrected, bad, reviewer=reviewer, into_recording=settings.markers_into_recording)
    further = [word for word in words if word.startswith('path_raw_data=')]
    print('read it back with:')
    print(command_of_way_back(review, corrected, patterns, settings.path_raw_data, further))


if __name__ == '__main__':
    run_script(main, __doc__)
