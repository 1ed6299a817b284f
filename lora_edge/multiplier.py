"""Multipliers: the user's numbers in `<lora:name:multiplier>`."""

from dataclasses import dataclass

from lora_edge.errors import RequestError


@dataclass(frozen=True)
class Multiplier:
    """How strongly an adapter acts, per kind of component: 0 is off, 1 as trained, negative is the opposite.

    Attributes:
        unet: for the UNet.
        text: for every text encoder.
    """

    unet: float = 1.0
    text: float = 1.0

    @classmethod
    def of(cls, value: "float | Multiplier") -> "Multiplier":
        """A plain number acts everywhere alike.

        Raises:
            RequestError: the number is not finite.
        """
        made = value if isinstance(value, Multiplier) else cls(float(value), float(value))
        for number in (made.unet, made.text):
            if not abs(number) < float("inf"):
                raise RequestError(f"multiplier {number} is not a finite number")
        return made

    def for_component(self, component: str) -> float:
        """The number for one component of a bundle."""
        return self.text if component.startswith("text_encoder") else self.unet

    def __add__(self, other: "Multiplier") -> "Multiplier":
        """Two tags of the same adapter act as their sum."""
        return Multiplier(self.unet + other.unet, self.text + other.text)
