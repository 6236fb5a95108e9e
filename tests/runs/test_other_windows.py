"""Windows that the group's own scripts have made: without settings beside them, with pulses of any length."""

import pickle

import numpy as np
import pytest

from recordings.pickles import read_pickle
from runs.network_settings import subwindow_shape_of
from runs.settings import read_command
from runs.split_data import split_data
from runs.window_sets import open_window_sets
from timeseries_dataset import PARTS

SPIKES = ((300,), (400, 650))  # of every patient


@pytest.fixture
def other_windows(recordings, write_raw, make_windows, paths, tmp_path):
    """Windows of three patients whose spikes are marked by `pulse` samples, the spike in the middle; settings of a run
    on them."""

    def make(pulse):
        for number in (1, 2, 3):
            write_raw(recordings(events=SPIKES, seed=number), number)
        make_windows(tmp_path / 'raw', tmp_path)
        for path in tmp_path.glob('windows_*/*_settings.json'):
            path.unlink()
        for path in tmp_path.glob('windows_clf/*_labels_t.pkl'):
            blocks, timing = (
                read_pickle(path.with_name(path.name.replace('labels_t', name))) for name in ('blocks', 'timing')
            )
            labels_t = np.zeros((len(blocks), 300), dtype=np.uint8)
            for row, block, start in zip(labels_t, blocks, np.asarray(timing, dtype=int) - 150, strict=True):
                for spike in SPIKES[block]:
                    first = spike - pulse // 2 - start
                    row[max(first, 0) : max(first + pulse, 0)] = 1
            path.write_bytes(pickle.dumps(labels_t))
        _, settings = read_command(paths)
        return settings

    return make


@pytest.mark.parametrize('pulse', [4, 6, 17])
def test_the_length_of_the_pulses_is_taken_from_the_windows(other_windows, capsys, pulse):
    settings = other_windows(pulse)
    [data] = split_data(open_window_sets(settings), 'auto', None, settings, subwindow_shape_of(settings))
    for part in PARTS:
        assert data.spikes[part]['sample'].tolist() == [300, 400, 650]
    output = capsys.readouterr().out
    if pulse == 17:
        assert 'pulse_width' not in output
    else:
        assert f'but those of patients 1, 2, 3 have {pulse}, which is used' in output
