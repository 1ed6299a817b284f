"""`python -m lora_edge` is `lora-edge`."""

from lora_edge.cli import main

main()
