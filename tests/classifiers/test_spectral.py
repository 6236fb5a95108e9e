"""What the spectrum of a block predicts of a masked segment, against a conditional mean written out."""

import numpy as np
import pytest
import torch
from common import Pairs
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from classification import SubwindowReader
from classifiers.features import append_relative_power, spike_features
from classifiers.filtered import filter_windows
from classifiers.inputs import Masking
from classifiers.specs import CLASSIFIERS
from classifiers.spectral import BlockSpectra, autocovariance, gap_predictors
from classifiers.subwindows import SubwindowShape
from timeseries_dataset import batches

SHAPE, MARGIN, TIMES = SubwindowShape(6, 3, 8), 2, 36


def windows(n, n_channels=5, seed=0):
    """Windows (n, 1, n_channels, TIMES) of random walks."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, 1, n_channels, TIMES)).cumsum(axis=-1).astype(np.float32))


def directions(n_channels=5, n_components=3):
    """Orthonormal rows, each of a length of its own, as filters are."""
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(n_channels, n_channels)))[0][:n_components]
    return torch.from_numpy((rows * [[2.0], [0.5], [1.0]]).astype(np.float32))


def conditional_mean(autocovariances, course):
    """What a Gaussian of these autocovariances leaves of each masked segment of a time course, given the rest."""
    lags = autocovariances / autocovariances[0]
    covariance = lags[np.abs(np.subtract.outer(np.arange(TIMES), np.arange(TIMES)))] + 1e-3 * np.eye(TIMES)
    for k in range(SHAPE.n_subwindows):
        first = SHAPE.border + k * SHAPE.subwindow_length - MARGIN
        inside = np.arange(first, first + SHAPE.subwindow_length + 2 * MARGIN)
        outside = np.setdiff1d(np.arange(TIMES), inside)
        weights = np.linalg.solve(covariance[np.ix_(outside, outside)], covariance[np.ix_(outside, inside)])
        yield course[inside] - course[outside] @ weights


def spectra_of(x, blocks, counted=None):
    """Measured in batches of 3."""
    parts = (x[first : first + 3] for first in range(0, len(x), 3))
    counted = np.ones(len(x), dtype=bool) if counted is None else counted
    return BlockSpectra(directions(), SHAPE, MARGIN, blocks, parts, counted)


def test_a_residual_is_what_the_conditional_mean_of_the_block_leaves():
    x, blocks = windows(7), np.array([5, 5, 9, 9, 9, 5, 9])
    spectra, filters = spectra_of(x, blocks), directions().double().numpy()
    residuals = spectra.residuals(x, slice(0, 7))
    assert residuals.shape == (7, 1, 5, 3, 12)
    unit = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    components = unit @ x[:, 0].double().numpy()
    centred = components - components.mean(axis=-1, keepdims=True)
    tapered = centred * np.sin(np.pi * (np.arange(TIMES) + 0.5) / TIMES)
    for window, block in enumerate(blocks):
        for i in range(3):
            of_block = tapered[blocks == block, i]
            lags = np.array([(of_block[:, lag:] * of_block[:, : TIMES - lag]).sum() for lag in range(TIMES)])
            expected = np.stack(list(conditional_mean(lags, components[window, i])))
            got = np.einsum('c,cst->st', unit[i], residuals[window, 0].double().numpy())
            np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(components).max())
    # What the components do not hold stays as it was.
    outside = np.eye(5) - unit.T @ unit
    signal = np.einsum('dc,ncst->ndst', outside, SHAPE.stretches(x[:, 0], MARGIN).numpy())
    np.testing.assert_allclose(np.einsum('dc,ncst->ndst', outside, residuals[:, 0].numpy()), signal, atol=1e-4)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 9))
def test_a_window_s_residual_depends_on_its_block_alone(blocks, size):
    x, blocks = windows(len(blocks)), np.array(blocks)
    spectra = spectra_of(x, blocks)
    in_batches = [spectra.residuals(x[rows], rows) for rows in (slice(k, k + size) for k in range(0, len(x), size))]
    alone = x[blocks == blocks[0]]
    expected = spectra_of(alone, blocks[blocks == blocks[0]]).residuals(alone, slice(0, len(alone)))
    torch.testing.assert_close(torch.cat(in_batches)[blocks == blocks[0]], expected, rtol=1e-4, atol=1e-4)


def test_classifiers_read_it_block_by_block_and_of_copies_too():
    x, filters = windows(9), directions()
    blocks = np.array([4, 4, 4, 4, 2, 2, 2, 2, 2])
    of_subwindows = blocks.repeat(SHAPE.n_subwindows)
    masking = Masking(MARGIN, filters, 'spectrum')
    reader = SubwindowReader(nn.Identity(), CLASSIFIERS['forest'], SHAPE, [0], masking, torch.device('cpu'))
    loader = batches(Pairs(x), batch_size=2)

    def expected(x):
        residuals = spectra_of(x, blocks).residuals(x, slice(0, 9))
        read = spike_features(filter_windows(x[:, 0], residuals[:, 0], filters, SHAPE, MARGIN))
        return append_relative_power(read.numpy(), of_subwindows)

    data = reader.read(loader, of_subwindows)
    np.testing.assert_allclose(data.inputs, expected(x), rtol=1e-4, atol=1e-4)
    assert data.errors is None
    [copy] = reader.read_copies(loader, of_subwindows, 'sign')
    np.testing.assert_allclose(copy, expected(-x), rtol=1e-4, atol=1e-4)


def test_mirror_images_do_not_count():
    x, counted = windows(6), np.array([True, True, False, True, False, True])
    whole, part = spectra_of(x, np.zeros(6), counted), spectra_of(x[counted], np.zeros(4))
    torch.testing.assert_close(whole.autocovariances, part.autocovariances)


@pytest.mark.parametrize(('noise', 'left'), [(0.0, 0.0), (1.0, 1.0), (100.0, 1.0)])
def test_a_rhythm_is_predicted_and_white_noise_is_not(noise, left):
    t, rng, shape = np.arange(300), np.random.default_rng(0), SubwindowShape(45, 7, 30)
    phase = rng.uniform(0, 2 * np.pi, (200, 1))
    courses = torch.from_numpy(np.sin(2 * np.pi * t / 15 + phase) + noise * rng.normal(size=(200, 300)))
    predictors = gap_predictors(autocovariance(courses).sum(dim=0)[None], shape, 8)[0]
    residuals = torch.einsum('kmt,bt->bkm', predictors, courses)
    scale = max(noise, 1.0)
    assert float(residuals.square().mean()) / scale**2 == pytest.approx(left, abs=0.1)


def test_a_component_without_power_predicts_nothing():
    predictors = gap_predictors(torch.zeros(1, TIMES, dtype=torch.float64), SHAPE, MARGIN)
    course = torch.randn(TIMES, dtype=torch.float64)
    expected = SHAPE.stretches(course[None, None], MARGIN)[0, 0]
    torch.testing.assert_close(predictors[0] @ course, expected)
