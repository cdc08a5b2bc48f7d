"""Which keyframes look like a frame set: bags of visual words (Sivic and Zisserman, ICCV 2003;
binary words as in Galvez-Lopez and Tardos, T-RO 2012, without the tree). The words are learned from
the map's own keyframes, so nothing has to be shipped or fit a place.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

WORDS = 1024
ROUNDS = 4
SAMPLE = 40_000  # descriptors that words are learned from


@dataclass(frozen=True)
class Vocabulary:
    """words: [V, 32] uint8, descriptors that stand for those near to them."""

    words: NDArray[np.uint8]

    def __call__(self, descriptors: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The word of each descriptor [M, 32]: [M]."""
        if not len(descriptors):
            return np.zeros(0, np.int64)
        _, nearest = cv2.batchDistance(
            descriptors, self.words, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=1
        )
        return nearest[:, 0].astype(np.int64)

    @staticmethod
    def learn(descriptors: NDArray[np.uint8], seed: int = 0) -> Vocabulary:
        """From descriptors [M, 32], M at least 1: k-majority, k-means in Hamming distance with the
        bitwise majority as mean (Grana et al., 2013)."""
        rng = np.random.default_rng(seed)
        if len(descriptors) > SAMPLE:
            descriptors = descriptors[np.sort(rng.choice(len(descriptors), SAMPLE, replace=False))]
        descriptors = np.unique(descriptors, axis=0)
        count = min(WORDS, len(descriptors))
        words = descriptors[np.sort(rng.choice(len(descriptors), count, replace=False))]
        bits = np.unpackbits(descriptors, axis=1)
        for _ in range(ROUNDS):
            word = Vocabulary(words)(descriptors)
            order = np.argsort(word, kind="stable")
            begins = np.searchsorted(word[order], np.arange(count))
            ends = np.searchsorted(word[order], np.arange(count), side="right")
            words = words.copy()
            total = np.concatenate(
                [np.zeros((1, bits.shape[1]), np.int32), np.cumsum(bits[order], 0, np.int32)]
            )
            sums = total[ends] - total[begins]
            some = ends > begins
            majority = 2 * sums[some] > (ends - begins)[some, None]
            words[some] = np.packbits(majority, axis=1)
        return Vocabulary(words)


class Index:
    """Bags of words of keyframes, numbered as they were added."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._bags: list[tuple[NDArray[np.uint16], NDArray[np.uint8]]] = []
        self._seen_in = np.zeros(len(vocabulary.words))  # keyframes that have the word

    def __len__(self) -> int:
        return len(self._bags)

    def add(self, descriptors: NDArray[np.uint8]) -> None:
        word, count = np.unique(self.vocabulary(descriptors), return_counts=True)
        self._bags.append((word.astype(np.uint16), np.minimum(count, 255).astype(np.uint8)))
        self._seen_in[word] += 1

    def keep(self, count: int) -> None:
        """Only the first `count`."""
        for words, _ in self._bags[count:]:
            self._seen_in[words] -= 1
        del self._bags[count:]

    def scores(
        self, descriptors: NDArray[np.uint8], among: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """[K], 0..1: how much each keyframe looks like a frame set of these descriptors: the cosine
        of the words' frequencies, weighted by how rare a word is. among: [K] the keyframes that are
        asked, at whose cost; the others have 0."""
        scores = np.zeros(len(among))
        asked = np.flatnonzero(among)
        if not len(asked):
            return scores
        rare = np.log((len(self._bags) + 1.0) / (self._seen_in + 1.0)) + 1e-3
        wanted = np.bincount(self.vocabulary(descriptors), minlength=len(rare)) * rare
        bags = [self._bags[i] for i in asked.tolist()]
        sizes = np.array([len(words) for words, _ in bags])
        words = np.concatenate([words for words, _ in bags])
        weight = np.concatenate([count for _, count in bags]) * rare[words]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        common = np.bincount(owner, weight * wanted[words], len(sizes))
        norm = np.sqrt(np.bincount(owner, weight**2, len(sizes)))
        scores[asked] = common / np.maximum(norm * np.linalg.norm(wanted), 1e-12)
        return scores
