"""Synthetic speech from espeak-ng, without a network and without a system package.

The wheel `espeakng-loader` brings the library and its data; this file talks to it through ctypes. One utterance of
2 s takes 7 ms on one CPU core, 300 times real time, so hours of speech in a hundred voices are a matter of minutes.
"""

import _ctypes
import ctypes
import os
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import soxr

_SYNCHRONOUS = 2  # audio comes through the callback, inside the call, without a thread of espeak's own
_DONT_EXIT = 0x8000  # without it a missing data folder ends the Python process
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_NOISE_SEED = 1
_LIMITS = {"rate": (80, 450), "pitch": (0, 99), "pitch_range": (0, 99), "volume": (0, 200)}
_DEFAULT_VARIANT = "default"
# Their Klatt synthesiser draws breath noise from the C library's rand(), which is not ours to seed.
_NOT_REPEATABLE = {"Reed", "caleb"}
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_SYNTH_ARGUMENTS = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int] + [ctypes.c_uint] * 2
_SYNTH_ARGUMENTS += [ctypes.c_void_p] * 2
_unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary


class SpeechSynthesizer:
    """Reads text aloud: `synthesizer("Good morning.", voice="en-us+f2")`.

    A voice is `accent+variant`: the accent (`en-gb`, `en-us`, `de`, ...) says how words are pronounced, the variant
    (`f2`, `m3`, ...) whose throat says them; the accent alone is espeak's own male voice.

    The library keeps its state in global variables: the flutter of the pitch, the phase of the voice and the echo run
    on from one utterance into the next, even across `espeak_Terminate`. Each call therefore loads a fresh image of a
    private copy of the library and unloads it afterwards (4 ms), so that an utterance depends on its arguments alone
    and no other user of espeak in the process is disturbed. Calls from several threads wait for each other; for
    parallel work give each process its own synthesizer, made after the fork.

    Args:
        sampling_rate: Rate of the audio returned, Hz. espeak works at 22050 Hz; soxr resamples.

    Raises:
        ImportError: The wheel is not installed.
    """

    def __init__(self, sampling_rate: int = 16000):
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError(
                'Synthetic speech needs the wheel `espeakng-loader`: pip install -e ".[demo]".'
            ) from error
        self.sampling_rate = sampling_rate
        self._data_path = Path(espeakng_loader.get_data_path())
        self._folder = tempfile.TemporaryDirectory(prefix="calm-espeak-")
        self._library_path = shutil.copy(espeakng_loader.get_library_path(), self._folder.name)
        self._lock = threading.Lock()
        self._accent_files = self._read_accents()
        names = {path.name for path in (self._data_path / "voices" / "!v").iterdir()}
        self._variants = [*sorted(names - _NOT_REPEATABLE), _DEFAULT_VARIANT]

    def _read_accents(self) -> dict[str, str]:
        """Language code -> voice file; espeak itself does not find every accent by its code (`en-gb`)."""
        root, accents = self._data_path / "lang", {}
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.startswith("language "):
                    accents[line.split()[1].lower()] = path.relative_to(root).as_posix()
                    break
        return accents

    def variants(self) -> list[str]:
        """The throats, sorted, and `default` for espeak's own; two that cannot be repeated bit by bit are left out."""
        return list(self._variants)

    def __call__(
        self,
        text: str,
        voice: str = "en-us",
        rate: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
        volume: int = 60,
    ) -> np.ndarray:
        """Speaks one text. The same arguments give the same samples, bit by bit.

        Args:
            text: What to say, at least one word.
            voice: `accent` or `accent+variant`.
            rate: Words a minute, 80 to 450.
            pitch: Height of the voice, 0 to 99; 50 is the voice's own, 0 an octave lower, 99 an octave higher.
            pitch_range: Movement of the pitch, 0 (monotone) to 99 (twice the voice's own).
            volume: Amplitude, 0 to 200; several variants clip at espeak's own default of 100.

        Returns:
            Mono float32 samples in [-1, 1], shape (num_samples,), espeak's leading and trailing silence included.

        Raises:
            ValueError: An unknown voice, a number outside its limits or a text without a word.
            RuntimeError: espeak refuses.
        """
        for name, value in (("rate", rate), ("pitch", pitch), ("pitch_range", pitch_range), ("volume", volume)):
            low, high = _LIMITS[name]
            if not low <= value <= high:
                raise ValueError(f"`{name}` is {value}, expected {low} to {high}.")
        if not any(character.isalnum() for character in text) or "\0" in text:
            raise ValueError(f"Nothing to say in {text!r}: it needs a letter or a digit, and no NUL character.")
        parameters = {_RATE: rate, _VOLUME: volume, _PITCH: pitch, _RANGE: pitch_range}
        with self._lock:
            samples, rate_hz = self._speak(text, self._espeak_name(voice), parameters)
        return soxr.resample(samples.astype(np.float32) / 32768, rate_hz, self.sampling_rate)

    def _espeak_name(self, voice: str) -> str:
        # espeak speaks in its default throat, without a word, where it does not know the variant.
        accent, _, variant = voice.partition("+")
        if accent not in self._accent_files or (variant or _DEFAULT_VARIANT) not in self._variants:
            raise ValueError(
                f"Unknown voice {voice!r}: expected `accent` or `accent+variant`, of {sorted(self._accent_files)} and"
                f" {self._variants}."
            )
        name = self._accent_files[accent]
        return name if variant in ("", _DEFAULT_VARIANT) else f"{name}+{variant}"

    def _speak(self, text: str, espeak_name: str, parameters: dict[int, int]) -> tuple[np.ndarray, int]:
        """One utterance in a fresh image of the library: int16 samples and their rate in Hz."""
        chunks = []

        @_CALLBACK
        def collect(samples, num_samples, _events):
            if samples and num_samples > 0:
                chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
            return 0  # go on

        library = ctypes.CDLL(self._library_path)
        try:
            rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._data_path), _DONT_EXIT)
            if rate_hz <= 0:
                raise RuntimeError(f"espeak-ng cannot start with the data in {self._data_path}.")
            # espeak seeds its noise with the time of day.
            library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))
            library.espeak_SetSynthCallback(collect)
            failed = library.espeak_SetVoiceByName(espeak_name.encode())
            # The voice comes first: setting one resets the parameters.
            for parameter, value in parameters.items():
                failed = failed or library.espeak_SetParameter(parameter, int(value), 0)
            encoded = text.encode() + b"\0"
            library.espeak_Synth.argtypes = _SYNTH_ARGUMENTS
            failed = failed or library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _UTF8, None, None)
            failed = failed or library.espeak_Synchronize()
            if failed or not chunks:
                raise RuntimeError(f"espeak-ng cannot say {text!r} as {espeak_name!r} (code {failed}).")
        finally:
            library.espeak_Terminate()
            _unload(library._handle)
        return np.concatenate(chunks), rate_hz
