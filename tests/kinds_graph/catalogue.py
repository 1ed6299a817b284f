"""All examples by name."""

from . import low_rank, multiplicative
from .example import Example

EXAMPLES: dict[str, Example] = {example.name: example for example in (*low_rank.EXAMPLES, *multiplicative.EXAMPLES)}
