"""The pointer memory's rule, on its own: merge, insert, evict, always finite."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from recon4d_ros.networks.pointer_memory import FEATURE, SIGMA, Memory, Tokens, fuse  # noqa: E402

CAPACITY, RADIUS = 12, 0.3


def empty(capacity=CAPACITY):
    return Memory(
        torch.zeros(capacity, 3),
        torch.zeros(capacity, FEATURE),
        *(torch.zeros(capacity) for _ in range(3)),
    )


def tokens(positions, weight=1.0, again=0.0, mark=0.0):
    count = len(positions)
    feature = torch.zeros(count, FEATURE)
    feature[:, 0] = mark
    return Tokens(
        torch.tensor(positions, dtype=torch.float32),
        feature,
        torch.full((count,), weight),
        torch.full((count,), again),
    )


def line(count, spacing=2.0, start=0.0):
    return [[start + spacing * i, 0.0, 5.0] for i in range(count)]


def test_new_tokens_take_the_first_free_slots_in_order():
    memory = fuse(empty(), tokens(line(5)), RADIUS, torch.zeros(3))
    assert memory.valid.tolist() == [1] * 5 + [0] * 7
    assert torch.equal(memory.position[:5], torch.tensor(line(5)))


def test_a_token_nearer_than_the_radius_joins_and_one_beyond_it_does_not():
    memory = fuse(empty(), tokens([[0, 0, 5]]), RADIUS, torch.zeros(3))
    near = fuse(memory, tokens([[0.29, 0, 5]], again=1), RADIUS, torch.zeros(3))
    assert near.valid.sum() == 1
    assert near.position[0, 0] == pytest.approx(0.145, abs=1e-6)  # the weighted mean of one and one
    assert near.weight[0] == 2
    assert near.age[0] == 0
    far = fuse(memory, tokens([[0.31, 0, 5]], again=1), RADIUS, torch.zeros(3))
    assert far.valid.sum() == 2


def test_an_unsure_token_reaches_farther_but_at_most_four_radii():
    memory = fuse(empty(), tokens([[0, 0, 5]]), RADIUS, torch.zeros(3))
    for distance, joined in ((1.15, True), (1.25, False)):
        unsure = tokens([[distance, 0, 5]], again=1)
        unsure.feature[:, SIGMA] = 10.0
        assert (fuse(memory, unsure, RADIUS, torch.zeros(3)).valid.sum() == 1) == joined


def test_seen_again_keeps_its_patch_and_a_different_look_replaces_it():
    memory = fuse(empty(), tokens([[0, 0, 5]], mark=1.0), RADIUS, torch.zeros(3))
    again = fuse(memory, tokens([[0.1, 0, 5]], again=1, mark=2.0), RADIUS, torch.zeros(3))
    assert again.feature[0, 0] == 1.0
    other = fuse(memory, tokens([[0.1, 0, 5]], again=0, mark=2.0), RADIUS, torch.zeros(3))
    assert other.feature[0, 0] == 2.0
    assert other.position[0, 0] == pytest.approx(0.1)


def test_a_full_memory_loses_its_oldest_pointers_first():
    memory = fuse(empty(), tokens(line(CAPACITY)), RADIUS, torch.zeros(3))
    for _ in range(3):  # all but the first three are seen again and again
        memory = fuse(memory, tokens(line(CAPACITY)[3:], again=1), RADIUS, torch.zeros(3))
    memory = fuse(memory, tokens([[0, 50, 5], [0, 60, 5]]), RADIUS, torch.zeros(3))
    assert memory.valid.sum() == CAPACITY
    assert (memory.position[:3, 1] > 0).sum() == 2  # two of the three unseen ones left
    assert (memory.position[3:, 1] == 0).all()


def test_more_new_tokens_than_slots_fill_the_memory_and_no_more():
    memory = fuse(empty(), tokens(line(3 * CAPACITY)), RADIUS, torch.zeros(3))
    assert memory.valid.sum() == CAPACITY
    assert all(torch.isfinite(tensor).all() for tensor in memory)


def test_tokens_without_weight_never_enter():
    memory = fuse(empty(), tokens(line(4), weight=0.0), RADIUS, torch.zeros(3))
    assert memory.valid.sum() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_any_stream_keeps_the_memory_finite_bounded_and_repeatable(seed, steps):
    def run():
        generator = torch.Generator().manual_seed(seed)
        memory = empty()
        for _ in range(steps):
            count = 8
            position = torch.rand(count, 3, generator=generator) * 4
            weight = torch.rand(count, generator=generator).round() * torch.rand(
                count, generator=generator
            )
            memory = fuse(
                memory,
                Tokens(
                    position,
                    torch.rand(count, FEATURE, generator=generator),
                    weight,
                    torch.rand(count, generator=generator).round(),
                ),
                RADIUS,
                torch.zeros(3),
            )
        return memory

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in first)
    assert ((first.valid == 0) | (first.valid == 1)).all()
    assert (first.weight[first.valid > 0] > 0).all()
