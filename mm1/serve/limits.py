"""What a server takes from its clients at most."""

from dataclasses import dataclass

from mm1.generate.serving import ServingSizes


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server.

    max_length           positions of a prompt with its answer
    max_concurrent       answers that are written at a time
    kept_prompts         rows that only remember prompts, for requests that begin alike
    max_prefill          positions of prompts that are computed between two tokens of the answers
    max_feature_bytes    features of pictures that are kept
    max_pixel_bytes      decoded pictures that prompts keep until they are encoded; others are decoded twice
    max_waiting          answers that wait for a row; more requests are refused with 429
    max_choices          answers that one request may ask for
    max_pictures         pictures of one request
    max_picture_bytes    encoded bytes of a picture
    max_picture_pixels   pixels of a picture
    max_body_bytes       bytes of a request's body
    max_bodies_bytes     bytes of all bodies that are being read or answered
    body_seconds         until a request's body has arrived
    request_seconds      until an answer is complete, waiting included
    drain_seconds        until what is running has ended when the server is told to stop
    """

    max_length: int = 2048
    max_concurrent: int = 32
    kept_prompts: int = 8
    max_prefill: int = 512
    max_feature_bytes: int = 1 << 30
    max_pixel_bytes: int = 512 << 20
    max_waiting: int = 256
    max_choices: int = 128
    max_pictures: int = 32
    max_picture_bytes: int = 20_000_000
    max_picture_pixels: int = 64_000_000
    max_body_bytes: int = 64_000_000
    max_bodies_bytes: int = 512_000_000
    body_seconds: float = 60.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0

    @property
    def sizes(self) -> ServingSizes:
        """The sizes of the engine."""
        return ServingSizes(self.max_concurrent, self.max_length, self.kept_prompts, self.max_prefill)
