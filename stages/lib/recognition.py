"""Speech recognition: the sound of a video to words with times, by faster-whisper (extra `speech`) from a model's folder.

Sound is read as a stream. faster-whisper takes whole arrays, and of five minutes needs 300 MB for its features; so it
gets windows of WINDOW_S at most, which end where the last of it is quietest, and a film's length does not matter. Windows know nothing of
one another but the language that the first one with speech was heard in. Nothing is drawn by chance (temperature 0 alone), so the same
sound gives the same words; and no window's text is the next one's prompt, since that is how one error becomes a loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib import containers
from stages.lib.audio import RATE, stretches
from stages.lib.subtitles.model import Found, RawCue, SubtitleError

NEEDED = ("model.bin", "config.json", "tokenizer.json", "vocabulary.json or vocabulary.txt")
ALSO = "preprocessor_config.json"
WINDOW_S = 300
SEARCH_S = 30  # at a window's end, in which the quietest moment is looked for
QUIET_S = 0.4
GAP_S = 5  # of no sound in the file, which ends a window
PAUSE_MS = 300  # between two words, at which a cue ends: cues hold when a word begins, and only of the last one when it ends


class ModelError(ValueError):
    """A folder that holds no model."""


@dataclass(frozen=True)
class How:
    """What decides about the words, and on what they are computed."""

    model: str
    language: str | None
    device: str
    compute_type: str
    beam_size: int
    vad: bool
    threads: int


def model_files(folder: str) -> list[str]:
    """The files of a model's folder that are read. Raises ModelError, which says what a folder needs."""
    root = Path(folder)
    named = [next((root / name for name in each.split(" or ") if (root / name).is_file()), None) for each in NEEDED]
    if not root.is_dir() or None in named:
        lacking = [each for each, path in zip(NEEDED, named, strict=True) if path is None]
        told = f"lacks {', '.join(lacking)}" if root.is_dir() else "is no folder"
        raise ModelError(
            f"{folder} {told}; a model is a local folder of CTranslate2's form with {', '.join(NEEDED)} and, for models of other than 80 "
            f"mels, {ALSO}. Names of models are not looked up: nothing is fetched"
        )
    with (root / NEEDED[0]).open("rb") as file:
        if b"WhisperSpec" not in file.read(64):
            raise ModelError(f"{root / NEEDED[0]} is no Whisper of CTranslate2's form")
    extra = [root / ALSO] if (root / ALSO).is_file() else []
    return [str(path) for path in (*named, *extra)]


class Recogniser:
    """A model that is loaded. `goes_on` is called for each half minute of sound, and raises what is to end the work."""

    def __init__(self, how: How) -> None:
        import faster_whisper

        model_files(how.model)
        self.how = how
        self.goes_on: Callable[[], None] = lambda: None
        outer = self

        class Watched(faster_whisper.WhisperModel):  # type: ignore[misc, name-defined, unused-ignore]
            def encode(self, features: Any) -> Any:
                outer.goes_on()
                return super().encode(features)

            def generate_with_fallback(self, *given: Any) -> Any:
                outer.goes_on()
                return super().generate_with_fallback(*given)

        try:
            self.model = Watched(
                how.model, device=how.device, compute_type=how.compute_type, cpu_threads=how.threads, num_workers=1, local_files_only=True
            )
        except (RuntimeError, ValueError) as err:
            raise ModelError(f"{how.model} cannot be loaded: {' '.join(str(err).split())[:300]}") from None
        if self.model.model.n_mels != self.model.feature_extractor.mel_filters.shape[0]:
            raise ModelError(f"{how.model}: the model takes {self.model.model.n_mels} mels; {ALSO} is missing or says otherwise")
        if not self.model.model.is_multilingual and how.language not in (None, "en"):
            raise ModelError(f"{how.model} knows English alone, and language is {how.language}")

    def heard(self, path: str, goes_on: Callable[[], None]) -> Found | None:
        """The speech of a file; None where it has no sound. Raises SubtitleError("malformed") where it cannot be opened,
        SubtitleError("undecodable") for sound of which nothing can be decoded, and what `goes_on` raises."""
        self.goes_on = goes_on
        found = Found(automatic=True, rolling=False, language=self.how.language)
        sound = windows(path, goes_on)
        first = next(sound, None)
        if first is None:
            return None
        for begin, samples in itertools.chain([first], sound):
            words = self._words(samples, found)
            found.raws += _cues(words, begin * 1000 / RATE, len(samples) * 1000 / RATE)
        return found

    def _words(self, samples: np.ndarray, found: Found) -> Iterator[list[tuple[str, float, float]]]:
        """The words of each segment (text, start and end in seconds of the window)."""
        from faster_whisper.transcribe import restore_speech_timestamps
        from faster_whisper.vad import get_speech_timestamps

        sound = samples.astype(np.float32) / 32768
        spoken = None
        if self.how.vad:
            spoken = get_speech_timestamps(sound)
            if not spoken:
                return
            sound = np.concatenate([sound[each["start"] : each["end"]] for each in spoken])
        segments, info = self.model.transcribe(
            sound,
            language=found.language,
            beam_size=self.how.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        for segment in restore_speech_timestamps(segments, spoken, RATE) if spoken else segments:
            self.goes_on()
            found.language = info.language
            yield [(word.word, float(word.start), float(word.end)) for word in segment.words or []]


def _cues(segments: Iterator[list[tuple[str, float, float]]], begin_ms: float, length_ms: float) -> list[RawCue]:
    """A cue for each run of words without a pause. Times rise, and lie within the window."""
    out: list[RawCue] = []
    last = 0.0
    for words in segments:
        pieces: list[tuple[int | None, str]] = []
        start = end = 0
        for text, start_s, end_s in words:
            said = min(max(start_s * 1000, last), length_ms)
            pause, last = said - last, min(max(end_s * 1000, said), length_ms)
            if pieces and pause >= PAUSE_MS:
                out.append(RawCue(start, end, tuple(pieces)))
                pieces = []
            start = start if pieces else round(begin_ms + said)
            pieces.append((round(begin_ms + said), text))
            end = round(begin_ms + last)
        if pieces:
            out.append(RawCue(start, end, tuple(pieces)))
    return out


def windows(path: str, goes_on: Callable[[], None]) -> Iterator[tuple[int, np.ndarray]]:
    """(place of its first sample since the container's start, int16 samples) of windows of the best audio stream. Nothing where there is
    no such stream. Raises SubtitleError as `Recogniser.heard` says."""
    import av

    try:
        container = containers.open_file(path)
    except (av.error.FFmpegError, OSError, ValueError) as err:
        raise SubtitleError("malformed", f"container: {containers.words(containers.to_blame(err))}") from None
    with container:
        stream = container.streams.best("audio")
        if stream is None and not container.streams.audio:
            return
        if stream is None or stream.codec_context is None:
            raise SubtitleError("undecodable", "no decoder for the sound, or no head that says what it is")
        containers.only(container, [stream])
        none = True
        for window in _windows(stretches(container, stream, lambda _a, _b: True, goes_on)):
            none = False
            yield window
        if none:
            raise SubtitleError("undecodable", f"no sound can be decoded ({stream.codec_context.name})")


def _windows(coming: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """What the file lacks for less than GAP_S is silence within a window."""
    begin, length = 0, 0
    held: list[np.ndarray] = []
    for place, given in coming:
        first, samples = max(0, place), given[max(0, -place) :]  # without what is before the container's start
        if length and first > begin + length + GAP_S * RATE:
            yield begin, np.concatenate(held)
            held, length = [], 0
        if not length:
            begin = first
        gap = first - (begin + length)
        more = [np.zeros(max(0, gap), np.int16), samples[max(0, -gap) :]]  # without what was heard already
        held += more
        length += sum(map(len, more))
        while length > WINDOW_S * RATE:
            whole = np.concatenate(held)
            cut = quietest(whole, (WINDOW_S - SEARCH_S) * RATE, WINDOW_S * RATE)
            yield begin, whole[:cut]
            held, begin, length = [whole[cut:]], begin + cut, length - cut
    if length:
        yield begin, np.concatenate(held)


def quietest(samples: np.ndarray, start: int, stop: int) -> int:
    """The middle of the QUIET_S between two places that have the least energy, the last of equals."""
    step = RATE // 100
    blocks = samples[start : start + (stop - start) // step * step].reshape(-1, step).astype(np.float64)
    wide = round(QUIET_S * 100)
    summed = np.convolve((blocks**2).sum(1), np.ones(wide), "valid")
    at = len(summed) - 1 - int(np.argmin(summed[::-1]))
    return start + (at + wide // 2) * step
