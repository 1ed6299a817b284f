"""Recipes: what to trace of each component, as data. A new component is one file here and one line in RECIPES."""

from lora_edge.export.recipes.base import Port, Recipe
from lora_edge.export.recipes.text_encoder import TEXT_ENCODER, TEXT_ENCODER_2
from lora_edge.export.recipes.unet import UNET
from lora_edge.export.recipes.vae import VAE_DECODER, VAE_ENCODER

RECIPES: tuple[Recipe, ...] = (TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE_DECODER, VAE_ENCODER)

__all__ = ["RECIPES", "Port", "Recipe"]
