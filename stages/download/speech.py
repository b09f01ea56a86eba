"""Speech of videos that have no subtitles: the option `speech` of the stage `subtitle_files`, around stages/lib/recognition.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from pipeline.errors import UserError
from pipeline.stage import KEPT, Resources, Strict, keyless, of_the_past
from stages.lib import recognition
from stages.lib.subtitles import SubtitleError, recognised

REASONS = {
    "no_sound": "nor has its video sound, in which speech could be recognised",
    "no_speech": "nor is any speech found in its sound",
    "damaged_sound": "its video has sound of which nothing can be decoded, so that no speech can be recognised",
}
_BAD = {"malformed": "not_a_video", "undecodable": "damaged_sound"}


class Options(Strict):
    """Which model, and how."""

    model: str
    """A local folder with a Whisper model of CTranslate2's form, as faster-whisper reads it: model.bin, config.json, tokenizer.json,
    vocabulary.json (or .txt) and, for other than 80 mels, preprocessor_config.json. Its content is part of the key. Nothing is fetched."""
    language: str | None = None
    """The language's code (en, de …); null: heard in the first half minute of speech of each video."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where `gpus` gives the worker one, else the CPU."""
    compute_type: Literal[
        "default", "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
    ] = "default"
    """CTranslate2's; `default` computes as the weights were stored, where the device can."""
    beam_size: int = Field(5, ge=1, le=100)
    """Beams of the search; 1 is greedy."""
    vad: bool = True
    """Only what Silero's detector, which faster-whisper brings, takes for a voice goes through the model."""
    gpus: float = keyless(0.0, ge=0)
    """GPUs of one worker of the stage's pool."""
    cpus: int = keyless(1, ge=1)
    """CPUs, and threads of the model, of one worker."""
    memory: int = keyless(6 << 30, ge=1 << 30)
    """Bytes of memory of one worker, the model included."""

    @model_validator(mode="after")
    def _folder(self, info: ValidationInfo) -> Self:
        try:
            recognition.model_files(self.model)
        except (recognition.ModelError, OSError) as err:
            if not of_the_past(info):
                raise ValueError(f"model: {err}") from None
        if self.device == "cuda" and not self.gpus:
            raise ValueError("device: cuda needs gpus: above 0, else Ray shows the worker none")
        return self

    def files(self) -> list[str]:
        """What goes into the key; nothing of a folder that is gone, which only a run of the past may name: its keys are known."""
        try:
            return recognition.model_files(self.model)
        except (recognition.ModelError, OSError):
            return []

    def resources(self) -> Resources:
        return Resources(self.cpus, self.gpus, self.memory, 1 if self.gpus else None)


class Listener:
    """A worker's model, loaded when the first video needs it. `stop` ends what it is at."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._lock = threading.Lock()  # one video at a time
        self._recogniser: recognition.Recogniser | None = None
        self._ended = False

    def heard(self, path: str, goes_on: Callable[[], None]) -> tuple[bytes | None, str, str | None]:
        """A subtitle file with what is said, or the reason why there is none; fate and detail. Raises UserError."""

        def watched() -> None:
            if self._ended:
                raise InterruptedError("ended while speech was recognised")
            goes_on()

        with self._lock:
            try:
                found = self._loaded().heard(path, watched)
            except SubtitleError as err:
                return None, f"subtitle_files:{_BAD[err.reason]}", err.detail
        if found is None:
            return None, "subtitle_files:no_sound", "neither a text track nor sound in the video"
        if not found.raws:
            return None, "subtitle_files:no_speech", "no text track, and no speech in the sound"
        return recognised.as_file(found), KEPT, None

    def stop(self) -> None:
        self._ended = True

    def _loaded(self) -> recognition.Recogniser:
        if self._recogniser is None:
            given: dict[str, Any] = {field.name: getattr(self.options, field.name, None) for field in fields(recognition.How)}
            given |= {"threads": self.options.cpus, "device": self._device()}
            try:
                self._recogniser = recognition.Recogniser(recognition.How(**given))
            except recognition.ModelError as err:
                raise UserError(f"stages.subtitle_files.speech: {err}") from None
        return self._recogniser

    def _device(self) -> str:
        return "cpu" if self.options.device == "auto" and not self.options.gpus else self.options.device


def require(options: Options) -> None:
    """Raises UserError where the extra is missing, or the model's folder is gone or its tokenizer cannot be read."""
    try:
        import faster_whisper  # noqa: F401
        import tokenizers
    except ImportError as err:
        told = 'make setup EXTRAS=speech, or pip install "shardmill[speech]"'
        raise UserError(f"stages.subtitle_files.speech needs faster-whisper ({err}): {told}") from None
    try:
        recognition.model_files(options.model)
        read = tokenizers.Tokenizer.from_file(str(Path(options.model) / "tokenizer.json"))
    except Exception as err:  # noqa: BLE001 (tokenizers raises no other)
        raise UserError(f"stages.subtitle_files.speech.model: {err}") from None
    if read.token_to_id("<|startoftranscript|>") is None:
        raise UserError(f"stages.subtitle_files.speech.model: {options.model}/tokenizer.json is not Whisper's")
    if options.language not in (None, "en") and read.token_to_id(f"<|{options.language}|>") is None:
        raise UserError(f"stages.subtitle_files.speech.language: {options.model} knows no {options.language}")
