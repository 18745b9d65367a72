"""Where your transcription begins: the samples of a recording.

WAV is decoded by the standard library, MP3 by ffmpeg (`apt-get install ffmpeg`).
Without ffmpeg, let callvault fetch WAV first: CALLVAULT_FORMATS=wav,mp3,base.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import wave
from array import array
from typing import Any

# What is in memory at once, however long the call was.
BLOCK_SECONDS = 30


class Undecodable(Exception):
    """The audio is not what can be decoded here."""


def transcribe(audio: wave.Wave_read) -> dict[str, Any]:
    """Put your model here. It gets 16-bit samples, block by block.

    Twilio's two-channel recordings have one party on each channel: `samples[0::2]` is
    the first, `samples[1::2]` the second. What stands here only measures.
    """
    frames, peak = 0, 0
    while block := audio.readframes(BLOCK_SECONDS * audio.getframerate()):
        samples = array("h", block)
        if sys.byteorder == "big":
            samples.byteswap()
        frames += len(samples) // audio.getnchannels()
        peak = max(peak, max(samples), -min(samples))
    seconds = round(frames / audio.getframerate(), 2)
    return {"seconds": seconds, "channels": audio.getnchannels(), "peak": peak}


def decoded(path: str, folder: str) -> wave.Wave_read:
    """The audio as 16-bit samples; what is no plain WAV goes through ffmpeg."""
    plain = path if is_plain_wav(path) else through_ffmpeg(path, folder)
    return wave.open(plain, "rb")


def is_plain_wav(path: str) -> bool:
    """Whether the standard library reads it: PCM of 16 bits."""
    try:
        with wave.open(path, "rb") as audio:
            return audio.getsampwidth() == 2
    except (wave.Error, EOFError):
        return False


def through_ffmpeg(path: str, folder: str) -> str:
    """The same audio as a plain WAV in that folder."""
    if shutil.which("ffmpeg") is None:
        raise Undecodable(
            "this is no plain WAV, and ffmpeg is not installed (see transcription.py)"
        )
    plain = os.path.join(folder, "decoded.wav")
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "error",
        "-y",
        "-i",
        path,
        "-c:a",
        "pcm_s16le",
        plain,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Undecodable(ended.stderr.strip())
    return plain
