"""Review a recording under a virtual display as a person would: look, delete an event, add one, close the window.

    xvfb-run python tests/reports/review_robot.py FOLDER WORD [WORD ...]

Reads   words of review.py
Writes  FOLDER/shown.png, moved.png and corrected.png: the window at first, after N, and after the corrections
"""

import sys
from pathlib import Path

import numpy as np
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import review  # noqa: E402
from reports import review_browser  # noqa: E402


def any_region(figure, first, last):
    """Whether an annotation lies between two times, in s."""
    return any(onset < last and first < end for onset, end in (region.getRegion() for region in figure.mne.regions))


def act(figure, folder):
    """Do what a person does, by keys and mouse."""
    QTest.qWait(1500)
    figure.grab().save(str(folder / 'shown.png'))
    QTest.keyClick(figure, Qt.Key_N)
    QTest.qWait(500)
    figure.grab().save(str(folder / 'moved.png'))
    figure.setFocus()
    QTest.keyClick(figure, Qt.Key_A)
    QTest.qWait(500)
    [low, high] = figure.mne.viewbox.viewRange()[0]
    visible = [region for region in figure.mne.regions if low < region.getRegion()[0] < high]
    figure._fake_click((sum(visible[0].getRegion()) / 2, 3), button=2, xform='data')
    QTest.qWait(300)
    start = next(time for time in np.arange(low + 0.2, high - 0.6, 0.1) if not any_region(figure, time, time + 0.3))
    figure._fake_click((start, 3), add_points=[(start + 0.3, 3)], xform='data', kind='drag', button=1)
    QTest.qWait(300)
    figure.grab().save(str(folder / 'corrected.png'))
    figure.close()


def main(folder, *words):
    """Call review.py with a robot at its window."""
    original = review_browser._go_through

    def with_robot(figure, events):
        QTimer.singleShot(100, lambda: act(figure, Path(folder)))
        original(figure, events)

    review_browser._go_through = with_robot
    review.main(list(words))


if __name__ == '__main__':
    main(*sys.argv[1:])
