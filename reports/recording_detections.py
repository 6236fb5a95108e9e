"""The detections in a recording: those of its blocks together, in seconds of the recording."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from classification import Detections
from recordings.bad_segments import touches
from recordings.reading import Recording


class RecordingDetections(NamedTuple):
    """The detections in a recording, or in a block of a data_raw file.

    Attributes
    ----------
    name : str
        By which messages and pages call the recording.
    blocks : list of Recording
    by_block : list of Detections
        One per block, in samples of the block.
    events : DataFrame
        From `seconds_of_events`; with the column cluster from `foci.find_foci`.
    subwindows : DataFrame
        From `seconds_of_subwindows`.
    """

    name: str
    blocks: list[Recording]
    by_block: list[Detections]
    events: pd.DataFrame
    subwindows: pd.DataFrame

    @property
    def seconds(self) -> float:
        """Length of the recording, in s."""
        return sum(block.facts['seconds'] for block in self.blocks)

    @property
    def minutes(self) -> float:
        """Length of the recording, in minutes."""
        return self.seconds / 60

    @property
    def n_parts(self) -> int:
        """Number of continuous parts."""
        return sum(len(block.layout.parts) for block in self.blocks)


def detections_of_recording(name: str, blocks: list[Recording], by_block: list[Detections]) -> RecordingDetections:
    """Put the detections in the blocks of a recording together."""
    events, subwindows = seconds_of_events(blocks, by_block), seconds_of_subwindows(blocks, by_block)
    return RecordingDetections(name, blocks, by_block, events, subwindows)


def without_bad_segments(detections: RecordingDetections) -> RecordingDetections:
    """Leave out the events in segments marked bad."""
    by_block = [
        block_detections._replace(
            events=block_detections.events[~in_bad_segments(block, block_detections.events['sample'])]
        )
        for block, block_detections in zip(detections.blocks, detections.by_block, strict=True)
    ]
    return detections_of_recording(detections.name, detections.blocks, by_block)


def seconds_of_events(blocks: list[Recording], by_block: list[Detections]) -> pd.DataFrame:
    """Events of all blocks of a recording, in order of time.

    Returns
    -------
    DataFrame
        onset (s from the first sample of the recording), proba, bad (whether it lies in a segment marked bad); of an
        ensemble, uncertainty; and block, part and sample: the number of its block, its continuous part, and its sample
        of the block.
    """
    tables = [
        pd.DataFrame(
            {
                'onset': block.layout.to_seconds(block_detections.events['sample'], block.info['sfreq']),
                'proba': block_detections.events['proba'].to_numpy(),
                'bad': in_bad_segments(block, block_detections.events['sample']),
                **{
                    name: block_detections.events[name].to_numpy()
                    for name in ('uncertainty',)
                    if name in block_detections.events
                },
                'block': number,
                'part': block_detections.events['part'].to_numpy(),
                'sample': block_detections.events['sample'].to_numpy(),
            }
        )
        for number, (block, block_detections) in enumerate(zip(blocks, by_block, strict=True))
    ]
    return pd.concat(tables, ignore_index=True).sort_values('onset', ignore_index=True)


def seconds_of_subwindows(blocks: list[Recording], by_block: list[Detections]) -> pd.DataFrame:
    """Sub-windows of all blocks of a recording.

    Returns
    -------
    DataFrame
        onset (s from the first sample of the recording), duration (s), proba, pred; of an ensemble, uncertainty.
    """
    tables = [
        pd.DataFrame(
            {
                'onset': block.layout.to_seconds(subwindows['onset'], block.info['sfreq']),
                'duration': (subwindows['end'] - subwindows['onset']) / block.info['sfreq'],
                'proba': subwindows['proba'],
                'pred': subwindows['pred'],
                **{name: subwindows[name] for name in ('uncertainty',) if name in subwindows},
            }
        )
        for block, (subwindows, _) in zip(blocks, by_block, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def in_bad_segments(block: Recording, samples: np.ndarray) -> np.ndarray:
    """Whether each of the samples (n,) of a block lies in a segment marked bad."""
    samples = np.asarray(samples, dtype=np.int64)
    return touches(samples, samples + 1, block.facts.get('bad_segments', []))


def bad_seconds(blocks: list[Recording]) -> list[list[float]]:
    """Onset and end of the segments marked bad in all blocks of a recording, in s from its first sample."""
    segments = []
    for block in blocks:
        sfreq = block.info['sfreq']
        for start, end in block.facts.get('bad_segments', []):
            onset, last = block.layout.to_seconds(np.array([start, end - 1]), sfreq)
            segments.append([onset, last + 1 / sfreq])
    return sorted(segments)
